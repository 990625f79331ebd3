"""`bench layer`: a layer of decode on the CPU for several sessions, in one call, and in a call for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_layer import (
    MAX_PARTS,
    Attended,
    LayerMemory,
    LayerShape,
    Selections,
    SessionBatch,
    decode_layer,
)
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read, use_threads

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE = 2, 4, 64, 32
TOPK, WINDOW = 24, 512
NUM_LAYERS = 3
"""Taken in turn, so that a layer does not lie in the cache from the call before."""


class Sessions:
    """`count` sessions of `context_tokens` each, and the arrays of one call for them."""

    def __init__(self, count: int, context_tokens: int) -> None:
        self.num_blocks = context_tokens // BLOCK_SIZE
        rng = np.random.default_rng(5)
        pages = rng.permutation(count * self.num_blocks).astype(np.int32)
        self.layers = [_memory(rng, len(pages)) for _ in range(NUM_LAYERS)]
        self.batch = plain_batch(count, self.num_blocks, pages)
        shape = (count, NUM_KV_HEADS * GROUP, HEAD_DIM)
        self.query = rng.standard_normal(shape, np.float32)
        self.key, self.value = rng.standard_normal((2, count, NUM_KV_HEADS, HEAD_DIM), np.float32)
        ids = np.full((count, 1, TOPK), -1, np.int32)
        self.selections = Selections(
            np.ones(count, np.uint8), ids, np.empty(ids.shape, np.float32), self.batch.near_block.copy()
        )
        self.attended = Attended(
            np.empty(shape, np.float32), np.empty(shape[:2], np.float32), np.empty(count, np.int32)
        )

    @property
    def bytes_read(self) -> int:
        """Bytes that one call reads: the anchors of all candidates, and the keys and values of what is attended."""
        batch, row = self.batch, 2 * NUM_KV_HEADS * HEAD_DIM * 2
        candidates = int((batch.near_block - batch.num_sinks).sum())
        window = batch.position + 1 - batch.near_block.astype(np.int64) * BLOCK_SIZE
        attended = int((batch.num_sinks + TOPK).sum()) * BLOCK_SIZE + int(window.sum())
        return candidates * row + attended * row

    def calls(self) -> list[Callable[[LayerMemory], None]]:
        """A call for all sessions, then one for each alone."""
        count = len(self.query)
        return [
            partial(self._call, slice(0, count)),
            *(partial(self._call, slice(i, i + 1)) for i in range(count)),
        ]

    def _call(self, some: slice, memory: LayerMemory) -> None:
        whole = {"pages", "period", "bases", "offset_cos", "offset_sin", "rotates_scoring"}
        fields = self.batch._asdict().items()
        decode_layer(
            memory, SessionBatch._make(value if name in whole else value[some] for name, value in fields),
            self.query[some], self.key[some], self.value[some],
            Selections._make(array[some] for array in self.selections),
            Attended._make(array[some] for array in self.attended),
        )  # fmt: skip


def run_layer_of_decode(
    context_tokens: int, counts: Sequence[int], threads: Sequence[int], rounds: int
) -> Iterator[Row]:
    """Rows by number of sessions and of threads, against a streaming read of as many bytes and against one by one."""
    for count in counts:
        sessions = Sessions(count, context_tokens)
        together, *alone = sessions.calls()
        for number in threads:
            use_threads(number)
            yield from _measure(sessions, together, alone, context_tokens, number, rounds)


def _measure(
    sessions: Sessions, together: Callable[[LayerMemory], None], alone: Sequence[Callable[[LayerMemory], None]],
    context_tokens: int, threads: int, rounds: int,
) -> Iterator[Row]:  # fmt: skip
    layers, others, pieces = cycle(sessions.layers), cycle(sessions.layers), Pieces(threads)
    num_bytes, count = sessions.bytes_read, len(alone)
    reads = cycle([layer.arrays[0].reshape(-1)[: num_bytes // 2 // 4 * 4] for layer in sessions.layers])

    def one_by_one() -> None:
        memory = next(others)
        for call in alone:
            call(memory)

    taken = interleave(
        {
            "together": lambda: together(next(layers)),
            "alone": one_by_one,
            "read": lambda: stream_read(pieces, [next(reads)]),
        },
        rounds,
    )
    seconds = taken["together"]
    yield Row(
        f"layer-{count}", seconds, context_tokens, threads, num_bytes, taken["read"] / seconds,
        {"one-by-one": taken["alone"] / seconds},
    )  # fmt: skip


def _memory(rng: np.random.Generator, num_pages: int) -> LayerMemory:
    """Pages of finite numbers: fp16 bits below those of 2."""
    kv = rng.integers(0, 1 << 14, (num_pages, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM), np.uint16)
    anchors = rng.integers(0, 1 << 14, (num_pages, NUM_KV_HEADS, 2, HEAD_DIM), np.uint16)
    shape = LayerShape(NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, num_pages, bounds=True)
    return LayerMemory.of(shape, [kv], [anchors], [np.empty((num_pages, 0), np.uint8)])


def plain_batch(
    count: int,
    num_blocks: int,
    pages: NDArray[np.int32],
    block_size: int = BLOCK_SIZE,
    window: int = WINDOW,
    head_dim: int = HEAD_DIM,
) -> SessionBatch:
    """Sessions under plain rotary positions, each at the end of its last block."""
    position = np.full(count, num_blocks * block_size - 1, np.int64)
    inv_freq = 1e4 ** -(np.arange(0, head_dim, 2) / head_dim)

    def turns(positions: Int64) -> NDArray[np.complex128]:
        found: NDArray[np.complex128] = np.exp(1j * np.multiply.outer(positions, inv_freq))
        return found

    first_part = np.zeros((count, MAX_PARTS), np.int64)
    first_part[:, 0] = 1
    offsets, unused = turns(np.arange(block_size)), np.zeros((count, head_dim // 2), np.float32)
    starts = np.arange(count, dtype=np.int64)[:, None] * num_blocks + np.array([0, num_blocks])
    return SessionBatch(
        position, pages, starts, np.zeros(count, np.int32), np.ones(count, np.int32),
        ((position - window + 1) // block_size).astype(np.int32), np.full(count, head_dim**-0.5, np.float32),
        np.zeros(count, np.float32), np.ones(count, np.int32), 0 * first_part,
        first_part * (position + 1)[:, None], first_part.astype(np.uint8),
        turns(first_part * position[:, None]), 0, turns(np.arange(num_blocks) * block_size),
        offsets.real.astype(np.float32), offsets.imag.astype(np.float32), unused, unused, False,
    )  # fmt: skip
