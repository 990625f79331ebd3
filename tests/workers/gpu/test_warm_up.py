"""After warm-up nothing is compiled, or loaded from the disk cache, while a request is served."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.warm_up import warm_up
from moorage.workers.spec import AnchorType, HeadSelectMode, KvType, Positions, Preselect
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint

CHOOSING = {"topk": 4, "exc_block_size": 16, "n_init": 16, "recall_every": 3}
SERVED = [
    memory(),
    memory(**CHOOSING),
    memory(**CHOOSING, positions=Positions.CLAMPED),
    memory(**CHOOSING, preselect_block=Preselect.STEP, preselect_block_count=8),
    memory(**CHOOSING, head_select_mode=HeadSelectMode.SEPARATE),
]


def signatures() -> set[str]:
    """Of every kernel, those that this process has compiled or loaded."""
    kernels = [found for found in gc.get_objects() if isinstance(found, Dispatcher)]
    return {f"{kernel.py_func.__qualname__} {types}" for kernel in kernels for types in kernel.signatures}


def serve(directory: Path, num_shards: int, kv_type: KvType, anchor_type: AnchorType) -> set[str]:
    """What became known only while requests were served."""
    driver = Driver(
        directory,
        read_model_spec(directory),
        kv_type=kv_type,
        anchor_type=anchor_type,
        num_shards=num_shards,
    )
    warm_up(driver.stores[0].layout)
    known = signatures()
    for axes in SERVED:
        driver.generate(range(2, 160), axes, (64,), num_tokens=6)
    return signatures() - known


@pytest.mark.parametrize(
    ("num_shards", "kv_type", "anchor_type"),
    [
        (1, KvType.FP16, AnchorType.QUEST),
        (2, KvType.FP16, AnchorType.QUEST_HADAMARD),
        (2, KvType.FP32, AnchorType.BLOCK_MEAN),
        (3, KvType.FP16, AnchorType.DYNAMIC),
    ],
)
def test_serving_uses_only_kernels_that_warm_up_has_used(
    num_shards: int, kv_type: KvType, anchor_type: AnchorType, tmp_path: Path
) -> None:
    """In a process of its own, whose kernels nothing else has called."""
    build_tiny_checkpoint("llama3", tmp_path)
    arguments = str(tmp_path), str(num_shards), kv_type, anchor_type
    command = [sys.executable, "-m", "tests.workers.gpu.test_warm_up", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


if __name__ == "__main__":
    where, shards, stored, anchors = sys.argv[1:]
    print(*sorted(serve(Path(where), int(shards), KvType(stored), AnchorType(anchors))), sep="\n", end="")
