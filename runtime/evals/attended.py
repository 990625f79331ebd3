"""Which keys a choice of memory attends in a session of a given length, so that equal choices can be found."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moorage.runtime.config.units import format_tokens
from moorage.workers.spec import KvLayout, MemorySpec, Positions, RopeSpec

_NOT_ATTENTION: dict[str, Any] = {"preset": "", "recall_every": 0, "rebase_every": 1, "dense_until": 0}


def attended_keys(memory: MemorySpec, layout: KvLayout, num_tokens: int) -> Hashable:
    """A value that is equal for two choices under which a session attends the same keys at the same positions.

    Choices that differ in it may still come to the same keys.
    """
    positions = _positions(memory, layout.block_size, num_tokens)
    if _attends_all(memory, layout.block_size, num_tokens):
        return ("every key", positions)
    chosen = memory.replace(**_NOT_ATTENTION)
    return (chosen, layout, positions)


def stored_keys(layout: KvLayout) -> Hashable:
    """A value that is equal for two layouts in which a query reads a key as the same numbers."""
    if not layout.is_packed:
        return layout.kv_type
    return layout.kv_type, layout.block_size, layout.fp16_sinks


def same_keys(choices: Mapping[str, Sequence[Hashable]], lengths: Sequence[int]) -> list[str]:
    """A line for each set of choices with equal values at some of `lengths`; each choice has a value for each."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, length in enumerate(lengths):
        alike: dict[Hashable, list[str]] = {}
        for label, values in choices.items():
            alike.setdefault(values[place], []).append(label)
        for labels in alike.values():
            if len(labels) > 1:
                groups.setdefault(tuple(labels), []).append(length)
    return [
        f"{_joined(labels)} attend the same keys at {_joined([format_tokens(length) for length in at])}: "
        "one choice under several names"
        for labels, at in groups.items()
    ]


def _attends_all(memory: MemorySpec, block_size: int, num_tokens: int) -> bool:
    selected = memory.selection.selected_tokens(block_size)
    if selected is None:
        return True
    budget = _sinks(memory, block_size) + memory.retention.window + selected
    return num_tokens <= max(budget, memory.selection.dense_until if selected else 0)


def _positions(memory: MemorySpec, block_size: int, num_tokens: int) -> Hashable:
    """The scheme, or plain RoPE where a session is too short for it to differ."""
    rope = _rope(memory.positions.rope, num_tokens)
    match memory.positions.scheme:
        case Positions.CLAMPED if num_tokens > memory.retention.window:
            return ("clamped", memory.retention.window, rope)
        case Positions.ROLLING if num_tokens > _sinks(memory, block_size) + memory.retention.window:
            return ("rolling", _sinks(memory, block_size), memory.retention.window, rope)
        case Positions.DCA if num_tokens > (memory.positions.dca_chunk or 0):
            return (
                "dca",
                memory.positions.pretraining_length,
                memory.positions.dca_chunk,
                memory.positions.mscale,
                rope,
            )
    return ("rope", rope)


def _rope(rope: RopeSpec | None, num_tokens: int) -> RopeSpec | None:
    """Dynamic NTK, and what a model card recommends beyond it, are plain RoPE up to the trained length."""
    if rope is None:
        return None
    if rope.longer is not None:
        return replace(
            rope.of_length(max(num_tokens, rope.fixed_length or 0)), longer=None, fixed_length=None
        )
    if rope.rope_type != "dynamic":
        return rope
    if max(num_tokens, rope.fixed_length or 0) > rope.max_position_embeddings:
        return rope
    return replace(rope, rope_type="default", factor=1.0, fixed_length=None)


def _sinks(memory: MemorySpec, block_size: int) -> int:
    return -(-memory.retention.sinks // block_size) * block_size


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
