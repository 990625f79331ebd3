"""Rotations of stored layers that do not follow their session: by an embedding of their own, or without any."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.rope import RopeView, rope_view
from moorage.workers.spec import MemorySpec, ModelSpec, Positions, RopeSpec


def own_ropes(model: ModelSpec) -> dict[int, RopeSpec]:
    """By stored layer: the embeddings that no setting of a session changes; without rotation all angles are 0."""
    found = {}
    for at, index in enumerate(model.stored_layers):
        layer = model.layer(index)
        if not layer.rotates:
            found[at] = replace(model.rope, rope_type="default", distance_scale=0.0)
        elif layer.rope is not None:
            found[at] = layer.rope
    return found


def own_view(rope: RopeSpec) -> RopeView:
    """The angles of such an embedding, which do not follow a sequence's length."""
    return rope_view(rope, rope.max_position_embeddings)


def own_positions(memory: MemorySpec) -> MemorySpec:
    """The settings of a session as such layers obey them: every key at its own position."""
    return memory.replace(scheme=Positions.ROPE)
