"""Blocks that several sessions hold, as the coordinator counts them: once. Pure.

A session holds its first blocks through a chain of `SharedBlocks`, and the others alone. Sessions that have the same
first blocks have the same first parts of their chains, so all chains of one origin make a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from moorage.runtime.serving.capacity import Resources

FirstBlocks = Callable[[int], Resources]
"""Resources of the first n blocks of a session, by the actor at which it starts."""


@dataclass(slots=True, eq=False)
class SharedBlocks:
    """Blocks [start, end) of sessions, where start is the end of `parent`."""

    end: int
    block_size: int
    first_blocks: FirstBlocks
    parent: SharedBlocks | None = None
    holders: int = 0
    """Sessions whose chain ends here, and parts of chains that follow this one."""

    @property
    def start(self) -> int:
        """The first of the blocks."""
        return 0 if self.parent is None else self.parent.end

    @property
    def resources(self) -> Resources:
        """Resources of these blocks alone."""
        return self.first_blocks(self.end).minus(self.first_blocks(self.start))

    def first(self, num_tokens: int) -> Resources:
        """Resources of the blocks of the chain that the first `num_tokens` fill."""
        return self.first_blocks(min(num_tokens // self.block_size, self.end))

    def chain(self) -> Iterator[SharedBlocks]:
        """This part, then those before it, up to the first."""
        part: SharedBlocks | None = self
        while part is not None:
            yield part
            part = part.parent

    def cut(self, num_tokens: int) -> SharedBlocks | None:
        """The part of this chain that ends with the blocks that the first `num_tokens` fill; None for no block.

        Where the chain is shorter, it is its last. A part that goes on beyond them is divided.
        """
        end = num_tokens // self.block_size
        if end <= 0:
            return None
        part = next(one for one in self.chain() if one.start < end)
        if part.end <= end:
            return part
        first = SharedBlocks(end, self.block_size, self.first_blocks, part.parent, holders=1)
        part.parent = first
        return first

    def hold(self) -> SharedBlocks:
        """One more session has a chain that ends here."""
        self.holders += 1
        return self

    def release(self) -> Resources:
        """One session fewer has this chain. Returns the resources of the blocks that nobody holds any longer."""
        freed = self.first_blocks(0)
        for part in self.chain():
            part.holders -= 1
            if part.holders:
                break
            freed = freed.plus(part.resources)
        return freed


class Holder(Protocol):
    """A session, as far as its blocks are concerned."""

    @property
    def resources(self) -> Resources:
        """Resources that it holds alone."""

    @property
    def shared(self) -> SharedBlocks | None:
        """Its chain."""


class Freed:
    """What is free when some holders have ended, of which one after another is added or taken back."""

    def __init__(self, free: Resources) -> None:
        """`free` is what is free while all of them go on."""
        self.free = free
        self._gone: dict[SharedBlocks, int] = {}
        """How many of the holders of each part have ended."""

    def add(self, holder: Holder) -> None:
        """Counts a holder as ended. A block is free once all its holders have ended."""
        self.free = self.free.plus(holder.resources)
        for part in () if holder.shared is None else holder.shared.chain():
            self._gone[part] = self._gone.get(part, 0) + 1
            if self._gone[part] < part.holders:
                break
            self.free = self.free.plus(part.resources)

    def remove(self, holder: Holder) -> None:
        """Counts a holder that was added as one that goes on."""
        self.free = self.free.minus(holder.resources)
        for part in () if holder.shared is None else holder.shared.chain():
            self._gone[part] -= 1
            if self._gone[part] < part.holders - 1:
                break
            self.free = self.free.minus(part.resources)


def freed_by(holders: Iterable[Holder], nothing: Resources) -> Resources:
    """What would be free again if all of these ended; `nothing` has no resources."""
    freed = Freed(nothing)
    for holder in holders:
        freed.add(holder)
    return freed.free


def held_by(holders: Iterable[Holder], nothing: Resources) -> Resources:
    """What these hold together, shared blocks counted once."""
    held, seen = nothing, set[SharedBlocks]()
    for holder in holders:
        held = held.plus(holder.resources)
        for part in () if holder.shared is None else holder.shared.chain():
            if part not in seen:
                held = held.plus(part.resources)
            seen.add(part)
    return held


def shared_with_others(shared: SharedBlocks | None) -> int:
    """The first blocks of a session that another one holds as well."""
    return 0 if shared is None else next((part.end for part in shared.chain() if part.holders > 1), 0)
