"""`bench keys`: single keys selected and attended in one layer of decode, against a streaming read of their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_keys import KeyLists, KeySelections, decode_keys
from moorage.kernels.decode_layer import Attended, LayerMemory, LayerShape
from moorage.kernels.key_codes import encode_keys
from moorage.runtime.bench.decode_layer import plain_batch
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read, use_threads
from moorage.workers.kv.arena import Arena
from moorage.workers.spec import AnchorType, KvLayout

NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_SIZE = 3, 3, 64, 64
"""The shape of SmolLM2-135M under the preset `moorage`."""
TOPK_KEYS, WINDOW = 768, 128
PERIOD = 127
"""Blocks after which keys and values come again; no sample of every second or fourth block sees the same again."""
COLD_BYTES, MOST_LAYERS = 64 << 20, 16
"""Layers are taken in turn, so that codes and means do not lie in the cache from the call before."""


T = TypeVar("T")


class KeyLayers:
    """Layers of one session of `context_tokens`, and the arrays of a call."""

    def __init__(self, context_tokens: int) -> None:
        self.num_blocks = context_tokens // BLOCK_SIZE
        layout = KvLayout(1, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, anchor_type=AnchorType.KEY_CODES)
        self.scan_bytes = self.num_blocks * layout.page_anchor_bytes
        self.key_bytes = 2 * TOPK_KEYS * NUM_KV_HEADS * HEAD_DIM * 2
        num_layers = min(MOST_LAYERS, max(2, -(-COLD_BYTES // self.scan_bytes)))
        self.arena = Arena(
            KvLayout(num_layers, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, anchor_type=AnchorType.KEY_CODES),
            self.num_blocks,
        )
        pages = np.arange(self.num_blocks, dtype=np.int32)
        for layer in range(num_layers):
            self.arena.ask_huge(layer, pages)
        self._fill(pages)
        shape = LayerShape(NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, self.num_blocks, bounds=False, key_codes=True)
        self.memories = [
            LayerMemory.of(shape, [kv], [anchors], [codes])
            for kv, anchors, codes in zip(self.arena.kv, self.arena.anchors, self.arena.codes, strict=True)
        ]
        self._batch = plain_batch(1, self.num_blocks, pages, BLOCK_SIZE, WINDOW)
        heads, rng = NUM_KV_HEADS * GROUP, np.random.default_rng(5)
        self._query = rng.standard_normal((1, heads, HEAD_DIM), np.float32)
        self._attended = Attended(
            np.zeros((1, heads, HEAD_DIM), np.float32),
            np.zeros((1, heads), np.float32),
            np.zeros(1, np.int32),
        )
        self._lists = KeyLists()
        batch = self._batch
        bases = np.stack([batch.bases.real, batch.bases.imag], axis=1).astype(np.float32)
        turns = bases, np.stack([batch.offset_cos, batch.offset_sin], axis=1)
        self._keys = {
            k: KeySelections(
                np.ones(1, np.uint8), np.empty((1, NUM_KV_HEADS, k), np.int32), np.empty((1, heads), np.float32),
                True, *turns,
            )
            for k in (1, TOPK_KEYS)
        }  # fmt: skip

    def _fill(self, pages: NDArray[np.int32]) -> None:
        rng = np.random.default_rng(6)
        few = rng.standard_normal((PERIOD, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)).astype(np.float16)
        for kv, anchors, codes in zip(self.arena.kv, self.arena.anchors, self.arena.codes, strict=True):
            for start in range(0, self.num_blocks, len(few)):
                kv[start : start + len(few)] = few.view(np.uint16)[: self.num_blocks - start]
            encode_keys(kv, anchors, codes, pages)

    def attend(self, memory: LayerMemory, topk_keys: int) -> None:
        """One call that selects and attends as many keys of each KV head: 1 or TOPK_KEYS."""
        self._attended.lse[:] = 4
        decode_keys(memory, self._batch, self._query, self._keys[topk_keys], self._attended, self._lists)


def _in_turn(call: Callable[[T], object], arguments: Sequence[T]) -> Callable[[], object]:
    """Calls with one of the arguments each time, over and over."""
    turn = cycle(arguments)
    return lambda: call(next(turn))


def run_keys(context_tokens: int, threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Rows of the whole call, and of one for a single key, which is little but the pass over the codes."""
    layers = KeyLayers(context_tokens)
    arena = layers.arena
    for number in threads:
        use_threads(number)
        pieces = Pieces(number)
        arrays = [*zip(arena.codes, arena.anchors, strict=True)]
        taken = interleave(
            {
                "keys": _in_turn(partial(layers.attend, topk_keys=TOPK_KEYS), layers.memories),
                "scan": _in_turn(partial(layers.attend, topk_keys=1), layers.memories),
                "read": _in_turn(partial(stream_read, pieces), arrays),
            },
            rounds,
        )
        whole, scan, read = taken["keys"], taken["scan"], taken["read"]
        num_bytes = layers.scan_bytes + layers.key_bytes
        yield Row("keys", whole, context_tokens, number, num_bytes, read / whole)
        yield Row("keys-scan", scan, context_tokens, number, layers.scan_bytes, read / scan)
        yield Row("keys-read", read, context_tokens, number, layers.scan_bytes)
    arena.close()
