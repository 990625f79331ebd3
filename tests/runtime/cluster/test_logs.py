"""A log line that nobody reads any longer stops nothing."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, sys
from moorage.runtime.cluster.logs import configure_logs
import structlog
configure_logs()
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(writer)
os.close(reader)
structlog.get_logger().info("stopping")
print("went on")
"""


def test_a_line_that_nobody_reads_is_left_out() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n"
