"""The shape of a model and its rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moorage.workers.spec.kinds import Activation, ExpertScores, NormKind, QkNorm, Residual


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
    longer: RopeSpec | None = None
    """The scaling of sequences beyond max_position_embeddings, as the model card recommends; None keeps this one."""

    @property
    def follows_length(self) -> bool:
        """Whether frequencies depend on the sequence's length."""
        by_length = self.rope_type in ("dynamic", "longrope") or self.longer is not None
        return by_length and self.fixed_length is None

    def of_length(self, seq_len: int) -> RopeSpec:
        """The scaling of a sequence of `seq_len` tokens: this one, or `longer` with this one's own distances."""
        if self.longer is None or seq_len <= self.max_position_embeddings:
            return self
        return replace(self.longer, theta=self.theta, distance_scale=self.distance_scale)

    def switches_at(self, seq_len: int) -> bool:
        """Whether a sequence gets another scaling when it grows to `seq_len` tokens; dynamic only drifts."""
        return self.rope_type != "dynamic" and self.length_class(seq_len - 1) != self.length_class(seq_len)

    def length_class(self, seq_len: int) -> int:
        """Sequences of the same class have the same frequencies; it never falls as `seq_len` grows."""
        if not self.follows_length:
            return 0
        if self.longer is not None:
            return int(seq_len > self.max_position_embeddings)
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
    mscale: float = 0.0
    """Growth of attention beyond it, see `PositionSpec.mscale`."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one layer may have otherwise than the others."""

    window: int | None = None
    """Tokens that a query attends at most, its own included (sliding window); None is all."""
    rope: RopeSpec | None = None
    """The rotary embedding of this layer alone, which no setting of a session changes; None is the model's."""
    rotates: bool = True
    """False attends without positions (NoPE): queries and keys are used as projected."""
    has_experts: bool = False
    """Whether the feed-forward part is `ModelSpec.experts`."""


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A feed-forward part of which each token uses some experts (mixture of experts)."""

    num_experts: int
    per_token: int
    """Experts that a token uses."""
    intermediate_size: int
    """Hidden size of each expert."""
    scores: ExpertScores
    """How the router's logits become the weights of the chosen experts."""
    shared_intermediate_size: int = 0
    """Hidden size of the expert that every token uses beside the others; 0 is none."""
    shared_gate: bool = False
    """Whether the shared expert's output is weighted by the sigmoid of a product of its own."""
    router_bias: bool = False
    bias: bool = False
    """Whether gate, up and down of the experts have biases."""
    is_mxfp4: bool = False
    """Whether the checkpoint holds the experts' weights as MXFP4."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix that the checkpoint holds quantised, and what it takes in memory as it is."""

    layer: int | None
    """None outside the layers."""
    part: str
    """A `Part`."""
    code: str
    """A `CodeKind`."""
    group_size: int
    """Channels of a row that share a scale."""
    scale_bytes: int = 2
    has_minima: bool = False
    has_order: bool = False
    """Whether columns stand in another order than input channels do."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder, read from a Hugging Face `config.json` or the header of a GGUF file."""

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
    qk_norm: QkNorm = QkNorm.NONE
    dtype: str = "float16"
    """Storage type of the checkpoint: float32, bfloat16 or float16."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dual_chunk: DualChunkSpec | None = None
    claimed_length: int | None = None
    """Tokens of a session that the model card promises; None promises no more than config.json says."""
    layers: tuple[LayerSpec, ...] = ()
    """One for each layer; empty where all are `LayerSpec()`. Read through `layer`."""
    norm: NormKind = NormKind.RMS
    norm_bias: bool = False
    residual: Residual = Residual.PRE
    activation: Activation = Activation.SILU
    embedding_scale: float = 1.0
    """Factor on the embeddings of tokens (Gemma, Granite)."""
    residual_scale: float = 1.0
    """Factor on what attention and feed-forward part add to the hidden states (Granite)."""
    logit_scale: float = 1.0
    """Factor on the logits (Command-R; Granite's divisor as its inverse)."""
    logit_softcap: float | None = None
    """c of c * tanh(logit / c), for the logits of tokens (Gemma 2)."""
    attention_scale: float | None = None
    """Factor on the products of queries and keys; None is 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """c of c * tanh(x / c), for scaled products of queries and keys (Gemma 2)."""
    attention_sinks: bool = False
    """Whether each query head has a learned logit that takes part in the softmax and has no value (GPT-OSS)."""
    experts: ExpertsSpec | None = None
    quantization_config: str | None = None
    """That of config.json, as JSON; None is plain floats. `weight_format_of` reads it."""
    stored_matrices: tuple[StoredMatrix, ...] = ()
    """What the checkpoint holds quantised."""
    notes: tuple[str, ...] = ()
    """Where the directory disagrees with itself: what was taken, one line each."""

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def feed_forward_channels(self) -> int:
        """Channels of a token in the widest feed-forward part, and of all its experts."""
        experts = self.experts
        if experts is None:
            return self.intermediate_size
        of_experts = experts.per_token * (experts.intermediate_size + self.hidden_size)
        of_experts += experts.shared_intermediate_size
        if all(layer.has_experts for layer in self.layers):
            return of_experts
        return max(self.intermediate_size, of_experts)

    @property
    def softmax_scale(self) -> float:
        """Factor on the products of queries and keys, beside what a rotary embedding adds."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def layer(self, index: int) -> LayerSpec:
        """What layer `index` has of its own."""
        return self.layers[index] if self.layers else LayerSpec()

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """The layers whose keys and values lie in the stores: those that attend everything."""
        return tuple(i for i in range(self.num_layers) if self.layer(i).window is None)

    @property
    def num_stored_layers(self) -> int:
        """Layers that the stores have room for: `stored_layers`, or one that stays empty where there are none."""
        return max(1, len(self.stored_layers))

    @property
    def window_layers(self) -> tuple[int, ...]:
        """The layers that attend a window alone, and whose worker keeps no more than that."""
        return tuple(i for i in range(self.num_layers) if self.layer(i).window is not None)
