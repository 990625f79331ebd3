"""`bench seal`: anchors and codes of new blocks, against reading their keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from moorage.kernels.block_anchors import build_anchors
from moorage.kernels.key_codes import code_bytes, encode_keys
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read, use_threads

ARENA_BYTES = 2**28
"""Much more than any cache, so that blocks come from memory."""
NUM_BLOCKS = 128
"""Sealed at once, as after a chunk of 8 192 tokens."""
BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Blocks of one model."""

    name: str
    heads: int
    dim: int


SHAPES = (Shape("seal", 8, 128), Shape("seal-small", 3, 64))


def run_seal(threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Blocks of 64 tokens of InternLM2.5-7B and of SmolLM2-135M, with rotated keys; beside QUEST's bounds."""
    for shape in SHAPES:
        for count in threads:
            use_threads(count)
            yield from _measure(shape, count, rounds)


def _measure(shape: Shape, threads: int, rounds: int) -> Iterator[Row]:
    block = 2, shape.heads, BLOCK_SIZE, shape.dim
    block_bytes = 2 * int(np.prod(block))
    num_pages = max(NUM_BLOCKS, ARENA_BYTES // block_bytes // NUM_BLOCKS * NUM_BLOCKS)
    rng = np.random.default_rng(0)
    few = rng.standard_normal((NUM_BLOCKS, *block)).astype(np.float16).view(np.uint16)
    arena = np.tile(few, (num_pages // NUM_BLOCKS, 1, 1, 1, 1))
    means, bounds = (np.empty((num_pages, shape.heads, n, shape.dim), np.uint16) for n in (1, 2))
    codes = np.empty((num_pages, code_bytes(shape.heads, BLOCK_SIZE, shape.dim)), np.uint8)
    angles = rng.uniform(0, 6, (NUM_BLOCKS, BLOCK_SIZE, shape.dim // 2))
    rotation = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    parts = [
        np.arange(first, first + NUM_BLOCKS, dtype=np.int32) for first in range(0, num_pages, NUM_BLOCKS)
    ]
    turn, pieces = cycle(parts), Pieces(threads)
    subjects: dict[str, Callable[[], object]] = {
        "codes": lambda: encode_keys(arena, means, codes, next(turn), rotation),
        "bounds": lambda: build_anchors(arena, bounds, next(turn), "bounds"),
        "read": lambda: stream_read(pieces, [arena[next(turn)[0] :][:NUM_BLOCKS]]),
    }
    taken = interleave(subjects, rounds)
    own, read_s, num_bytes = taken["codes"], taken["read"], NUM_BLOCKS * block_bytes
    yield Row(shape.name, own, None, threads, num_bytes, read_s / own, {"bounds": taken["bounds"] / own})
    yield Row(f"{shape.name}-read", read_s, None, threads, num_bytes)
    yield Row(f"{shape.name}-token", own / NUM_BLOCKS / BLOCK_SIZE, None, threads, block_bytes // BLOCK_SIZE)
