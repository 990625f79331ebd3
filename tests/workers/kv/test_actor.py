from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numba.core.dispatcher import Dispatcher

from moorage.workers.errors import InvalidRequest, PeerDead, Unavailable
from moorage.workers.kv import actor
from moorage.workers.kv.actor import KvActor, connect, start_kv_actor, stop_kv_actor
from moorage.workers.kv.jobs import Outcome
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.messages import KeyRequest
from moorage.workers.kv.operations import CopyBlocks, Restore, SelectKeys
from moorage.workers.kv.ray_link import RayLink
from moorage.workers.ray_process import RayProcess
from moorage.workers.spec import AnchorType, KvLayout
from tests.workers.kv.asker import Asker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
LAYOUT = KvLayout(1, 1, 16, 4)


def start(name: str) -> Any:
    process = RayProcess(name, "test", num_cpus=0.1, memory_bytes=4 * LAYOUT.page_bytes)
    return start_kv_actor(process, LAYOUT, num_pages=4, num_threads=1)


def test_an_actor_is_found_by_name_and_shared_by_both_links() -> None:
    handle = start("shared")
    link = connect("shared", namespace="test")
    assert isinstance(link, MailboxLink)
    mailbox = Asker(link)
    assert mailbox.pid == ray.get(handle.pid.remote()) != os.getpid()
    calls = Asker(RayLink(handle, LAYOUT))
    mailbox.open(1, 2)
    rows = np.ones((5, 1, 16), np.float32)
    mailbox.write(1, 0, 0, rows, rows)
    mailbox.commit(1, 0, 0, 5)
    assert mailbox.stats() == calls.stats()
    assert calls.attach(1) == 5
    ray.get(handle.check_integrity.remote())
    stop_kv_actor(handle)
    with pytest.raises(PeerDead):
        mailbox.stats()
    with pytest.raises(Unavailable, match="see that it runs"):
        connect("shared", namespace="test")
    stop_kv_actor(handle)
    mailbox.close()


def outcome(handle: Any, number: Any) -> Outcome:
    """Of a job, once it is done."""
    while not (found := ray.get(handle.outcome.remote(number))).done:
        time.sleep(0.01)
    assert isinstance(found, Outcome)
    return found


def test_an_actor_writes_a_session_to_a_file_and_reads_it_again(tmp_path: Path) -> None:
    handle, file = start("files"), str(tmp_path / "blocks")
    link = connect(handle)
    mailbox, rows = Asker(link), np.arange(8 * 16, dtype=np.float32).reshape(8, 1, 16)
    mailbox.open(1, 2)
    mailbox.write(1, 0, 0, rows, rows)
    mailbox.commit(1, 0, 0, 8)
    checksum = outcome(handle, handle.start_save.remote(1, file)).result
    mailbox.open(2, 2)
    link.call(Restore(2, 2))
    assert outcome(handle, handle.start_load.remote(2, file, checksum)).error is None
    copies = [link.call(CopyBlocks(one, 0, np.arange(2, dtype=np.int32))) for one in (1, 2)]
    np.testing.assert_array_equal(*copies)
    error = outcome(handle, handle.start_load.remote(2, file, "other")).error
    assert isinstance(error, InvalidRequest)
    assert "checksum" in str(error)
    mailbox.close()
    stop_kv_actor(handle)


def test_a_killed_actor_is_noticed_by_both_links() -> None:
    handle = start("killed")
    mailbox, calls = Asker(connect(handle)), Asker(RayLink(handle, LAYOUT))
    mailbox.open(1, 2)
    os.kill(ray.get(handle.pid.remote()), signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(PeerDead):
        mailbox.stats()
    assert time.monotonic() - begin < 1
    with pytest.raises(PeerDead, match="start the cluster again"):
        calls.stats()
    mailbox.close()


def test_an_actor_of_another_host_has_compiled_what_selects_single_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiled(_: KvActor) -> set[str]:
        gc.unfreeze()  # an actor that is ready has frozen its heap, whose objects are not found otherwise
        kernels = [found for found in gc.get_objects() if isinstance(found, Dispatcher)]
        return {f"{kernel.py_func} {types}" for kernel in kernels for types in kernel.signatures}

    layout = KvLayout(1, 2, 64, 16, anchor_type=AnchorType.KEY_CODES)
    handle = start_kv_actor(RayProcess("far", "test", num_cpus=0), layout, num_pages=4, num_threads=1)
    monkeypatch.setattr(actor, "host_key", lambda: "another host")
    link = connect(handle, group_size=3)
    assert isinstance(link, RayLink)
    known = ray.get(handle.__ray_call__.remote(compiled))
    far = Asker(link)
    far.open(1, 2)
    rows = np.ones((20, 2, 64), np.float32)
    far.write(1, 0, 0, rows, rows)
    far.commit(1, 0, 0, 20)
    queries, near = np.ones((1, 6, 64), np.float32), np.zeros(6, np.float32)
    request = KeyRequest(1, 0, queries, np.array([0, 1], np.int32), near, 2, 1.0, with_rows=True)
    (reply,) = link.call(SelectKeys([request]))
    assert reply.positions.shape == (2, 2)
    assert known
    assert ray.get(handle.__ray_call__.remote(compiled)) == known
    stop_kv_actor(handle)
