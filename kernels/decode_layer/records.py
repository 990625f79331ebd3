"""What one layer of decode takes and gives, for N sessions that each generate one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.addresses import address_of
from moorage.kernels.checks import STORAGE, UINT8, UINT16, check_array, check_multiple
from moorage.kernels.decode_layer.packed import PackedMemory
from moorage.kernels.half import Storage
from moorage.kernels.key_codes.sizes import centre_bytes, code_bytes
from moorage.kernels.simd import LANES

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Complex = NDArray[np.complex128]

MAX_PARTS = 3
"""Key ranges of a position scheme, each met by one variant of the query."""
FINE, NOT_FINITE_ROW, MISFIT = 0, 1, 2
"""`Attended.failed`: done; a stored element of the new row is not finite; a row, page or block does not exist."""


NO_PAGES: Int32 = np.zeros((0, 0, 0), np.int32)
"""Where blocks are not packed."""


class LayerShape(NamedTuple):
    """Sizes that all memories share."""

    num_kv_heads: int
    block_size: int
    head_dim: int
    stripe_blocks: int
    """Blocks of a stripe; stripes are dealt to the memories in turn."""
    bounds: bool
    """Whether anchors are the bounds of a block's keys (QUEST, two vectors), or one vector."""
    key_codes: bool = False
    """Whether there are codes of single keys (`kernels.key_codes`)."""


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Keys, values, anchors and codes of one layer in M memories."""

    shape: LayerShape
    table: Int64
    """[M, 5]: addresses of keys and values, anchors and codes (0: absent), the number of pages, and the address of
    centres (0: absent)."""
    empty: Storage
    """[0], of the storage type."""
    anchor_size: int
    """Elements of a page's anchors."""
    arrays: tuple[NDArray[np.generic], ...]
    """All arrays at these addresses, so that they stay."""
    packed: PackedMemory | None = None
    """How pages are read whose blocks are packed."""

    @classmethod
    def of(
        cls,
        shape: LayerShape,
        kv: Sequence[Storage],
        anchors: Sequence[Storage],
        codes: Sequence[UInt8],
        packed: PackedMemory | None = None,
        centres: Sequence[UInt8] = (),
    ) -> LayerMemory:
        """One element of each sequence for each memory.

        kv [P, 2, Hkv, B, D]; anchors [P, Hkv, A, D]; codes of single keys [P, Hkv * (B * (D / 8 + 2) + 2 * D)], or
        [P, 0] without any; centres of keys [P, bytes], [P, 0] or no array without any. All memories have one storage
        type. Raises ValueError if the arrays do not fit each other or `shape`.

        Where blocks are packed, kv are pages [P, elements of 16 bits], and the caller holds the tables of `packed`.
        """
        check_multiple("head size", shape.head_dim, 2 * LANES)
        if not kv or len(kv) != len(anchors) or len(kv) != len(codes) or shape.stripe_blocks < 1:
            raise ValueError(
                f"{len(kv)} memories of keys, {len(anchors)} of anchors, {len(codes)} of codes and stripes of "
                f"{shape.stripe_blocks} blocks; expected as many of each, at least 1"
            )
        heads, size, dim = shape.num_kv_heads, shape.block_size, shape.head_dim
        anchor_size = heads * anchors[0].shape[2] * dim
        table = np.zeros((len(kv), 5), np.int64)
        for m, (rows, summary, coded) in enumerate(zip(kv, anchors, codes, strict=True)):
            types = STORAGE if m == 0 else (kv[0].dtype,)
            if packed is None:
                check_array("kv", rows, types, (None, 2, heads, size, dim))
            else:
                check_array("kv", rows, UINT16, (None, packed.layer.layout.block_bytes // 2))
            check_array("anchors", summary, (rows.dtype,), (len(rows), heads, anchors[0].shape[2], dim))
            code_size = code_bytes(heads, size, dim) if shape.key_codes else 0
            check_array("codes", coded, UINT8, (len(rows), code_size))
            table[m, :4] = (
                address_of(rows),
                address_of(summary),
                address_of(coded) if code_size else 0,
                len(rows),
            )
        for m, stored in enumerate(centres):
            size = centre_bytes(heads, dim) if stored.shape[1] else 0
            check_array("centres", stored, UINT8, (len(kv[m]), size))
            table[m, 4] = address_of(stored) if size else 0
        return cls(
            shape, table, kv[0].reshape(-1)[:0], anchor_size, (*kv, *anchors, *codes, *centres), packed
        )


class SessionBatch(NamedTuple):
    """Where N sessions stand in one step; the same for all layers."""

    position: Int64
    """[N], of the query; its key and value are written there and attended."""
    pages: Int32
    page_start: Int64
    """[N, M + 1]: the pages of session i in memory m are pages[page_start[i, m] : page_start[i, m + 1]]."""
    first_memory: Int32
    """[N]: stripe t of session i lies in memory (first_memory[i] + t) % M."""
    num_sinks: Int32
    """[N]: blocks [0, num_sinks) are always attended."""
    near_block: Int32
    """[N]: blocks [num_sinks, near_block) are the candidates of a selection; all are sealed."""
    scale: Float32
    """[N], of logits."""
    softcap: Float32
    """[N]: c of c * tanh(x / c) for scaled logits x; 0 leaves them as they are."""
    num_parts: Int32
    """[N]: key ranges of the position scheme, at most MAX_PARTS."""
    part_low: Int64
    part_high: Int64
    """[N, MAX_PARTS]: tokens [low, high) of a part, clipped to those that this query sees."""
    part_rotates: UInt8
    """[N, MAX_PARTS]: whether the keys of a part are rotated by their own position, or used as stored."""
    query_turn: Complex
    """[N, MAX_PARTS, rd / 2]: e^(i * angle) of the query's position towards each part."""
    period: int
    """0, or the tokens after which positions of keys begin anew (dual chunks); a multiple of the block size."""
    bases: Complex
    """[rows, rd / 2]: e^(i * angle) of position row * block size, for the first key of a block."""
    offset_cos: Float32
    offset_sin: Float32
    """[B, rd / 2], of a key's place in its block."""
    score_cos: Float32
    score_sin: Float32
    """[N, rd / 2]: rotation of the query that is scored against the anchors, where `rotates_scoring`."""
    rotates_scoring: bool
    raw_pages: Int32 = NO_PAGES
    """[N, M, R], where blocks are packed: pages of rows in fp16. First those of the block that `position` is in, then
    those of the session's first tokens; the latter mean something in the memory of its first block alone."""


class Selections(NamedTuple):
    """Which blocks the sessions attend beside sinks and window in this layer: given, or selected and written here."""

    selects: UInt8
    """[N]: 1 selects now; 0 attends `ids` as they are."""
    ids: Int32
    """[N, S, k]: ascending, padded at the end with -1. S is 1 (all heads attend the same blocks), the KV heads, or
    where nothing is selected the query heads."""
    scores: Float32
    """[N, S, k], written where selected; -inf without an id."""
    window_first: Int32
    """[N]: blocks [window_first, position // B] are attended; becomes near_block where selected."""


class Attended(NamedTuple):
    """What a layer gives."""

    out: Float32
    """[N, Hq, D]; 0 for a session that failed."""
    lse: Float32
    """[N, Hq]: log-sum-exp of the scaled logits; -inf for a session that failed."""
    failed: Int32
    """[N]: FINE, NOT_FINITE_ROW or MISFIT."""
