"""Names and shapes of the tensors that a checkpoint must hold, per family; free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moorage.workers.spec import ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Names of a family's tensors, without `.weight` and `.bias`; those of a layer without its prefix."""

    embed: str
    norm: str
    lm_head: str
    input_norm: str
    post_norm: str
    qkv: tuple[str, ...]
    """One fused tensor, or the three of query, key and value."""
    output: str
    gate: str
    up: str
    down: str
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"


_LLAMA = TensorNames(
    embed="model.embed_tokens",
    norm="model.norm",
    lm_head="lm_head",
    input_norm="input_layernorm",
    post_norm="post_attention_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)
_INTERNLM2 = TensorNames(
    embed="model.tok_embeddings",
    norm="model.norm",
    lm_head="output",
    input_norm="attention_norm",
    post_norm="ffn_norm",
    qkv=("attention.wqkv",),
    output="attention.wo",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
)
# Yi under its own class, before it was published as Llama.
_RENAMED = {".ln1.": ".input_layernorm.", ".ln2.": ".post_attention_layernorm."}


def tensor_names(family: str) -> TensorNames:
    """How a family's checkpoints name their tensors."""
    return _INTERNLM2 if family == "internlm2" else _LLAMA


def decoder_name(name: str) -> str:
    """A checkpoint's tensor name with historical spellings replaced."""
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def is_redundant(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that has no slot may be skipped, because the decoder derives it."""
    return name.endswith("rotary_emb.inv_freq") or (
        spec.tie_word_embeddings and name == f"{tensor_names(spec.family).lm_head}.weight"
    )


def tensor_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor that a checkpoint of `spec` must hold."""
    names = tensor_names(spec.family)
    embed = (spec.vocab_size, spec.hidden_size)
    shapes: dict[str, Shape] = {f"{names.embed}.weight": embed, f"{names.norm}.weight": (spec.hidden_size,)}
    if not spec.tie_word_embeddings:
        shapes[f"{names.lm_head}.weight"] = embed
    layer = dict(_layer_shapes(spec, names))
    for index in range(spec.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer_shapes(spec: ModelSpec, names: TensorNames) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield f"{names.input_norm}.weight", (hidden,)
    yield f"{names.post_norm}.weight", (hidden,)
    if spec.qk_norm:
        yield f"{names.q_norm}.weight", (spec.head_dim,)
        yield f"{names.k_norm}.weight", (spec.head_dim,)
    rows = (query, key_value, key_value) if len(names.qkv) == 3 else (query + 2 * key_value,)
    projections = [(name, num, hidden, spec.qkv_bias) for name, num in zip(names.qkv, rows, strict=True)]
    projections += [
        (names.output, hidden, query, spec.output_bias),
        (names.gate, intermediate, hidden, spec.mlp_bias),
        (names.up, intermediate, hidden, spec.mlp_bias),
        (names.down, hidden, intermediate, spec.mlp_bias),
    ]
    for name, num_rows, num_columns, has_bias in projections:
        yield f"{name}.weight", (num_rows, num_columns)
        if has_bias:
            yield f"{name}.bias", (num_rows,)
