"""The named values of each axis, as a configuration writes them."""

from __future__ import annotations

from enum import StrEnum


class KvType(StrEnum):
    """How keys and values are stored."""

    FP16 = "FP16"
    FP32 = "FP32"
    INT8 = "INT8"
    """8 bits: keys by channel of a block, values by token (KIVI)."""
    INT4 = "INT4"
    """4 bits: keys by channel of a block, values by token (KIVI)."""
    NF4 = "NF4"
    """4 bits at levels of a normal distribution."""
    NUQ4 = "NUQ4"
    """4 bits at calibrated levels, with outliers in fp16 (KVQuant)."""
    NUQ3 = "NUQ3"
    """3 bits at calibrated levels, with outliers in fp16 (KVQuant)."""
    NUQ2 = "NUQ2"
    """2 bits at calibrated levels, with outliers in fp16 (KVQuant)."""


class AnchorType(StrEnum):
    """How a sealed block is summarised for scoring, in `anchor_num` parts."""

    BLOCK_MEAN = "BLOCK_MEAN"
    """Mean key of each sub-block."""
    BLOCK_MAX = "BLOCK_MAX"
    """Largest value of each channel in each sub-block."""
    QUEST = "QUEST"
    """Per-channel maximum and minimum of each sub-block; the score is an upper bound (Quest, ICML 2024)."""
    FIXED = "FIXED"
    """First key of each sub-block (ktransformers)."""
    DYNAMIC = "DYNAMIC"
    """The keys that received most attention from the prompt's last queries (ktransformers)."""
    REPR_TOPK = "REPR_TOPK"
    """The `repr_topk` keys that received most attention while in the window, as means of their ranks (InfLLM)."""
    KEY_CODES = "KEY_CODES"
    """Mean key and mean value of the block, and a one-bit code of each key: single keys can be selected."""

    @property
    def vectors(self) -> int:
        """Stored vectors per sub-block."""
        return 2 if self.bounds else 1

    @property
    def bounds(self) -> bool:
        """Whether anchors are a maximum and a minimum of each channel."""
        return self is AnchorType.QUEST

    @property
    def needs_importance(self) -> bool:
        """Whether the worker must tell the store how much attention each key received."""
        return self in (AnchorType.DYNAMIC, AnchorType.REPR_TOPK)

    @property
    def codes_keys(self) -> bool:
        """Whether a block has a code of each of its keys, so that single keys can be selected."""
        return self is AnchorType.KEY_CODES


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
    """How the scaled logits of the query heads that share a selection become one score per block."""

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
    """A preselection of blocks, which limits the selection of each step."""

    OFF = "off"
    PROMPT = "prompt"
    """Once, by the attention that blocks received from the prompt's last queries (ktransformers)."""


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
    """Which heads share one selection of blocks."""

    SHARED = "SHARED"
    """One selection for all heads."""
    SEPARATE = "SEPARATE"
    """One selection for each KV head."""
    PERHEAD = "PERHEAD"
    """One selection for each query head; for research, since a KV head's keys are read once for each."""

    def num_selections(self, num_heads: int, num_kv_heads: int) -> int:
        """Selections of one layer and step."""
        return {"SHARED": 1, "SEPARATE": num_kv_heads, "PERHEAD": num_heads}[self.value]


class WeightKind(StrEnum):
    """How the matrices of a model are kept in memory."""

    AUTO = "auto"
    """Matrices as the checkpoint holds them, quantised or float."""
    FLOAT = "float"
    """Matrices in the type of activations."""
    INT8 = "int8"
    """8 bits, where the checkpoint holds floats."""
    INT4 = "int4"
    """4 bits, where the checkpoint holds floats; embeddings and head 8 bits."""


class ExpertsPlace(StrEnum):
    """Where the weights of experts lie."""

    DEVICE = "device"
    HOST = "host"
    """Experts in host memory: the CPU computes few tokens; weights of experts that many tokens use are streamed."""


class NormKind(StrEnum):
    """How hidden states are normalised."""

    RMS = "rms"
    """The norm by the root of the mean square."""
    LAYER = "layer"
    """The norm by mean and variance (LayerNorm)."""


class Residual(StrEnum):
    """Where a layer normalises what attention and feed-forward part take and give."""

    PRE = "pre"
    """A norm before each part (Llama)."""
    POST = "post"
    """A norm after each part, before it is added (OLMo 2)."""
    SANDWICH = "sandwich"
    """Norms before and after each part (Gemma 2 and 3, GLM-4)."""
    PARALLEL = "parallel"
    """Once, before both parts, which are added together (Command-R)."""


class QkNorm(StrEnum):
    """How queries and keys are normalised before they are rotated."""

    NONE = "none"
    HEAD = "head"
    """RMS of each head, with one weight for all heads (Qwen3, Gemma 3)."""
    HEAD_LAYER = "head_layer"
    """LayerNorm of each head, with a weight for each head (Command-R+, StableLM)."""
    ALL_HEADS = "all_heads"
    """RMS over all heads together (OLMo 2)."""


class Activation(StrEnum):
    """The function of a gate in the feed-forward part."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    """GELU by its approximation with tanh (Gemma)."""
    CLAMPED_SWISH = "clamped_swish"
    """(up + 1) * gate * sigmoid(1.702 * gate), both clamped (GPT-OSS)."""


class ExpertScores(StrEnum):
    """How the logits of a router become the weights of the experts that a token uses."""

    SOFTMAX = "softmax"
    """Softmax over all experts; the weights of the chosen ones are used as they are."""
    SOFTMAX_NORMALIZED = "softmax_normalized"
    """The same, divided by their sum. It equals the softmax over the chosen experts' logits (Mixtral, GPT-OSS)."""
