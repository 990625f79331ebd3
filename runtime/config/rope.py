"""The positions of a session, settled against its model: rotary embedding, trained length, chunks of dca."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moorage.runtime.planning.trained_length import trained_length
from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import read_rope
from moorage.workers.spec import MemorySpec, ModelSpec, Positions, PositionSpec, RopeSpec, RotarySettings


def settle_positions(
    memory: MemorySpec, rotary: RotarySettings, model: ModelSpec, block_size: int, replaces_own: bool
) -> MemorySpec:
    """`memory` with its rotary embedding and dca's sizes in place.

    `replaces_own` says whether rope_scaling_factor also replaces a scaling that the checkpoint names itself. Raises
    ValueError with key, fault and fix.
    """
    positions = memory.positions
    positions = replace(positions, rope=_rope(rotary, positions, model, replaces_own))
    if positions.scheme is Positions.DCA:
        positions = _dual_chunk(positions, model, block_size)
    return replace(memory, positions=positions)


def _rope(rotary: RotarySettings, positions: PositionSpec, model: ModelSpec, replaces_own: bool) -> RopeSpec:
    trained = positions.pretraining_length
    rope, factor = model.rope, rotary.rope_scaling_factor
    if trained is not None or positions.scheme is not Positions.ROPE:
        # What a model card recommends is for plain positions and the checkpoint's own length.
        rope = replace(rope, longer=None)
    if rotary.rope_scaling is not None:
        rope = _scaled(rotary.rope_scaling, trained, model)
    elif factor is not None and (replaces_own or rope.rope_type == "default"):
        rope = replace(rope, rope_type="dynamic", factor=factor, longer=None)
    if trained is not None and rope.rope_type == "dynamic":
        rope = replace(rope, max_position_embeddings=trained)
    if rotary.session_len is not None:
        if not rope.follows_length:
            raise ValueError(
                f"memory.session_len: has no effect on rope_type {rope.rope_type}; "
                "set memory.rope_scaling_factor too, or remove it"
            )
        rope = replace(rope, fixed_length=rotary.session_len)
    return replace(rope, theta=rotary.base or rope.theta, distance_scale=rotary.distance_scale)


def _scaled(scaling: dict[str, Any], trained: int | None, model: ModelSpec) -> RopeSpec:
    """The rotary embedding that `memory.rope_scaling` names, in transformers' words."""
    own = {"rope_theta": model.rope.theta, "partial_rotary_factor": model.rope.rotary_dim / model.head_dim}
    length = trained or model.rope.max_position_embeddings
    values: dict[str, object] = {"max_position_embeddings": length, "rope_scaling": own | scaling}
    try:
        return read_rope(Fields(values, "memory"), model.head_dim)
    except InvalidModel as error:
        raise ValueError(str(error).replace("memory: ", "memory.")) from error


def _dual_chunk(positions: PositionSpec, model: ModelSpec, block_size: int) -> PositionSpec:
    """Sizes from the configuration, else from the checkpoint, else a chunk of three quarters of the length."""
    own = model.dual_chunk if positions.pretraining_length is None else None
    if own is not None:
        length = own.length
    else:
        length = positions.pretraining_length or trained_length(model)
    chunk = positions.dca_chunk or (own.chunk if own else length * 3 // 4 // block_size * block_size)
    _check_dual_chunk(length, chunk, block_size)
    original = own.original_length if own else None
    return replace(
        positions,
        pretraining_length=length,
        dca_chunk=chunk,
        mscale=(own.mscale if own else 0.0) if positions.mscale is None else positions.mscale,
        mscale_length=original or length,
    )


def _check_dual_chunk(length: int, chunk: int, block_size: int) -> None:
    if not chunk:
        raise ValueError(
            f"long_context.block_size: {block_size} exceeds dca's chunk, three quarters of the trained length "
            f"{length}; use {max(1, length // 4)} or less, or raise memory.pretraining_length"
        )
    if chunk % block_size:
        raise ValueError(
            f"memory.dca_chunk: {chunk} is not a multiple of block_size {block_size}; "
            f"use {max(1, chunk // block_size) * block_size}, or a block_size that divides it"
        )
    if chunk >= length:
        raise ValueError(
            f"memory.dca_chunk: {chunk} leaves no position below the trained length {length} to the chunk "
            "before; lower it or raise memory.pretraining_length"
        )
