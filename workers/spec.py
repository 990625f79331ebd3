"""Values that cross between packages and processes. Frozen, typed, and free of torch, ray and numba.

The lower package owns the contract: `runtime` builds these from configuration and requests, `workers` obey them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from moorage.workers.errors import MoorageError


class KvType(StrEnum):
    """How keys and values are stored."""

    FP16 = "FP16"
    FP32 = "FP32"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 2 if self is KvType.FP16 else 4


class AnchorType(StrEnum):
    """How a sealed block is summarised for scoring, in `anchor_num` parts."""

    BLOCK_MEAN = "BLOCK_MEAN"
    """Mean key of each sub-block."""
    BLOCK_MAX = "BLOCK_MAX"
    """Largest value of each channel in each sub-block."""
    QUEST = "QUEST"
    """Per-channel maximum and minimum of each sub-block; the score is an upper bound (Quest, ICML 2024)."""
    QUEST_HADAMARD = "QUEST_HADAMARD"
    """QUEST of Hadamard-transformed keys and queries: no single channel can make the bound of a block loose."""
    FIXED = "FIXED"
    """First key of each sub-block (ktransformers)."""
    DYNAMIC = "DYNAMIC"
    """The keys that received most attention from the prompt's last queries (ktransformers)."""
    REPR_TOPK = "REPR_TOPK"
    """The `repr_topk` keys that received most attention while in the window, as means of their ranks (InfLLM)."""

    @property
    def vectors(self) -> int:
        """Stored vectors per sub-block."""
        return 2 if self.bounds else 1

    @property
    def bounds(self) -> bool:
        """Whether anchors are a maximum and a minimum of each channel."""
        return self in (AnchorType.QUEST, AnchorType.QUEST_HADAMARD)

    @property
    def needs_importance(self) -> bool:
        """Whether the worker must tell the store how much attention each key received."""
        return self in (AnchorType.DYNAMIC, AnchorType.REPR_TOPK)


class AnchorSpace(StrEnum):
    """Which keys are summarised."""

    PLAIN = "plain"
    """Keys as stored, met by the un-rotated query (InfLLM)."""
    ROTATED = "rotated"
    """Keys rotated at their own positions, met by the rotated query (ktransformers)."""


class AnchorPool(StrEnum):
    """How a block's several anchors become one score."""

    MAX = "max"
    SUM = "sum"


class HeadPool(StrEnum):
    """How the scaled logits of the query heads that share a choice become one score per block."""

    SUM = "sum"
    """Mean of the logits over the heads (InfLLM, ktransformers)."""
    SOFTMAX = "softmax"
    """Mean over the heads of each head's softmax over the candidates."""
    MAX = "max"
    """Largest logit of any head."""


class Scorer(StrEnum):
    """What scores anchors in the KV actors."""

    NUMBA = "numba"
    FAISS = "faiss"
    """Faiss's exact inner-product index (InfLLM)."""
    FAISS_FP16 = "faiss-fp16"
    """The same, scalar-quantised to half."""


class Preselect(StrEnum):
    """A coarse choice that limits the choice of each step."""

    OFF = "off"
    PROMPT = "prompt"
    """Once, by the attention that blocks received from the prompt's last queries (ktransformers)."""
    STEP = "step"
    """Each step by the anchors; then the best single keys decide among those blocks."""


class Positions(StrEnum):
    """Where a query sees a key."""

    ROPE = "rope"
    """Every key at its own position."""
    CLAMPED = "clamped"
    """Keys outside the local window at one distance, `local_windows_len - 1` (InfLLM)."""
    ROLLING = "rolling"
    """Sinks right before the local window, whatever lies between; nothing else is attended (StreamingLLM)."""
    DCA = "dca"
    """Every key within its chunk, the query once for each relation of chunks (Dual Chunk Attention)."""


