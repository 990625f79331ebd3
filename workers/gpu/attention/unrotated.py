"""Channels of queries that a rotary embedding leaves as they are, beside a scaling of attention.

The scaling multiplies rotated channels of queries and keys alone. Attention multiplies whole products by its square,
so the other channels of queries are divided by that first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moorage.workers.gpu.attention.window_rings import WindowLayers
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.spec import ModelSpec

Rows = Sequence[tuple[WorkerSession, slice]]
"""The sessions of a step, with the rows of their queries."""


@dataclass(frozen=True, slots=True)
class PartlyRotated:
    """Layers that rotate a part of each head and share a rotary embedding."""

    rotary_dim: int
    in_ring: bool
    index: int
    """The place of one of them among the layers there: of window kinds in rings, of stored layers elsewhere."""

    def view(self, session: WorkerSession) -> RopeView:
        """Their angles in a session."""
        if session.ring is not None and self.in_ring:
            return session.ring.views[self.index]
        return session.rotations_of(self.index).view


class UnrotatedChannels:
    """What a model's layers multiply the channels with that do not rotate."""

    def __init__(self, model: ModelSpec) -> None:
        self._by_layer: dict[int, PartlyRotated] = {}
        kinds, first = WindowLayers.of(model).kind_of, dict[object, PartlyRotated]()
        places = {layer: kinds[at] for at, layer in enumerate(model.window_layers)}
        places |= {layer: at for at, layer in enumerate(model.stored_layers)}
        for layer, place in places.items():
            own = model.layer(layer)
            rope, in_ring = own.rope or model.rope, own.window is not None
            if own.rotates and rope.rotary_dim < model.head_dim:
                known = (in_ring, own.rope, place if in_ring else 0)
                self._by_layer[layer] = first.setdefault(
                    known, PartlyRotated(rope.rotary_dim, in_ring, place)
                )

    def factors(self, rows: Rows, device: torch.device) -> dict[PartlyRotated, torch.Tensor | float]:
        """Factors of a step's queries, [T, 1, 1] where its sessions differ, in layers whose factors are not 1."""
        found: dict[PartlyRotated, torch.Tensor | float] = {}
        for layers in set(self._by_layer.values()):
            of_session = [layers.view(session).unrotated for session, _ in rows]
            if len(set(of_session)) > 1:
                counts = torch.tensor([part.stop - part.start for _, part in rows])
                of_rows = torch.tensor(of_session).repeat_interleave(counts)
                found[layers] = of_rows[:, None, None].to(device)
            elif of_session and of_session[0] != 1.0:
                found[layers] = of_session[0]
        return found

    def scale(self, layer: int, q: torch.Tensor, factors: dict[PartlyRotated, torch.Tensor | float]) -> None:
        """Multiplies the channels of `q` [T, Hq, D] that do not rotate in `layer`, in place."""
        layers = self._by_layer.get(layer)
        if layers is not None and layers in factors:
            q[..., layers.rotary_dim :].mul_(factors[layers])
