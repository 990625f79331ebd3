"""A sequence of token ids that never changes, in four bytes a token: a tuple of integers takes 36."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class TokenIds(Sequence[int]):
    """Behaves as a tuple of integers; a slice shares the memory of the whole.

    It equals any sequence of the same integers. Bytes are read as unsigned integers of four bytes, without a copy.
    """

    __slots__ = ("_ids",)

    def __init__(self, ids: Sequence[int] | npt.NDArray[np.uint32] | bytes = ()) -> None:
        """Raises OverflowError for an integer that is negative or needs more than four bytes."""
        if isinstance(ids, TokenIds):
            self._ids: npt.NDArray[np.uint32] = ids._ids
        elif isinstance(ids, bytes):
            self._ids = np.frombuffer(ids, np.uint32)
        else:
            self._ids = np.array(ids, np.uint32)
            self._ids.flags.writeable = False

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> TokenIds: ...

    def __getitem__(self, place: int | slice) -> int | TokenIds:
        if not isinstance(place, slice):
            return int(self._ids[place])
        part = TokenIds()
        part._ids = self._ids[place]
        return part

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return bool(np.array_equal(self._ids, other._ids))
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(other) == len(self) and self._ids.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TokenIds({self._ids.tolist()})" if len(self) <= 16 else f"TokenIds of {len(self)} tokens"

    def blocks(self, size: int, first: int = 0) -> Iterator[bytes]:
        """Four bytes a token, lowest first, of each full block of `size` tokens from block `first` on."""
        ids = self._ids.astype("<u4", copy=False)
        return (ids[at : at + size].tobytes() for at in range(first * size, len(ids) - size + 1, size))

    def plus(self, others: Sequence[int]) -> TokenIds:
        """These ids, then `others`."""
        return TokenIds(np.concatenate((self._ids, TokenIds(others)._ids)))

    def shared(self, others: Sequence[int], most: int) -> int:
        """How many ids at the beginning, at most `most`, are those of `others`."""
        limit = max(0, min(len(self), len(others), most))
        differ = self._ids[:limit] != TokenIds(others)._ids[:limit]
        return int(differ.argmax()) if differ.any() else limit
