"""The pipe through which a starting server reports its progress to its launcher, and notices the launcher's end."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from contextlib import suppress
from typing import Any

_LOOK_MS = 500


class LauncherPipe:
    """Sends lines of JSON to the launcher.

    When the launcher ends before the last message, however it is killed, the server ends too: it gets SIGTERM.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(os.dup(descriptor),), daemon=True).start()

    def send(self, message: dict[str, Any], *, last: bool = False) -> None:
        """Sends one line; does nothing after the last message, or when the launcher has ended."""
        if self._over.is_set():
            return
        if last:
            self._over.set()
        with suppress(BrokenPipeError):
            os.write(self._descriptor, (json.dumps(message) + "\n").encode())
        if last:
            os.close(self._descriptor)

    def _watch(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # POLLERR, which says that the reader has ended, is always reported.
        while not self._over.is_set():
            if poll.poll(_LOOK_MS) and not self._over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                break
        os.close(descriptor)
