"""The interpreter takes what the compiler refuses, so every kernel is compiled for a Hopper GPU as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The bytes of shared memory that one program may ask for, and the compute capability.
HOPPER = (227 * 1024, 90)
ADA = (99 * 1024, 89)
EVERY_FORMAT = "every-format"
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("shared_bytes", "capability", "options"),
    [(*HOPPER, ()), pytest.param(*ADA, (EVERY_FORMAT,), marks=pytest.mark.slow)],
    ids=["hopper", "ada"],
)
def test_every_kernel_compiles_for_a_gpu_and_fits_its_shared_memory(
    tmp_path, shared_bytes, capability, options
):
    """For one GPU in all packed formats and for large heads, for the other in the two that differ most."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.launches", str(capability), str(shared_bytes), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "_attend",
        "_attend_packed",
        "_expand",
        "_gather",
        "_inputs",
        "_merge",
        "_norm",
        "_norm_heads",
        "_product",
        "_score",
    ]
