"""The priority that a launcher asks for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_TAKE = """
import os, threading
from moorage.workers.process import own_facts, take_asked_priority
os.nice(7 - os.getpriority(os.PRIO_PROCESS, 0))
over = threading.Event()
thread = threading.Thread(target=over.wait)
thread.start()
take_asked_priority()
print(own_facts().niceness, os.getpriority(os.PRIO_PROCESS, thread.native_id))
over.set()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only a privileged process can take a better priority")
@pytest.mark.skipif(
    os.getpriority(os.PRIO_PROCESS, 0) > 5, reason="this process runs at a worse priority itself"
)
@pytest.mark.parametrize(("asked", "got"), [("5", "5 5"), ("9", "7 7"), (None, "7 7")])
def test_every_thread_takes_the_niceness_of_the_launcher_and_never_a_worse_one(
    asked: str | None, got: str
) -> None:
    environment = os.environ | ({} if asked is None else {"MOORAGE_NICENESS": asked})
    done = subprocess.run([sys.executable, "-c", _TAKE], env=environment, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().strip() == got
