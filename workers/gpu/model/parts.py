"""The parts that a decoder is made of, and the shapes that a model gives them; free of torch."""

from __future__ import annotations

from enum import StrEnum, auto

from moorage.workers.spec import ModelSpec, QkNorm

Shape = tuple[int, ...]


class Part(StrEnum):
    """One weight of a decoder. A checkpoint names each of them, or packs several into one tensor."""

    EMBED = auto()
    FINAL_NORM = auto()
    LM_HEAD = auto()
    INPUT_NORM = auto()
    """Of a layer, before its attention."""
    POST_NORM = auto()
    """Of a layer, between its attention and its feed-forward part."""
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    Q_NORM = auto()
    """Of each query head."""
    K_NORM = auto()
    OUTPUT = auto()
    GATE = auto()
    UP = auto()
    DOWN = auto()


def part_shapes(spec: ModelSpec) -> dict[Part, Shape]:
    """Shapes [out, in] or [channels] of the weights that a decoder of `spec` has outside its layers and in each."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[Part, Shape] = {
        Part.EMBED: (spec.vocab_size, hidden),
        Part.FINAL_NORM: (hidden,),
        Part.INPUT_NORM: (hidden,),
        Part.POST_NORM: (hidden,),
        Part.QUERY: (query, hidden),
        Part.KEY: (key_value, hidden),
        Part.VALUE: (key_value, hidden),
        Part.OUTPUT: (hidden, query),
        Part.GATE: (intermediate, hidden),
        Part.UP: (intermediate, hidden),
        Part.DOWN: (hidden, intermediate),
    }
    if not spec.tie_word_embeddings:
        shapes[Part.LM_HEAD] = (spec.vocab_size, hidden)
    if spec.qk_norm is QkNorm.HEAD:
        shapes |= dict.fromkeys((Part.Q_NORM, Part.K_NORM), (spec.head_dim,))
    return shapes


def biased_parts(spec: ModelSpec) -> frozenset[Part]:
    """The parts that have a bias, [out], beside their weight."""
    found: tuple[Part, ...] = ()
    if spec.qkv_bias:
        found += (Part.QUERY, Part.KEY, Part.VALUE)
    if spec.output_bias:
        found += (Part.OUTPUT,)
    if spec.mlp_bias:
        found += (Part.GATE, Part.UP, Part.DOWN)
    return frozenset(found)
