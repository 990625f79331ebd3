"""The pipe on which a starting server tells its launcher how far it is, and learns that the launcher is gone."""

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
    """Lines of JSON to the launcher, until the last word.

    A launcher that ends before the last word, however it is killed, takes the server with it: the server then gets
    SIGTERM, and stops as it does for any other.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(os.dup(descriptor),), daemon=True).start()

    def tell(self, word: dict[str, Any], *, last: bool = False) -> None:
        """Sends one line. Nothing is sent after the last word, or to a launcher that is gone."""
        if self._over.is_set():
            return
        if last:
            self._over.set()
        with suppress(BrokenPipeError):
            os.write(self._descriptor, (json.dumps(word) + "\n").encode())
        if last:
            os.close(self._descriptor)

    def _watch(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # The kernel tells of a reader that is gone unasked.
        while not self._over.is_set():
            if poll.poll(_LOOK_MS) and not self._over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                break
        os.close(descriptor)
