"""After warm-up nothing is compiled, or loaded from the disk cache, while requests are served."""

from __future__ import annotations

import gc
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from moorage.kernels.numba_flags import always_parallel
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.actor import KvActor
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.spec import (
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvLayout,
    KvType,
    Positions,
    Segment,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint

CHOOSING = {"execution_block": 16, "sinks": 16, "recall_every": 3}
SERVED = [
    memory(),
    memory(**CHOOSING, topk=1),  # few enough to be selected by codes
    memory(**CHOOSING, topk=4, scheme=Positions.CLAMPED),
    memory(**CHOOSING, topk=4, head_select_mode=HeadSelectMode.SEPARATE, head_pool=HeadPool.MAX),
    memory(**CHOOSING, topk=4, head_pool=HeadPool.SOFTMAX),
]
PROMPT = range(2, 160)
LONGEST_S = 600.0


def signatures() -> set[str]:
    """Of every kernel, those that this process has compiled or loaded."""
    gc.unfreeze()  # an actor that is ready has frozen its heap, whose objects are not found otherwise
    kernels = [found for found in gc.get_objects() if isinstance(found, Dispatcher)]
    names = [f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}" for kernel in kernels]
    return {
        f"{name} {types}" for name, kernel in zip(names, kernels, strict=True) for types in kernel.signatures
    }


def keep(worker: Connection, layout: KvLayout) -> None:
    """A KV actor's process; at its end it says what became known while it served."""
    actor = KvActor(layout, num_pages=128, num_threads=2)
    known = signatures()
    worker.send(actor.contact().address)
    assert worker.recv() == "parallel"
    with always_parallel():
        worker.send("ready")
        assert worker.recv() == "end"
    assert known
    worker.send(signatures() - known)


def serve_all(driver: Driver) -> None:
    """Each way to remember alone, then two sessions side by side."""
    for axes in SERVED:
        driver.generate([*PROMPT, *PROMPT], axes, (64,), num_tokens=6)
    for session_id in (1, 2):
        opening = driver.open(session_id, PROMPT, SERVED[2])
        driver.step(opens=(opening,), segments=(Segment(session_id, 0, tuple(PROMPT), True),))
    for place in range(len(PROMPT), len(PROMPT) + 4):
        driver.step(segments=tuple(Segment(session_id, place, (5,), True) for session_id in (1, 2)))
    driver.step(drops=(1, 2))


def serve(directory: Path, num_shards: int, kv_type: KvType, anchor_type: AnchorType) -> set[str]:
    """What became known to a worker and its KV actors only while requests were served."""
    spec = read_model_spec(directory)
    layout = KvLayout(spec.num_layers, spec.num_kv_heads, spec.head_dim, 16, kv_type, anchor_type)
    spawn, actors = get_context("spawn"), []
    for _ in range(num_shards):
        here, there = spawn.Pipe()
        spawn.Process(target=keep, args=(there, layout), daemon=True).start()
        there.close()
        actors.append(here)
    links = [MailboxLink(actor.recv()) for actor in actors]
    driver = Driver(
        directory,
        spec,
        kv_type=kv_type,
        anchor_type=anchor_type,
        num_shards=num_shards,
        link=lambda _: links.pop(),
    )
    known = signatures()
    assert known
    serve_all(driver)
    for actor in actors:
        actor.send("parallel")
        assert actor.recv() == "ready"
    with always_parallel():
        serve_all(driver)
    found = signatures() - known
    for actor in actors:
        actor.send("end")
        found |= actor.recv()
    return found


@pytest.mark.parametrize(
    ("num_shards", "kv_type", "anchor_type"),
    [
        pytest.param(1, KvType.FP16, AnchorType.QUEST, marks=pytest.mark.slow),
        (2, KvType.FP16, AnchorType.KEY_CODES),
        pytest.param(2, KvType.FP32, AnchorType.BLOCK_MEAN, marks=pytest.mark.slow),
        pytest.param(3, KvType.FP16, AnchorType.DYNAMIC, marks=pytest.mark.slow),
    ],
)
def test_serving_uses_only_kernels_that_warm_up_has_used(
    num_shards: int, kv_type: KvType, anchor_type: AnchorType, tmp_path: Path
) -> None:
    """In processes of their own, whose kernels nothing else has called."""
    build_tiny_checkpoint("llama3", tmp_path)
    arguments = str(tmp_path), str(num_shards), kv_type, anchor_type
    command = [sys.executable, "-m", "tests.workers.gpu.engine.test_warm_up", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


if __name__ == "__main__":
    where, shards, stored, anchors = sys.argv[1:]
    print(*sorted(serve(Path(where), int(shards), KvType(stored), AnchorType(anchors))), sep="\n", end="")
