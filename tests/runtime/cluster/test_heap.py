"""Memory that a flood of messages took goes back to the system."""

import subprocess
import sys

CODE = """
import asyncio, os
import psutil
from moorage.runtime.cluster.heap import HeapTrimmer

MIB = 1 << 20
resident = lambda: psutil.Process().memory_info().rss
trimmer = HeapTrimmer()
before = resident()
blocks = [bytearray(64 << 10) for _ in range(4096)]
for block in blocks:
    block[::4096] = b"x" * 16
kept, blocks = blocks[-1], blocks[:-1]
held = resident()
del blocks, block
freed = resident()
asyncio.run(trimmer.look())
after = resident()
assert held - before > 200 * MIB, (before, held)
assert freed - before > 200 * MIB, "the C library gave it back by itself"
assert after - before < 32 * MIB, (before, after)
"""


def test_freed_memory_is_given_back() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
