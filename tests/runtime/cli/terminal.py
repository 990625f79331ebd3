"""The `runtime` command on a terminal of its own, as a user at a keyboard has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from moorage.runtime.cli import main; main()"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


class Terminal:
    """What a process shows on 24 lines of 80 columns, and keys for it."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process, self._master = process, master
        self._seen = ""

    def keys(self, text: str) -> None:
        """Types or, within `pasted`, pastes."""
        data = text.encode()
        while data:
            data = data[os.write(self._master, data) :]

    def paste(self, text: str) -> None:
        """Pastes as a terminal with bracketed paste does."""
        self.keys(f"\x1b[200~{text}\x1b[201~")

    def wait_for(self, text: str, timeout_s: float = 30.0) -> str:
        """Reads until `text` was shown. Returns all up to there, without control sequences; the rest stays."""
        until_s = time.monotonic() + timeout_s
        while text not in self._seen:
            assert time.monotonic() < until_s, f"never shown: {text!r}; shown: {self._seen[-2000:]!r}"
            self._read(until_s)
        shown, _, self._seen = self._seen.partition(text)
        return shown + text

    def exit_code(self, timeout_s: float = 30.0) -> int:
        """Reads until the process has ended."""
        until_s = time.monotonic() + timeout_s
        while self._read(until_s):
            assert time.monotonic() < until_s, f"did not end; shown: {self._seen[-2000:]!r}"
        return self.process.wait(timeout_s)

    def _read(self, until_s: float) -> bool:
        """Takes what is there now, or soon. False at the end."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, min(0.2, until_s - time.monotonic())))
        if not ready:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO, the end of a terminal that nobody writes to
            return False
        self._seen += _CONTROL.sub("", data.decode(errors="replace"))
        return bool(data)


@contextmanager
def terminal(run_dir: Path, *arguments: str) -> Iterator[Terminal]:
    """Runs `runtime ARGUMENTS`; it is killed at the end if it still runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "MOORAGE_RUN_DIR": str(run_dir),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
