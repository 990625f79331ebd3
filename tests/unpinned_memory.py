"""A device's runtime that counts what it is asked to pin, and pins nothing."""

from __future__ import annotations


class CountingMemory:
    """Keeps what is registered; refuses what goes over `limit` bytes in all."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.held: dict[int, int] = {}
        self.released: list[int] = []
        self.errors = 0

    def register(self, address: int, num_bytes: int) -> int:
        if sum(self.held.values()) + num_bytes > self.limit:
            self.errors += 1
            return 2
        self.held[address] = num_bytes
        return 0

    def unregister(self, address: int) -> int:
        del self.held[address]
        self.released.append(address)
        return 0

    def clear_error(self) -> None:
        self.errors -= 1
