from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
import numba

@numba.njit(cache=True)
def double(x):
    return 2 * x
"""
COMPILE = "import sys; sys.path.insert(0, sys.argv[1]); import kernel; print(kernel.double(21))"
COUNT = """
import sys
from pathlib import Path
from moorage.kernels.compiled import compiled_files, remove_compiled
package = Path(sys.argv[1])
print(len(compiled_files(package)))
remove_compiled(package)
print(len(compiled_files(package)))
"""


@pytest.mark.parametrize("place", ["beside", "numba-cache-dir"])
def test_what_numba_keeps_is_found_and_removed(tmp_path: Path, place: str) -> None:
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    package.mkdir()
    (package / "kernel.py").write_text(SOURCE)
    environment = dict(os.environ)
    if place == "numba-cache-dir":
        environment["NUMBA_CACHE_DIR"] = str(elsewhere)

    def run(code: str) -> list[str]:
        command = [sys.executable, "-c", code, str(package)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert run(COMPILE) == ["42"]
    kept = [file for file in tmp_path.rglob("*.nb[ci]") if file.is_file()]
    assert len(kept) == 2
    assert run(COUNT) == ["2", "0"]
    assert not list(tmp_path.rglob("*.nb[ci]"))
    assert (package / "kernel.py").exists()
    assert run(COMPILE) == ["42"]
