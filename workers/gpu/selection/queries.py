"""Queries as the anchors of blocks are scored with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.rotation import rotate_heads
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.rope import cos_sin, rotate
from moorage.workers.gpu.transfer.host_copy import HostCopy

Float32 = NDArray[np.float32]


class LayerQueries:
    """The queries of one layer of decode, a row for each session."""

    def __init__(self, queries: torch.Tensor) -> None:
        """`queries` is [N, Hq, D], un-rotated, in the model's type. Their copy to the host begins at once."""
        self._queries = queries
        self._copy = HostCopy(queries)
        self._plain: torch.Tensor | None = None

    @property
    def plain(self) -> torch.Tensor:
        """[N, Hq, D] in fp32 on the device."""
        if self._plain is None:
            self._plain = self._queries.float()
        return self._plain

    def on_host(self) -> torch.Tensor:
        """[N, Hq, D] on the host in the model's type; waits for the copy."""
        return self._copy()[0]


def scoring_queries(session: WorkerSession, layer: int, queries: torch.Tensor, start: int) -> torch.Tensor:
    """Queries [n, Hq, D] of a stored layer, un-rotated and from position `start` on, as its anchors are scored with.

    The result is in fp32.

    Anchors of rotated keys are met by each query at its own position, as ktransformers does. Those of plain keys
    are met, under clamped positions, by the query at the clamped position, which is how attention will use these
    keys; under RoPE both sides stay un-rotated (as InfLLM scores).
    """
    queries = queries.float()
    view, rotations = session.anchor_view_of(layer), session.rotations_of(layer)
    if view is not None:
        positions = torch.arange(start, start + len(queries))
        cos, sin = (part.to(queries.device) for part in cos_sin(view, positions))
        return rotate(queries.transpose(0, 1), cos, sin).transpose(0, 1)
    if not rotations.clamped:
        return queries
    cos, sin = (torch.from_numpy(part).to(queries.device) for part in rotations.clamp)
    return rotate(queries, cos, sin)


def scoring_query(session: WorkerSession, layer: int, query: torch.Tensor, position: int) -> Float32:
    """`scoring_queries` [1, Hq, D] of one query [Hq, D] of the host."""
    if session.anchor_view is not None:
        return np.asarray(scoring_queries(session, layer, query[None], position).numpy())
    heads: Float32 = query.float().numpy()
    rotations = session.rotations_of(layer)
    if rotations.clamped:
        cos, sin = rotations.clamp
        heads = rotate_heads(heads, cos[0], sin[0])
    return np.ascontiguousarray(heads[None])


def scoring_rotation(session: WorkerSession, layer: int, position: int) -> tuple[Float32, Float32] | None:
    """(cos, sin), each [rotary_dim / 2], by which `scoring_query` rotates; None where it does not."""
    view, rotations = session.anchor_view_of(layer), session.rotations_of(layer)
    if view is not None:
        rotated = cos_sin(view, torch.tensor([position]))
        return rotated[0][0].numpy(), rotated[1][0].numpy()
    if rotations.clamped:
        cos, sin = rotations.clamp
        return cos[0], sin[0]
    return None


def attention_scale(session: WorkerSession, layer: int) -> float:
    """Factor on the products of a stored layer: the model's, and that of the layer's rotary embedding."""
    return session.scale * session.rotations_of(layer).view.attention_scale ** 2
