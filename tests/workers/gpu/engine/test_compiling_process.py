"""A second process that compiles kernels beside a worker, and is gone when the worker needs it no more."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter

from moorage.workers.gpu.engine import compiling_process as module
from moorage.workers.gpu.engine.compiling_process import compiling_process
from moorage.workers.gpu.engine.kernel_uses import KernelNeeds
from moorage.workers.spec import AnchorType, KvLayout, KvType

LAYOUT = KvLayout(2, 2, 32, 16, KvType.FP16, AnchorType.KEY_CODES)
NEEDS = KernelNeeds(LAYOUT, 2, 32, "float32", num_shards=1, on_cpu=True, in_place=True, attends_blocks=False)
LONGEST_S = 300.0


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if module.__name__ in each.cmdline()]


def test_it_compiles_into_the_cache_and_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "LOADING_S", 0.0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    begun_s = time.monotonic()
    with compiling_process(NEEDS):
        while not list(tmp_path.rglob("*.nbi")):
            assert time.monotonic() < begun_s + LONGEST_S
            time.sleep(0.05)
        assert len(children()) == 1
    assert children() == []


def test_kernels_that_load_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOADING_S", LONGEST_S)
    with compiling_process(NEEDS):
        assert children() == []


def test_it_ends_with_the_process_that_started_it() -> None:
    needs = TypeAdapter(KernelNeeds).dump_json(NEEDS).decode()
    command = [sys.executable, "-m", module.__name__, needs]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LONGEST_S, check=False)
    assert ended.returncode == 0
