"""The priority that a launcher asks for, and the heap that the garbage collector leaves alone."""

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


_FREEZE = """
import gc
from moorage.workers.process import freeze_heap
class Ring:
    pass
old = Ring()
old.own = old
there = len(gc.get_objects())
freeze_heap()
young = Ring()
young.own = young
del old, young
print(gc.get_freeze_count() > there // 2, gc.collect())
"""


def test_what_there_is_at_the_start_is_never_looked_at_again_and_what_comes_is() -> None:
    done = subprocess.run([sys.executable, "-c", _FREEZE], stdout=subprocess.PIPE, check=True)
    frozen, collected = done.stdout.decode().split()
    assert frozen == "True"
    assert 1 <= int(collected) < 10, "the ring that was made afterwards"
