"""What a starting server tells its launcher, and what it does when the launcher ends first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from moorage.runtime.cluster.launcher_pipe import LauncherPipe

_SERVER = """
import sys, time
from moorage.runtime.cluster.launcher_pipe import LauncherPipe
pipe = LauncherPipe(int(sys.argv[1]))
pipe.send({"stage": "first"}, last="last" in sys.argv)
time.sleep(600 if "last" not in sys.argv else 1.5)
"""


def start(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """A server that has told its first line, and the launcher's end of the pipe."""
    reader, writer = os.pipe()
    command = [sys.executable, "-c", _SERVER, str(writer), *arguments]
    process = subprocess.Popen(command, pass_fds=(writer,))
    os.close(writer)
    assert json.loads(os.read(reader, 100)) == {"stage": "first"}
    return process, reader


def test_a_launcher_that_ends_before_the_last_word_takes_the_server_with_it() -> None:
    process, reader = start()
    os.close(reader)
    assert process.wait(20) == -signal.SIGTERM


def test_after_the_last_word_the_launcher_may_end() -> None:
    process, reader = start("last")
    os.close(reader)
    assert process.wait(20) == 0


def test_nothing_follows_the_last_word_and_a_word_to_nobody_is_no_error() -> None:
    reader, writer = os.pipe()
    pipe = LauncherPipe(writer)
    pipe.send({"loading": [1, 2]})
    pipe.send({"error": "it failed"}, last=True)
    pipe.send({"ready": {}}, last=True)
    with os.fdopen(reader, encoding="utf-8") as words:
        assert [json.loads(line) for line in words] == [{"loading": [1, 2]}, {"error": "it failed"}]
