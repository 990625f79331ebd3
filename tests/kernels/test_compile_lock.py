from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from moorage.kernels.compile_lock import one_at_a_time

PROGRAM = """
import sys
from moorage.kernels.compile_lock import one_at_a_time
print("here", flush=True)
with one_at_a_time(sys.argv[1]):
    print(open(sys.argv[1]).read(), flush=True)
"""


def second(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    """It sees what the first one left."""
    file = tmp_path / "kernels.py"
    file.write_text("before")
    with one_at_a_time(file):
        other = second(file)
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        file.write_text("after")
    assert other.communicate(timeout=60)[0] == "after\n"


def test_a_process_that_dies_lets_the_next_one_in(tmp_path: Path) -> None:
    file = tmp_path / "kernels.py"
    file.write_text("x")
    program = "import sys, time\nfrom moorage.kernels.compile_lock import one_at_a_time\n"
    program += "with one_at_a_time(sys.argv[1]):\n    print('in', flush=True)\n    time.sleep(600)"
    first = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    first.kill()
    assert second(file).communicate(timeout=60)[0] == "here\nx\n"
    first.communicate()
