"""Who holds which pages. Several sessions may hold one page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import StoreFull
from moorage.workers.kv.messages import Int32


class PageAllocator:
    """Hands out pages lowest first, so that a session's pages are mostly consecutive.

    A page is free again when every session that held it has freed it.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._holders = np.zeros(num_pages, np.int32)
        self.num_free = num_pages

    def allocate(self, count: int, session_id: int) -> Int32:
        """`count` pages, ascending. If StoreFull is raised, nothing has changed."""
        if count > self.num_free:
            raise StoreFull(
                f"KV store: session {session_id} needs {count} more blocks, {self.num_free} of "
                f"{self.num_pages} are free; ask for fewer tokens, wait, or raise kv_store.dram"
            )
        pages = np.flatnonzero(self._holders == 0)[:count].astype(np.int32)
        self._holders[pages] = 1
        self.num_free -= count
        return pages

    def share(self, pages: Int32) -> None:
        """One more session holds these pages, each of which another one holds already."""
        self._holders[pages] += 1

    def is_shared(self, page: int) -> bool:
        """Whether several sessions hold a page."""
        return bool(self._holders[page] > 1)

    def free(self, pages: Int32) -> None:
        """One session that held these pages holds them no longer."""
        self._holders[pages] -= 1
        self.num_free += int(np.count_nonzero(self._holders[pages] == 0))

    @property
    def holders(self) -> NDArray[np.int32]:
        """[num_pages]: how many sessions hold each page."""
        return self._holders
