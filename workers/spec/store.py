"""How KV is stored: the settings of a cluster's store, and the sizes that follow from them and the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import NamedTuple, Protocol

from moorage.workers.spec.kinds import AnchorSpace, AnchorType, KvType, Scorer
from moorage.workers.spec.setting import Limits, setting

KEY_CODE_TOKENS = 16
"""A block whose keys have codes holds a multiple of this many tokens."""
FIRST_LEVEL_BLOCKS = 16
"""Blocks for each key that a generated token selects, beyond which it scans those alone whose centres are near."""
CENTRES = 4
"""Of the keys of one block, for each KV head."""
PACKED_TOKENS = 16
"""A block that is packed holds a multiple of this many tokens."""


@dataclass(frozen=True)
class StoreSpec:
    """The settings of a store, fixed for the life of a cluster."""

    block_size: int = setting(
        128,
        "Tokens of one KV block, the unit of storage and of selection.",
        Limits(most=65536, unit="tokens"),
    )
    kv_type: KvType = setting(
        KvType.FP16,
        "Storage of keys and values: FP16 or FP32, or packed blocks of few bits: INT8, INT4 (keys by channel, values "
        "by token, as KIVI), NF4, NUQ4, NUQ3, NUQ2 (levels of kv_store.quantizer, outliers in fp16, as KVQuant).",
    )
    anchor_type: AnchorType = setting(
        AnchorType.QUEST,
        "How a block is summarised: by its BLOCK_MEAN, BLOCK_MAX, QUEST (per-channel minimum and maximum), "
        "FIXED (its first key), DYNAMIC (the key that the prompt's end asks for most), REPR_TOPK (the repr_topk keys "
        "that received most attention while in the window) or KEY_CODES (its mean, and a one-bit code of each key, "
        "which topk_keys needs).",
    )
    anchor_num: int = setting(
        1, "Equal parts of a block that are summarised each on its own; must divide block_size."
    )
    anchor_space: AnchorSpace = setting(
        AnchorSpace.PLAIN,
        "Whether anchors are made of keys as stored (plain, as InfLLM) or rotated at their own positions (rotated, "
        "as ktransformers).",
        research=True,
    )
    repr_topk: int = setting(
        4,
        "Keys per block that REPR_TOPK anchors are means of; a multiple of anchor_num.",
        research=True,
    )
    scorer: Scorer = setting(
        Scorer.NUMBA,
        "What scores anchors: numba, or faiss or faiss-fp16 (extras, with a copy of all anchors).",
        of_preset=False,
        research=True,
    )
    n_fp16_sinks: int = setting(
        5,
        "First tokens of a session that stay in fp16 where kv_type packs keys and values (KVQuant).",
        Limits(least=0, most=65536, unit="tokens"),
    )


class BlockShape(NamedTuple):
    """Sizes of one block of one layer."""

    num_kv_heads: int
    block_size: int
    head_dim: int

    @property
    def num_elements(self) -> int:
        """Elements of its keys and values."""
        return 2 * self.num_kv_heads * self.block_size * self.head_dim


class BlockSizes(Protocol):
    """What a block format says about bytes."""

    @property
    def element(self) -> str:
        """float16 or float32: the type of decoded elements."""

    @property
    def is_native(self) -> bool:
        """Whether blocks lie in memory as they are decoded; otherwise they are packed."""

    def block_bytes(self, shape: BlockShape, calibrated: bool = False) -> int:
        """Bytes of a block as stored; `calibrated` says that a quantizer has statistics of keys."""

    def quantizer_bytes(self, num_layers: int, shape: BlockShape) -> int:
        """Bytes of the quantizers of all layers."""


_ELEMENT_BYTES = {"float16": 2, "float32": 4}


@cache
def _sizes_of(kv_type: KvType) -> BlockSizes:
    """The format module of the name of `kv_type`; the package above owns it, so that it is found by name."""
    sizes: BlockSizes = import_module(f"moorage.workers.kv.formats.{kv_type.value.lower()}").FORMAT
    return sizes


@dataclass(frozen=True)
class KvShape:
    """What the model says about the size of its KV."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class KvLayout(StoreSpec, KvShape):
    """Sizes of stored blocks and anchors; the one source of bytes for the arena and for `runtime size`.

    A *page* is one token block across all layers, so a session's pages are one list for every layer. The fields of
    KvShape come first, then those of StoreSpec.

    A format of few bits packs a block when it is full. Then each session has, in each store, pages beside those of
    its blocks that hold rows in fp16, `raw_rows` of them each: the *open pages* for the block that its last token is
    in, and in the first store the *sink pages* for its first tokens.
    """

    quantizer: int = 0
    """Digest of the quantizer of a packed format; 0 without one."""
    keeps_centres: bool = False
    """Whether blocks have centres of their keys, by which long contexts are scanned in part."""
    layer_kv_types: tuple[KvType, ...] = ()
    """Formats of the layers, where the quantizer gives them different numbers of bits; else all have `kv_type`."""

    @property
    def element(self) -> str:
        """float16 or float32, as numpy and torch name it: the type of decoded blocks and of anchors."""
        return _sizes_of(self.kv_type).element

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of a decoded block or of an anchor."""
        return _ELEMENT_BYTES[self.element]

    @property
    def block_shape(self) -> BlockShape:
        """Sizes of one block of one layer."""
        return BlockShape(self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def slot_bytes(self) -> int:
        """K and V of one block of one layer on the device, where blocks are decoded."""
        return self.block_shape.num_elements * self.element_bytes

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """By layer: K and V of one block as stored."""
        shape, calibrated = self.block_shape, self.quantizer != 0
        if not self.layer_kv_types:
            return (_sizes_of(self.kv_type).block_bytes(shape, calibrated),) * self.num_layers
        return tuple(_sizes_of(each).block_bytes(shape, calibrated) for each in self.layer_kv_types)

    @property
    def block_bytes(self) -> int:
        """K and V of one block of one layer as stored; the most of all layers."""
        return max(self.layer_bytes)

    @property
    def is_packed(self) -> bool:
        """Whether full blocks are packed into few bits, by `kv_type`."""
        return not _sizes_of(self.kv_type).is_native

    @property
    def fp16_sinks(self) -> int:
        """First tokens that are read in fp16 although their block is packed."""
        return min(self.n_fp16_sinks, self.block_size) if self.is_packed else 0

    @property
    def raw_rows(self) -> int:
        """Rows of fp16 that a page holds instead of a packed block; all rows of a block where it is not packed."""
        if not self.is_packed:
            return self.block_size
        return min(self.layer_bytes) // (2 * self.element_bytes * self.num_kv_heads * self.head_dim)

    @property
    def open_pages(self) -> int:
        """Pages that hold the rows of a session's open block."""
        return -(-self.block_size // self.raw_rows) if self.is_packed else 0

    @property
    def sink_pages(self) -> int:
        """Pages that hold the first tokens of a session."""
        return -(-self.fp16_sinks // self.raw_rows)

    @property
    def quantizer_bytes(self) -> int:
        """Codebooks and statistics of all layers, once in each store."""
        return (
            _sizes_of(self.kv_type).quantizer_bytes(self.num_layers, self.block_shape)
            if self.quantizer
            else 0
        )

    @property
    def anchor_vectors(self) -> int:
        """Anchor vectors per block and KV head."""
        return self.anchor_type.vectors * self.anchor_num

    @property
    def anchor_bytes(self) -> int:
        """Anchors of one block of one layer."""
        return self.num_kv_heads * self.anchor_vectors * self.head_dim * self.element_bytes

    @property
    def code_bytes(self) -> int:
        """Codes of the keys of one block of one layer, where the anchor type has them."""
        if not self.anchor_type.codes_keys:
            return 0
        # A plane for each 8 channels and an fp16 scale for each key, and a mean value in fp16: kernels.key_codes.
        of_keys = self.block_size * (-(-self.head_dim // 8) + 2)
        return self.num_kv_heads * (of_keys + 2 * self.head_dim)

    @property
    def centre_bytes(self) -> int:
        """Centres of the keys of one block of one layer, where there are any."""
        if not self.keeps_centres:
            return 0
        # Four bits for each of a multiple of 32 channels, and a scale and a radius in fp16: kernels.key_codes.
        return self.num_kv_heads * CENTRES * (-(-self.head_dim // 32) * 16 + 4)

    @property
    def page_kv_bytes(self) -> int:
        """K and V of one block in all layers."""
        return sum(self.layer_bytes)

    @property
    def page_anchor_bytes(self) -> int:
        """Index of one block in all layers: its anchors, the codes of its keys and their centres."""
        return self.num_layers * (self.anchor_bytes + self.code_bytes + self.centre_bytes)

    @property
    def page_bytes(self) -> int:
        """All that one page takes in the arena."""
        return self.page_kv_bytes + self.page_anchor_bytes

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`, the last one possibly partial."""
        return -(-num_tokens // self.block_size)
