"""`bench gather`: selected blocks copied out of an arena, against memcpy of as many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from moorage.kernels.block_gather import gather_blocks
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, use_threads

ARENA_BYTES = 2**30
"""Much more than any cache, so that selected blocks come from memory."""
CHOICES = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Blocks of one model: KV heads, tokens, head size."""

    name: str
    heads: int
    block_size: int
    dim: int
    chosen: int
    """Blocks of one step and layer."""

    @property
    def block(self) -> tuple[int, int, int, int]:
        """K and V of one block."""
        return 2, self.heads, self.block_size, self.dim


SHAPES = (Shape("gather", 8, 128, 128, 96), Shape("gather-pilot", 2, 32, 64, 24))


def run_gather(threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Blocks of InternLM2.5-7B (512 KiB) and of the embedded model (16 KiB), at random places."""
    for shape in SHAPES:
        for count in threads:
            use_threads(count)
            yield from _measure(shape, count, rounds)


def _measure(shape: Shape, threads: int, rounds: int) -> Iterator[Row]:
    block_bytes = 2 * int(np.prod(shape.block))
    num_pages, num_moved = ARENA_BYTES // block_bytes, shape.chosen
    arena = np.ones((num_pages, *shape.block), np.uint16)
    out, copied = (np.zeros((num_moved, *shape.block), np.uint16) for _ in range(2))
    rng = np.random.default_rng(0)
    choices = cycle(
        [np.sort(rng.permutation(num_pages)[:num_moved]).astype(np.int32) for _ in range(CHOICES)]
    )
    starts = cycle(rng.integers(0, num_pages - num_moved, CHOICES))
    slots = np.arange(num_moved, dtype=np.int32)
    pieces = Pieces(threads)

    def memcpy() -> None:
        start = next(starts)
        pieces.run(np.copyto, copied, arena[start : start + num_moved])

    taken = interleave(
        {"gather": lambda: gather_blocks(arena, next(choices), out, slots), "memcpy": memcpy}, rounds
    )
    moved, own, limit = num_moved * block_bytes, taken["gather"], taken["memcpy"]
    yield Row(shape.name, own, None, threads, moved, limit / own, {"memcpy": limit / own})
    yield Row(f"{shape.name}-memcpy", limit, None, threads, moved)
    yield Row(f"{shape.name}-block", own / num_moved, None, threads, block_bytes)
