"""Queries as the one-bit codes of single keys are scored with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.rotation import rotate_heads
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.model.rope import cos_sin
from moorage.workers.gpu.positions.schemes import Variant

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


def code_queries(step: DecodeStep, layer: int, query: torch.Tensor) -> tuple[Float32, Int32]:
    """(queries [V, Hq, D], bounds [V + 1]) of one query [Hq, D] of the host: those of candidates [bounds[v],
    bounds[v + 1]) are the same.

    Each part of the position scheme has one. Codes of rotated keys are of keys at their own positions. Where
    positions begin anew after each period, the query is moved by the periods before instead. Codes of plain keys,
    which the scheme rotates, are met by the un-rotated query.
    """
    rotary, ranges = step.session.rotations_of(layer), step.ranges
    size, scheme, position = rotary.block_size, rotary.scheme, ranges.position
    period, heads = scheme.period // size, query.float().numpy()
    bounds, queries = [ranges.num_sinks], list[Float32]()
    for part in scheme.parts(position, position + 1):
        _, high = part.clipped(position, position + 1)
        end = min(ranges.near_block, -(-high // size))
        while bounds[-1] < end:
            number = bounds[-1] // period if period else 0
            queries.append(_turned(step, layer, heads, part.variant, number))
            bounds.append(min(end, (number + 1) * period) if period else end)
    return np.array(queries, np.float32).reshape(-1, *heads.shape), np.array(bounds, np.int32)


def _turned(step: DecodeStep, layer: int, heads: Float32, variant: Variant, num_periods: int) -> Float32:
    """The query as a variant that meets keys after so many periods."""
    session, position = step.session, step.ranges.position
    rotary, view = session.rotations_of(layer), session.anchor_view_of(layer)
    if not rotary.scheme.rotates_keys(variant):
        cos, sin = rotary.queries(variant, position, position + 1)
        return rotate_heads(heads, cos[0], sin[0])
    if view is None:
        return heads
    seen = rotary.scheme.query_positions(variant, np.array([position])) + num_periods * rotary.scheme.period
    turns = cos_sin(view, torch.from_numpy(seen))
    return rotate_heads(heads, turns[0][0].numpy(), turns[1][0].numpy())
