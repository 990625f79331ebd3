"""`bench formats`: one token that attends every key where it is packed in the stores, against keys in fp16.

With `--keys` it selects single keys by their codes, and attends these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count as count_from
from typing import NamedTuple

import numpy as np

from moorage.kernels.decode_keys import KeyLists, KeySelections, decode_keys
from moorage.kernels.decode_layer import Attended, LayerMemory, LayerShape, Selections, decode_layer
from moorage.kernels.key_codes import encode_keys
from moorage.runtime.bench.decode_layer import plain_batch
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import PackedFormat
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.host_memory import layer_of
from moorage.workers.spec import AnchorType, KvLayout, KvType

BLOCK_SIZE = 128
DISTINCT_BLOCKS = 127
"""Blocks that are packed; they come again and again, and no sample of every second or fourth sees the same ones."""
QUERIES = 8
"""That take turns, so that the keys that one selects do not lie in the cache from the call before."""


class HeadShape(NamedTuple):
    """Heads of an attention layer."""

    num_kv_heads: int
    group: int
    """Query heads of a KV head."""
    head_dim: int

    @classmethod
    def parse(cls, text: str) -> HeadShape:
        """Reads a shape such as "8x4x128". Raises ValueError for anything else."""
        return cls(*(int(part) for part in text.split("x")))

    def __str__(self) -> str:
        return "x".join(map(str, self))


class FormatLayer:
    """One layer of one session of `num_blocks` full blocks in one format, and the arrays of a call."""

    def __init__(self, kv_type: KvType, heads: HeadShape, num_blocks: int, key_codes: bool = False) -> None:
        """`key_codes` makes codes of single keys."""
        quantizer = _quantizer(kv_type, heads)
        shape = heads.num_kv_heads, heads.head_dim, BLOCK_SIZE
        anchors = AnchorType.KEY_CODES if key_codes else AnchorType.QUEST
        layout = KvLayout(
            1, *shape, kv_type=kv_type, anchor_type=anchors, quantizer=1 if quantizer is not None else 0
        )
        self.arena = Arena(layout, num_blocks + layout.open_pages + layout.sink_pages, quantizer)
        self.bytes_read = num_blocks * layout.block_bytes
        pages = np.arange(self.arena.num_pages, dtype=np.int32)
        self.arena.ask_huge(0, pages)
        self._fill(num_blocks)
        layer_shape = LayerShape(*_sizes(heads), num_blocks, not key_codes, key_codes)
        self._memory = LayerMemory.of(layer_shape, *layer_of([self.arena], 0))
        batch = plain_batch(1, num_blocks, pages[:num_blocks], BLOCK_SIZE, BLOCK_SIZE, heads.head_dim)
        self._batch = batch._replace(raw_pages=pages[None, None, num_blocks:].copy())
        rng = np.random.default_rng(3)
        query_heads = heads.num_kv_heads * heads.group
        self._rows = rng.standard_normal((3, 1, query_heads, heads.head_dim), np.float32)
        ids = np.full((1, 1, 0), -1, np.int32)
        everything = np.ones(1, np.int32)
        self._selections = Selections(np.zeros(1, np.uint8), ids, np.zeros(ids.shape, np.float32), everything)
        self._num_kv_heads = heads.num_kv_heads
        self._attended = Attended(
            np.empty(self._rows[0].shape, np.float32),
            np.empty((1, query_heads), np.float32),
            np.empty(1, np.int32),
        )

    def _fill(self, num_blocks: int) -> None:
        layout, rng = self.arena.layout, np.random.default_rng(4)
        few = rng.standard_normal((DISTINCT_BLOCKS, 2, *layout.block_shape), np.float32).astype(np.float16)
        first = np.arange(DISTINCT_BLOCKS, dtype=np.int32)
        if self.arena.codec is None:
            self.arena.kv[0, :DISTINCT_BLOCKS] = few.view(np.uint16)
        else:
            self.arena.codec.encode(0, few.view(np.uint16), self.arena.stored[0], first)
        arena = self.arena
        if layout.anchor_type.codes_keys:
            encode_keys(few.view(np.uint16), arena.anchors[0, : len(few)], arena.codes[0, : len(few)], first)
        for array in (arena.stored[0], arena.anchors[0], arena.codes[0]):
            for start in range(len(few), num_blocks, len(few)):
                count = min(len(few), num_blocks - start)
                array[start : start + count] = array[:count]

    def attend(self) -> None:
        """Writes the last row and attends every key."""
        key, value = (rows[:, : self._num_kv_heads].copy() for rows in self._rows[1:])
        decode_layer(self._memory, self._batch, self._rows[0], key, value, self._selections, self._attended)


class KeyLayer(FormatLayer):
    """The same with codes of keys, by which single ones are selected."""

    def __init__(self, kv_type: KvType, heads: HeadShape, num_blocks: int, num_keys: int) -> None:
        super().__init__(kv_type, heads, num_blocks, key_codes=True)
        batch, count = self._batch, heads.num_kv_heads * heads.group
        bases = np.stack([batch.bases.real, batch.bases.imag], axis=1).astype(np.float32)
        turns = bases, np.stack([batch.offset_cos, batch.offset_sin], axis=1)
        self._keys = {
            k: KeySelections(
                np.ones(1, np.uint8), np.empty((1, heads.num_kv_heads, k), np.int32),
                np.empty((1, count), np.float32), True, *turns,
            )
            for k in (1, num_keys)
        }  # fmt: skip
        rng = np.random.default_rng(5)
        self._queries = rng.standard_normal((QUERIES, 1, count, heads.head_dim), np.float32)
        self._turn, self._lists = count_from(), KeyLists()
        # What is attended by blocks is little: the call that writes the row is no part of what is measured.
        self._attended.out[:], self._attended.failed[:] = 0, 0

    def select(self, num_keys: int) -> None:
        """Selects and attends that many keys of each KV head, which are 1 or those of the layer."""
        self._attended.lse[:] = 4
        query = self._queries[next(self._turn) % QUERIES]
        decode_keys(self._memory, self._batch, query, self._keys[num_keys], self._attended, self._lists)


def _sizes(heads: HeadShape) -> tuple[int, int, int]:
    return heads.num_kv_heads, BLOCK_SIZE, heads.head_dim


def _quantizer(kv_type: KvType, heads: HeadShape) -> Quantizer | None:
    """One as calibration would make it of normal numbers, where the format takes one."""
    format = format_of(kv_type)
    if not (isinstance(format, PackedFormat) and format.takes_quantizer):
        return None
    levels, shape = normal_levels(format.bits), (heads.num_kv_heads, heads.head_dim)
    ends = np.full(shape, 2.5, np.float32)
    return Quantizer(format.bits, (LayerQuantizer(levels, levels, ends, 0 * ends, -ends, ends),))


def run_formats(
    heads: HeadShape, context_tokens: int, threads: Sequence[int], rounds: int, kv_types: Sequence[KvType]
) -> Iterator[Row]:
    """Rows by format and number of threads; all formats take turns, and each stands against FP16."""
    num_blocks = max(DISTINCT_BLOCKS, context_tokens // BLOCK_SIZE)
    layers = {each: FormatLayer(each, heads, num_blocks) for each in (KvType.FP16, *kv_types)}
    for number in threads:
        use_threads(number)
        taken = interleave({each.value: partial(layers[each].attend) for each in layers}, rounds)
        exact = taken[KvType.FP16.value]
        for each, layer in layers.items():
            seconds = taken[each.value]
            ratio = {} if each is KvType.FP16 else {"FP16": exact / seconds}
            smaller = {"times_smaller": layers[KvType.FP16].bytes_read / layer.bytes_read}
            name = f"formats-{heads}-{each.value}"
            yield Row(name, seconds, context_tokens, number, layer.bytes_read, None, ratio, smaller)
    for layer in layers.values():
        layer.arena.close()


def run_format_keys(
    heads: HeadShape,
    context_tokens: int,
    num_keys: int,
    threads: Sequence[int],
    rounds: int,
    kv_types: Sequence[KvType],
) -> Iterator[Row]:
    """Rows of selecting and attending single keys by format and number of threads, each against FP16.

    Those with "scan" are of the same call for one key of each head, which is little but the pass over the codes.
    """
    num_blocks = max(DISTINCT_BLOCKS, context_tokens // BLOCK_SIZE)
    layers = {each: KeyLayer(each, heads, num_blocks, num_keys) for each in (KvType.FP16, *kv_types)}
    for number in threads:
        use_threads(number)
        subjects = {
            (each, count): partial(layers[each].select, count) for each in layers for count in (num_keys, 1)
        }
        taken = interleave({f"{each}-{count}": run for (each, count), run in subjects.items()}, rounds)
        exact = taken[f"{KvType.FP16}-{num_keys}"]
        for each, layer in layers.items():
            seconds, scan = (taken[f"{each}-{count}"] for count in (num_keys, 1))
            ratio = {} if each is KvType.FP16 else {"FP16": exact / seconds}
            row_bytes = layer.bytes_read // num_blocks // BLOCK_SIZE
            name = f"keys-{heads}-{each.value}"
            yield Row(name, seconds, context_tokens, number, num_keys * row_bytes, None, ratio)
            yield Row(f"{name}-scan", scan, context_tokens, number)
    for layer in layers.values():
        layer.arena.close()


def packed_types() -> list[KvType]:
    """All types whose full blocks are packed."""
    return [each for each in KvType if isinstance(format_of(each), PackedFormat)]