class HeadSelectMode(StrEnum):
    """Which heads share one choice of blocks."""

    SHARED = "SHARED"
    """One choice for all heads."""
    SEPARATE = "SEPARATE"
    """One choice for each KV head."""
    PERHEAD = "PERHEAD"
    """One choice for each query head; for research, since a KV head's keys are read once for each."""

    def num_choices(self, num_heads: int, num_kv_heads: int) -> int:
        """Choices of one layer and step."""
        return {"SHARED": 1, "SEPARATE": num_kv_heads, "PERHEAD": num_heads}[self.value]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of a model, as its configuration names it (transformers' `rope_parameters`)."""

    rope_type: str = "default"
    """default, linear, dynamic, yarn, longrope or llama3."""
    theta: float = 10000.0
    rotary_dim: int = 0
    """Rotated channels of a head; the rest pass through."""
    max_position_embeddings: int = 2048
    original_max_position_embeddings: int | None = None
    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    fixed_length: int | None = None
    """Length that dynamic and longrope assume; None takes the sequence's own."""
    distance_scale: float = 1.0
    """Factor on every position (InfLLM's name for linear interpolation)."""

    @property
    def follows_length(self) -> bool:
        """Whether frequencies depend on the sequence's length."""
        return self.rope_type in ("dynamic", "longrope") and self.fixed_length is None

    def length_class(self, seq_len: int) -> int:
        """Sequences of the same class have the same frequencies; it never falls as `seq_len` grows."""
        if not self.follows_length:
            return 0
        if self.rope_type == "longrope":
            return int(seq_len > (self.original_max_position_embeddings or self.max_position_embeddings))
        return max(seq_len, self.max_position_embeddings)


@dataclass(frozen=True, slots=True)
class DualChunkSpec:
    """A checkpoint's `dual_chunk_attention_config`, in the terms of its paper."""

    length: int
    """c: no position reaches it."""
    chunk: int
    """s: tokens of one chunk."""
    original_length: int | None = None
    """Length beyond which attention is scaled; None never scales."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder, read from a Hugging Face `config.json`."""

    family: str
    """Its name in `workers/gpu/model/families`."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "float16"
    """Storage type of the checkpoint: float32, bfloat16 or float16."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dual_chunk: DualChunkSpec | None = None
    sliding_window: int | None = None
    """Tokens that the reference attends at most; sessions must not outgrow it. None is all."""
    notes: tuple[str, ...] = ()
    """Where the directory disagrees with itself: what was taken, one line each."""

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads


CODE_ELEMENTS = 64
"""Four-bit codes come in runs of this many; the anchors of one KV head must fill whole runs."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Sizes of stored blocks and anchors; the one source of bytes for the arena and for `runtime size`.

    A *page* is one token block across all layers, so a session's pages are one list for every layer.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    kv_type: KvType = KvType.FP16
    anchor_type: AnchorType = AnchorType.QUEST
    anchor_num: int = 1
    anchor_space: AnchorSpace = AnchorSpace.PLAIN
    repr_topk: int = 4
    """Keys per block that REPR_TOPK anchors are made of; a multiple of `anchor_num`."""
    scorer: Scorer = Scorer.NUMBA
    anchor_codes: bool = False
    """Whether the arena has room for four-bit codes of the anchors, by which long contexts are scored first."""

    @property
    def block_bytes(self) -> int:
        """K and V of one block of one layer."""
        return 2 * self.num_kv_heads * self.block_size * self.head_dim * self.kv_type.itemsize

    @property
    def anchor_vectors(self) -> int:
        """Anchor vectors per block and KV head."""
        return self.anchor_type.vectors * self.anchor_num

    @property
    def anchor_bytes(self) -> int:
        """Anchors of one block of one layer."""
        return self.num_kv_heads * self.anchor_vectors * self.head_dim * self.kv_type.itemsize

    @property
    def code_bytes(self) -> int:
        """Four-bit codes of the anchors of one block of one layer."""
        elements = self.num_kv_heads * self.anchor_vectors * self.head_dim
        return elements // 2 if self.anchor_codes else 0

    @property
    def page_kv_bytes(self) -> int:
        """K and V of one block in all layers."""
        return self.num_layers * self.block_bytes

    @property
    def page_anchor_bytes(self) -> int:
        """Anchors of one block in all layers, and their codes."""
        return self.num_layers * (self.anchor_bytes + self.code_bytes)

    @property
    def page_bytes(self) -> int:
        """All that one page takes in the arena."""
        return self.page_kv_bytes + self.page_anchor_bytes

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`, the last one possibly partial."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """The axes of one session, resolved from a preset, the configuration and the request."""

    preset: str
    positions: Positions
    n_init: int
    """Sink tokens, always attended; rounded up to whole blocks."""
    local_windows_len: int
    """Tokens before and including the query that are always attended."""
    topk: int | None
    """Chosen blocks per layer and step; None attends all, 0 none: exactly the sinks and the window."""
    exc_block_size: int
    """Prompt tokens that share one selection in prefill; 0 prefills exactly, over all past keys."""
    preselect_block: Preselect
    """Restrict each step's choice to `preselect_block_count` blocks of a coarse choice."""
    preselect_block_count: int
    head_select_mode: HeadSelectMode
    layer_step: int
    """Layers that share one choice."""
    token_step: int
    """Decode steps that share one choice."""
    dense_layer_num: int
    """First layers that attend all blocks in decode."""
    recall_every: int
    """Decode steps between two recall samples; 0 never measures."""
    head_pool: HeadPool = HeadPool.SUM
    anchor_pool: AnchorPool = AnchorPool.MAX
    dense_until: int = 0
    """Prompts of at most this many tokens are prefilled exactly, and a step with fewer tokens before it attends
    all blocks."""
    importance_queries: int = 128
    """Last prompt queries whose attention decides DYNAMIC anchors and a preselection from the prompt."""
    rope: RopeSpec | None = None
    """Rotary embedding of this session; None takes the model's."""
    pretraining_length: int | None = None
    """Positions that dca stays below."""
    dca_chunk: int | None = None
    """Tokens of one chunk of dca, a multiple of the block size."""
    mscale: float | None = None
    """Attention grows with the length L: q and k times max(1, mscale * ln(L / mscale_length) + 1)."""
    mscale_length: int = 1
    rebase_every: int = 1
    """Decode steps between two adoptions of the current length by RoPE that depends on it."""
    lag: int = 0
    """1 attends in each step what the last step's query chose; then `layer_step` and `token_step` are 1."""
    lag_cosine: float = 0.9
    """With `lag`, choices are made anew at once where a query head has a smaller cosine with the last step's."""
    exc_last_alone: bool = False
    """The prompt's last token, which the first generated one comes from, chooses for itself as generated ones do."""

    def selects_in_prefill(self, prompt_tokens: int) -> bool:
        """Whether execution blocks of a prompt of so many tokens choose what they attend."""
        return bool(self.topk) and self.exc_block_size > 0 and prompt_tokens > self.dense_until

    def resume_point(self, prompt_tokens: int) -> int:
        """Where a prompt that goes on from one of `prompt_tokens` finds what it would have made itself."""
        if not self.selects_in_prefill(prompt_tokens):
            return prompt_tokens
        return (prompt_tokens - self.exc_last_alone) // self.exc_block_size * self.exc_block_size

    def attention_growth(self, seq_len: int) -> float:
        """Factor on queries and on keys at this length, see `mscale`."""
        return max(1.0, (self.mscale or 0.0) * math.log(max(1, seq_len) / self.mscale_length) + 1.0)


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How the next token is drawn. temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    num_logprobs: int = 0
    """Alternatives to report beside each sampled token."""

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty needs to know how often each token came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Reserve room for a session before its first segment."""

    session_id: int
    max_tokens: int
    """Prompt and generated tokens together."""
    prompt_tokens: int
    memory: MemorySpec
    sampling: SamplingSpec
    first_shard: int = 0
    """The KV actor of its first stripe of blocks; the others follow in turn."""


@dataclass(frozen=True, slots=True)
class ContinueSession:
    """Reuse an open session for another prompt that shares its first `keep_tokens`."""

    session_id: int
    keep_tokens: int
    max_tokens: int
    """Prompt, kept tokens included, and generated tokens together."""
    prompt_tokens: int
    memory: MemorySpec
    sampling: SamplingSpec
    kept_ids: Sequence[int] = ()
    """Ids of the kept tokens, needed where `sampling` counts tokens."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one session that go through the model in one step."""

    session_id: int
    start: int
    """Position of the first token; equals the tokens already held."""
    token_ids: Sequence[int]
    sample: bool
    """Draw the next token from the last position."""
    prompt_logprobs: bool = False
    """Report the log-probability of every token of the segment, given those before it."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass of a batch. Drops come first, then idles, then opens, then the segments.

    Drops and idles may come again, and of sessions that do not exist: a plan that failed is repeated in part.
    """

    step_id: int
    drops: tuple[int, ...] = ()
    opens: tuple[OpenSession | ContinueSession, ...] = ()
    segments: tuple[Segment, ...] = ()
    idles: tuple[int, ...] = ()
    """Sessions that no request uses now: their KV stays in DRAM, in the blocks that hold tokens, and nothing else."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What one segment brought."""

    session_id: int
    token_id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    """One for each token of the segment but the prompt's first."""
    num_chosen_blocks: float = 0.0
    """Mean over layers of the distant blocks attended in this segment."""
    num_corrected: int = 0
    """Layers whose choice by the last step's query was corrected, since a head's query moved."""
    recall: float | None = None
    """Share of the exact attention mass on the attended keys, when sampled in this step."""
    error: MoorageError | None = None
    """Why this session alone failed; the others go on."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought, and where its time went."""

    step_id: int
    segments: tuple[SegmentResult, ...]
    elapsed_s: float
    part_s: dict[str, float] = field(default_factory=dict)
    """Seconds by part: linear, select, gather, attend, sample."""
    cache_hits: int = 0
    cache_misses: int = 0
