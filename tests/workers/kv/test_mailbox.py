"""What only the mailbox does: descriptors, one-way messages, and ends that die."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moorage.workers.errors import (
    InvalidRequest,
    MoorageError,
    NotFound,
    PeerDead,
    ResourceExhausted,
    StoreFull,
)
from moorage.workers.kv.codec import codec_of
from moorage.workers.kv.mailbox_channel import Patience
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.operations import Select
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.window import Window
from moorage.workers.kv.wire import REPLY, Hello, pack_error, unpack_error
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, KvLayout, KvType, Scorer
from tests.workers.kv.asker import Asker

LAYOUT = KvLayout(1, 1, 16, 4)
NUM_PAGES = 16
ROWS = np.ones((8, 1, 16), np.float32)
Serve = Callable[[KvLayout, int], tuple[str, "subprocess.Popen[str]"]]


@pytest.fixture
def server() -> Iterator[MailboxServer]:
    store = KvStore(LAYOUT, NUM_PAGES)
    server = MailboxServer(store)
    yield server
    server.close()
    server.close()
    store.check_integrity()
    store.close()


def make_request(rows: int = 1, session_id: int = 1) -> SelectRequest:
    queries = np.ones((rows, 2, 16), np.float32)
    return SelectRequest(session_id, 0, queries, 0, np.full(rows, 2, np.int32), 2, True, 1.0)


def test_hello_comes_back() -> None:
    hello = Hello(
        KvLayout(3, 2, 128, 64, KvType.FP32, AnchorType.BLOCK_MEAN, 4, AnchorSpace.ROTATED, 8, Scorer.FAISS),
        10**7,
        os.getpid(),
    )
    assert Hello.unpack(hello.pack()) == hello


class Waiting:
    """Gives arrays in turn."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._left = iter(arrays)

    def __call__(self, _code: str, _shape: tuple[int, ...]) -> np.ndarray:
        return next(self._left)


def test_selections_come_back() -> None:
    plain, codec = make_request(rows=2), codec_of(Select)
    for pooling, anchor_pool, flag in itertools.product(HeadPool, AnchorPool, (True, False)):
        request = plain._replace(
            pooling=pooling,
            anchor_pool=anchor_pool,
            shared=flag,
            perhead=not flag,
            use_preselected=flag,
        )
        arrays: list[np.ndarray] = []
        body = codec.encode(Select(request), arrays)
        assert codec.decode(body, Waiting(arrays)).request == request


@pytest.mark.parametrize("cls", [InvalidRequest, NotFound, ResourceExhausted, StoreFull])
def test_errors_cross_the_wire(cls: type[Exception]) -> None:
    packet = pack_error(cls("what, where, what to do – ü"))
    error = unpack_error(REPLY.unpack_from(packet)[0], packet[REPLY.size :])
    assert type(error) is cls
    assert str(error) == "what, where, what to do – ü"


def test_the_error_of_a_commit_comes_with_the_next_reply_for_its_session(server: MailboxServer) -> None:
    link, other = Asker(MailboxLink(server.address)), Asker(MailboxLink(server.address))
    link.open(1, 2)
    link.open(2, 2)
    link.commit(1, 0, 5, 6)
    link.commit(1, 0, 0, 0)
    link.commit(3, 0, 0, 0)
    assert other.attach(1) == link.attach(2) == 0
    with pytest.raises(InvalidRequest, match="hole"):
        link.attach(1)
    assert link.attach(1) == 0
    link.commit(1, 0, 5, 6)
    link.drop(1)
    link.drop(3)
    assert link.stats().num_sessions == 1
    link.close()
    other.close()


