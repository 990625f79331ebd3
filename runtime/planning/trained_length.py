"""How many tokens the positions of a session reach: the model's trained length, and what extends it.

The factors are measured or published, not guaranteed: dual chunks keep pass keys and most of the perplexity up to
16 times the trained length (deploy/benchmarks, "Beyond the trained length"; ChunkLlama: 4K to 64K), dynamic NTK of
factor 1 up to twice. Other scalings reach what their factor says. Clamped and rolling positions never leave the
trained range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from moorage.workers.spec import MemorySpec, ModelSpec, Positions, RopeSpec

DUAL_CHUNK_FACTOR = 16
DYNAMIC_FACTOR = 2.0
LEAST_PRETRAINED = 2048
"""No published model with linear scaling was pretrained on fewer tokens."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Tokens of a session up to which its positions hold."""

    tokens: int | None
    """None where positions stay in the trained range at any length."""
    reason: str
    """What sets the limit, or takes it away; a phrase for messages."""

    def beyond(self, num_tokens: int) -> int:
        """Tokens of a session of `num_tokens` that lie beyond."""
        return 0 if self.tokens is None else max(0, num_tokens - self.tokens)


class _Limit(NamedTuple):
    """A reach that has an end."""

    tokens: int
    reason: str


def trained_length(model: ModelSpec) -> int:
    """Tokens that the checkpoint was made for, its own RoPE scaling included.

    `max_position_embeddings` says it, with three exceptions. linear and yarn stretch the length that they start
    from by their factor; see `_unscaled_length`. A checkpoint with dual chunks names the length before them.
    """
    rope = model.rope
    if model.dual_chunk is not None and model.dual_chunk.original_length is not None:
        return min(model.rope.max_position_embeddings, model.dual_chunk.original_length)
    if rope.rope_type in ("linear", "yarn"):
        return _times(_unscaled_length(model), rope.factor)
    return model.rope.max_position_embeddings


def claimed_length(model: ModelSpec) -> int:
    """Tokens of a session that config.json or the model card promises, the trained length at least."""
    chunked = 0 if model.dual_chunk is None else model.rope.max_position_embeddings
    return max(trained_length(model), model.claimed_length or 0, chunked)


def reach(memory: MemorySpec, model: ModelSpec) -> Reach:
    """How far positions hold under axes that `resolve_memory` settled against `model`."""
    rope = _reach_of_rope(memory, model)
    match memory.positions.scheme:
        case Positions.ROPE:
            return Reach(*rope)
        case Positions.CLAMPED:
            largest, name = memory.retention.window, "clamped"
        case Positions.ROLLING:
            largest, name = memory.retention.sinks + memory.retention.window, "rolling"
        case Positions.DCA:
            return _reach_of_chunks(memory, model)
    if largest > rope.tokens:
        return Reach(rope.tokens, f"{name} positions go up to {largest:,}; {rope.reason}")
    return Reach(None, f"{name} positions stay below {largest:,}")


def _reach_of_chunks(memory: MemorySpec, model: ModelSpec) -> Reach:
    own = model.dual_chunk
    length = memory.positions.pretraining_length or trained_length(model)
    if own is not None and length == own.length:
        return Reach(max(length, model.rope.max_position_embeddings), "the checkpoint's dual chunks")
    reason = f"dual chunks, up to {DUAL_CHUNK_FACTOR} times the trained {length:,} tokens"
    return Reach(DUAL_CHUNK_FACTOR * length, reason)


def _reach_of_rope(memory: MemorySpec, model: ModelSpec) -> _Limit:
    rope = memory.positions.rope or model.rope
    if (
        model.claimed_length is not None
        and rope == model.rope
        and memory.positions.pretraining_length is None
    ):
        by = "" if rope.longer is None else f" by {rope.longer.rope_type}"
        return _Limit(model.claimed_length, f"the model card promises {model.claimed_length:,} tokens{by}")
    trained = memory.positions.pretraining_length or trained_length(model)
    start = memory.positions.pretraining_length or _unscaled_length(model)
    if rope.rope_type == "dynamic":
        factor = max(rope.factor, DYNAMIC_FACTOR)
        found = _Limit(_times(rope.max_position_embeddings, factor), _scaled("dynamic NTK", factor, rope))
    elif _method(rope) == _method(model.rope):
        name = "plain RoPE" if rope.rope_type == "default" else f"the checkpoint's {rope.rope_type} RoPE"
        found = _Limit(trained, f"{name}, trained on {trained:,} tokens")
    elif rope.rope_type == "default":
        found = _Limit(start, f"plain RoPE, trained on {start:,} tokens")
    elif rope.rope_type == "linear":
        found = _Limit(_times(start, rope.factor), f"linear scaling by {rope.factor:g} of {start:,} tokens")
    else:
        original = rope.original_max_position_embeddings or start
        reason = f"{rope.rope_type} scaling by {rope.factor:g} of {original:,} tokens"
        found = _Limit(_times(original, rope.factor), reason)
    if rope.distance_scale == 1.0:
        return found
    stretched = max(1, int(found.tokens / rope.distance_scale))
    return _Limit(stretched, f"{found.reason}, positions times {rope.distance_scale:g}")


def _unscaled_length(model: ModelSpec) -> int:
    """The length that the checkpoint's scaling starts from.

    With linear scaling `max_position_embeddings` is published as the length after scaling (DeepSeek-Coder, 16 384 by
    4; LLaMA-2-7B-32K, 32 768 by 8) or before it (Vicuna 16K, 4 096 by 4). It is the length after scaling wherever a
    model can have been pretrained on the quotient.
    """
    rope = model.rope
    length = rope.original_max_position_embeddings or rope.max_position_embeddings
    before = round(length / rope.factor)
    return before if rope.rope_type == "linear" and before >= LEAST_PRETRAINED else length


def _method(rope: RopeSpec) -> RopeSpec:
    """The scaling alone, without what a session may add to it."""
    return replace(
        rope, theta=10000.0, max_position_embeddings=1, fixed_length=None, distance_scale=1.0, longer=None
    )


def _scaled(name: str, factor: float, rope: RopeSpec) -> str:
    return f"{name}, up to {factor:g} times {rope.max_position_embeddings:,} tokens"


def _times(length: int, factor: float) -> int:
    return max(1, round(length * factor))
