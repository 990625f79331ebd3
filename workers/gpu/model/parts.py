"""The parts that a decoder is made of, and the shapes that a model gives them; free of torch."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import NamedTuple

from moorage.workers.spec import LayerSpec, ModelSpec, QkNorm, Residual

Shape = tuple[int, ...]


class Part(StrEnum):
    """One weight of a decoder. A checkpoint names each of them, or packs several into one tensor."""

    EMBED = auto()
    FINAL_NORM = auto()
    LM_HEAD = auto()
    INPUT_NORM = auto()
    """Of a layer, before its attention."""
    ATTENTION_OUT_NORM = auto()
    """Of what attention adds."""
    POST_NORM = auto()
    """Of a layer, between its attention and its feed-forward part."""
    MLP_OUT_NORM = auto()
    """Of what the feed-forward part adds."""
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    Q_NORM = auto()
    """Of each query head, or of all together."""
    K_NORM = auto()
    SINKS = auto()
    """A logit for each query head that takes part in its softmax and has no value."""
    OUTPUT = auto()
    GATE = auto()
    UP = auto()
    DOWN = auto()
    ROUTER = auto()
    """A logit for each expert; it stands in layers with experts, as do all that follow."""
    EXPERT_GATE = auto()
    """Of all experts, one after the other; so are the next two."""
    EXPERT_UP = auto()
    EXPERT_DOWN = auto()
    SHARED_GATE = auto()
    """Of the expert that every token uses; so are the next two."""
    SHARED_UP = auto()
    SHARED_DOWN = auto()
    SHARED_WEIGHT = auto()
    """A logit, whose sigmoid weights the shared expert."""


LAYER_NORMS: dict[Residual, tuple[Part, ...]] = {
    Residual.PRE: (Part.INPUT_NORM, Part.POST_NORM),
    Residual.POST: (Part.ATTENTION_OUT_NORM, Part.MLP_OUT_NORM),
    Residual.SANDWICH: (Part.INPUT_NORM, Part.ATTENTION_OUT_NORM, Part.POST_NORM, Part.MLP_OUT_NORM),
    Residual.PARALLEL: (Part.INPUT_NORM,),
}
"""The norms of hidden states that a layer has."""
NORMS = frozenset({Part.FINAL_NORM, *LAYER_NORMS[Residual.SANDWICH]})
"""Every norm of hidden states."""


class MlpParts(NamedTuple):
    """The parts of a feed-forward part."""

    gate: Part
    up: Part
    down: Part


DENSE = MlpParts(Part.GATE, Part.UP, Part.DOWN)
EXPERT = MlpParts(Part.EXPERT_GATE, Part.EXPERT_UP, Part.EXPERT_DOWN)
SHARED = MlpParts(Part.SHARED_GATE, Part.SHARED_UP, Part.SHARED_DOWN)


def part_shapes(spec: ModelSpec, layer: LayerSpec | None = None) -> dict[Part, Shape]:
    """Shapes [out, in] or [channels] of the weights that a decoder of `spec` has outside its layers and in `layer`.

    None is a layer without experts.
    """
    hidden = spec.hidden_size
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[Part, Shape] = {
        Part.EMBED: (spec.vocab_size, hidden),
        Part.FINAL_NORM: (hidden,),
        **dict.fromkeys(LAYER_NORMS[spec.residual], (hidden,)),
        Part.QUERY: (query, hidden),
        Part.KEY: (key_value, hidden),
        Part.VALUE: (key_value, hidden),
        Part.OUTPUT: (hidden, query),
        **_feed_forward_shapes(spec, layer),
    }
    if not spec.tie_word_embeddings:
        shapes[Part.LM_HEAD] = (spec.vocab_size, hidden)
    shapes |= qk_norm_shapes(spec)
    if spec.attention_sinks:
        shapes[Part.SINKS] = (spec.num_heads,)
    return shapes


def qk_norm_shapes(spec: ModelSpec) -> dict[Part, Shape]:
    """Shapes of the norms of queries and keys; empty where a model has none."""
    query, key = spec.num_heads, spec.num_kv_heads
    match spec.qk_norm:
        case QkNorm.NONE:
            return {}
        case QkNorm.HEAD:
            return dict.fromkeys((Part.Q_NORM, Part.K_NORM), (spec.head_dim,))
        case QkNorm.HEAD_LAYER:
            return {Part.Q_NORM: (query, spec.head_dim), Part.K_NORM: (key, spec.head_dim)}
        case QkNorm.ALL_HEADS:
            return {Part.Q_NORM: (query * spec.head_dim,), Part.K_NORM: (key * spec.head_dim,)}


def _feed_forward_shapes(spec: ModelSpec, layer: LayerSpec | None) -> dict[Part, Shape]:
    hidden, experts = spec.hidden_size, spec.experts
    if experts is None or layer is None or not layer.has_experts:
        gate_and_up = (spec.intermediate_size, hidden)
        return {Part.GATE: gate_and_up, Part.UP: gate_and_up, Part.DOWN: gate_and_up[::-1]}
    number, intermediate = experts.num_experts, experts.intermediate_size
    shapes: dict[Part, Shape] = {
        Part.ROUTER: (number, hidden),
        Part.EXPERT_GATE: (number, intermediate, hidden),
        Part.EXPERT_UP: (number, intermediate, hidden),
        Part.EXPERT_DOWN: (number, hidden, intermediate),
    }
    if shared := experts.shared_intermediate_size:
        shapes |= dict.fromkeys((Part.SHARED_GATE, Part.SHARED_UP), (shared, hidden))
        shapes[Part.SHARED_DOWN] = (hidden, shared)
    if experts.shared_gate:
        shapes[Part.SHARED_WEIGHT] = (1, hidden)
    return shapes


def biased_parts(spec: ModelSpec) -> frozenset[Part]:
    """The parts that have a bias, [out], [experts, out] or that of a norm, beside their weight."""
    found: tuple[Part, ...] = ()
    if spec.norm_bias:
        found += tuple(NORMS)
    if spec.qkv_bias:
        found += (Part.QUERY, Part.KEY, Part.VALUE)
    if spec.output_bias:
        found += (Part.OUTPUT,)
    if spec.mlp_bias:
        found += (Part.GATE, Part.UP, Part.DOWN)
    if spec.experts is not None and spec.experts.router_bias:
        found += (Part.ROUTER,)
    if spec.experts is not None and spec.experts.bias:
        found += (Part.EXPERT_GATE, Part.EXPERT_UP, Part.EXPERT_DOWN)
    return frozenset(found)