@pytest.mark.parametrize(
    "error", [OSError(12, "Cannot allocate memory"), MemoryError(), ZeroDivisionError("odd")]
)
def test_what_a_commit_raises_ends_neither_the_connection_nor_the_thread(
    server: MailboxServer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealing blocks allocates; the error comes with the next reply for its session, and others are served."""
    link = Asker(MailboxLink(server.address))
    link.open(1, 1)
    link.open(2, 1)
    commit = KvStore.commit

    def failing(store: KvStore, session_id: int, *rest: int) -> None:
        if session_id == 1:
            raise error
        commit(store, session_id, *rest)

    monkeypatch.setattr(KvStore, "commit", failing)
    link.commit(1, 0, 0, 0)
    link.commit(2, 0, 0, 0)
    with pytest.raises(MoorageError, match=type(error).__name__):
        link.truncate(1, 0)
    link.truncate(2, 0)
    link.drop(1)
    link.drop(2)
    link.close()


def test_a_commit_counts_for_the_select_after_it(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address))
    link.open(1, 2)
    for start in range(8):
        link.write(1, 0, start, ROWS[:1], ROWS[:1])
        link.commit(1, 0, start, start + 1)
        selected = link.submit_select(make_request())().ids
        assert np.count_nonzero(selected >= 0) == (start + 1) // 4
    link.close()


def test_a_submission_that_nobody_collects_is_passed_over(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address))
    link.open(1, 2)
    link.write(1, 0, 0, ROWS, ROWS)
    link.commit(1, 0, 0, 8)
    link.submit_select(make_request())
    assert link.stats().num_sealed == 2
    link.submit_select(make_request(rows=3))
    assert link.submit_select(make_request(rows=2))().ids.tolist() == [[[0, 1]], [[0, 1]]]
    link.close()


def test_arrays_of_many_megabytes(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address))
    link.open(1, 2)
    link.write(1, 0, 0, ROWS, ROWS)
    link.commit(1, 0, 0, 8)
    reply = link.submit_select(make_request(rows=40_000))()
    assert (reply.ids == [0, 1]).all()
    link.close()


def test_workers_see_each_other_s_sessions_and_survive_each_other(server: MailboxServer) -> None:
    first, second = Asker(MailboxLink(server.address)), Asker(MailboxLink(server.address))
    first.open(1, 2)
    first.write(1, 0, 0, ROWS, ROWS)
    first.commit(1, 0, 0, 6)
    with pytest.raises(NotFound, match="not open on this link"):
        second.write(1, 0, 6, ROWS, ROWS)
    assert first.stats().num_sessions == 1
    first.close()
    first.close()
    assert second.attach(1) == 6
    second.write(1, 0, 6, ROWS[:2], ROWS[:2])
    second.commit(1, 0, 6, 8)
    assert second.stats().num_sealed == 2
    second.drop(1)
    second.close()


def test_a_killed_worker_leaves_its_session_and_the_others(server: MailboxServer) -> None:
    code = """
import os, signal, sys
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.operations import Open
link = MailboxLink(sys.argv[1])
link.call(Open(5, 3))
os.kill(os.getpid(), signal.SIGKILL)
"""
    link = Asker(MailboxLink(server.address))
    done = subprocess.run([sys.executable, "-c", code, server.address], check=False)
    assert done.returncode == -signal.SIGKILL
    assert link.attach(5) == 0
    assert link.stats().num_sessions == 1
    link.close()


def test_garbage_ends_that_connection_only(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address))
    for packet in (b"x", b"x" * 100):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect("\0" + server.address)
        _, fds, _, _ = socket.recv_fds(sock, 4096, 1)
        window = Window.create()
        if len(packet) > 1:
            socket.send_fds(sock, [b"w"], [window.fd])
        sock.send(packet)
        assert sock.recv(1) == b""
        sock.close()
        os.close(fds[0])
        window.close()
    assert link.stats().num_sessions == 0
    link.close()


def test_a_worker_that_leaves_before_the_greeting_is_passed_over(server: MailboxServer) -> None:
    for _ in range(50):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect("\0" + server.address)
        sock.close()
    link = Asker(MailboxLink(server.address))
    assert link.stats().num_sessions == 0
    link.close()


def test_a_window_that_could_shrink_is_refused() -> None:
    for fd in (os.memfd_create("plain"), os.eventfd(0)):
        with pytest.raises(InvalidRequest, match="sealed"):
            Window(fd)
        os.close(fd)


def test_arrays_outside_the_window_are_refused() -> None:
    window = Window.create()
    with pytest.raises(InvalidRequest, match="outside"):
        window.view("f", window.num_bytes - 64, (17,))
    with pytest.raises(InvalidRequest, match="outside"):
        window.view("i", 0, (-1,))
    with pytest.raises(InvalidRequest, match="grow it"):
        window.follow(window.num_bytes + 1)
    window.close()


def test_a_closed_server_is_a_dead_peer(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address))
    link.open(1, 2)
    server.close()
    for _ in range(2):
        with pytest.raises(PeerDead, match="start the cluster again"):
            link.stats()
    with pytest.raises(PeerDead):
        link.commit(1, 0, 0, 0)
    link.close()
    with pytest.raises(PeerDead, match="start the cluster again"):
        Asker(MailboxLink(server.address))


def test_a_server_killed_during_a_select_is_noticed_within_a_second(serve_process: Serve) -> None:
    layout = KvLayout(1, 8, 128, 16)
    address, process = serve_process(layout, 512)
    link = Asker(MailboxLink(address))
    link.open(1, 512)
    rows = np.ones((512 * 16, 8, 128), np.float16)
    link.write(1, 0, 0, rows, rows)
    link.commit(1, 0, 0, len(rows))
    queries = np.ones((512, 32, 128), np.float32)
    request = SelectRequest(1, 0, queries, 0, np.full(512, 512, np.int32), 16, True, 1.0)
    link.stats()
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        process.kill()

    def select_for_ever() -> None:  # However quick the machine is, a select is pending when the kill comes.
        while True:
            link.submit_select(request)()

    timer = threading.Timer(0.05, kill)
    timer.start()
    with pytest.raises(PeerDead, match=f"pid {process.pid}"):
        select_for_ever()
    noticed = time.monotonic()
    timer.join()
    assert noticed - killed[0] < 1
    link.close()


def stop(process: subprocess.Popen[str]) -> None:
    """Stops a process and waits until the kernel has done so."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_stopped_server_is_waited_for_and_answers_when_it_goes_on(serve_process: Serve) -> None:
    address, process = serve_process(LAYOUT, NUM_PAGES)
    link = Asker(MailboxLink(address, patience=Patience(silent_s=0.2, stopped_s=600)))
    link.open(1, 2)
    stop(process)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(link.stats)
        with pytest.raises(TimeoutError):
            answer.result(1.0)  # Five times the patience with one that runs.
        process.send_signal(signal.SIGCONT)
        assert answer.result().num_sessions == 1
    link.close()


def test_a_server_that_is_stopped_for_too_long_is_a_dead_peer(serve_process: Serve) -> None:
    address, process = serve_process(LAYOUT, NUM_PAGES)
    link = Asker(MailboxLink(address, patience=Patience(stopped_s=0.2), name="kv-7"))
    stop(process)
    for _ in range(2):
        with pytest.raises(
            PeerDead, match=rf"KV actor kv-7 \(pid {process.pid}\) has been stopped.* for 0.2 s"
        ):
            link.stats()
    process.send_signal(signal.SIGCONT)
    link.close()


def test_a_stopped_server_that_is_sent_too_much_is_a_dead_peer_in_the_end(serve_process: Serve) -> None:
    address, process = serve_process(LAYOUT, NUM_PAGES)
    link = Asker(MailboxLink(address, patience=Patience(stopped_s=0.2)))
    stop(process)

    def commit_for_ever() -> None:
        while True:
            link.commit(1, 0, 0, 0)

    with pytest.raises(PeerDead, match="has been stopped"):
        commit_for_ever()
    process.send_signal(signal.SIGCONT)
    link.close()


def test_a_server_that_runs_and_never_answers_is_a_dead_peer(server: MailboxServer) -> None:
    link = Asker(MailboxLink(server.address, patience=Patience(silent_s=0.2)))
    with server._lock, pytest.raises(PeerDead, match=r"has not answered for 0\.2 s"):
        link.stats()
    link.close()


def test_sessions_and_links_leave_nothing_behind(server: MailboxServer) -> None:
    def count_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count_descriptors()
    link = Asker(MailboxLink(server.address))
    free_pages, held = link.stats().free_pages, count_descriptors()
    for session_id in range(200):
        link.open(session_id, 1 + session_id % NUM_PAGES)
        link.write(session_id, 0, 0, ROWS[:3], ROWS[:3])
        link.commit(session_id, 0, 0, 3)
        link.drop(session_id)
    assert link.stats().free_pages == free_pages
    assert count_descriptors() == held
    link.close()
    for _ in range(20):
        passing = Asker(MailboxLink(server.address))
        passing.stats()
        passing.close()
    # The server's thread closes its ends when it sees the links go.
    deadline = time.monotonic() + 5
    while count_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count_descriptors() == before
