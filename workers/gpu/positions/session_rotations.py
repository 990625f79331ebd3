"""The rotary caches of sessions: by their own positions, and of layers that no setting of a session changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.model.rope import RopeView, rope_view, session_view
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.positions.rotary_tables import uses_tables
from moorage.workers.spec import KvLayout, MemorySpec, ModelSpec, Positions, RopeSpec


class SessionRotations:
    """Makes the caches of one worker's sessions; on a CPU, sessions of the same settings share them."""

    def __init__(self, model: ModelSpec, layout: KvLayout, device: torch.device) -> None:
        self._rope, self._layout, self._device = model.rope, layout, device
        self._own_ropes = _own_ropes(model)
        self._known: WeakValueDictionary[tuple[MemorySpec, bytes, float], RotaryCache] = WeakValueDictionary()

    def of_session(self, memory: MemorySpec, seq_len: int) -> RotaryCache:
        """The rotary view of a session whose length is `seq_len`."""
        return self._cache(session_view(self._rope, memory, seq_len), memory)

    def of_layers(self, memory: MemorySpec) -> dict[int, RotaryCache]:
        """The caches of stored layers that rotate by an embedding of their own, or not at all, by layer.

        Every key stands at its own position there, whatever the scheme of the session, and angles do not follow a
        length. Layers of one embedding share a cache.
        """
        if not self._own_ropes:
            return {}
        plain = memory.replace(scheme=Positions.ROPE)
        caches = {
            rope: self._cache(rope_view(rope, rope.max_position_embeddings), plain)
            for rope in self._own_ropes.values()
        }
        return {layer: caches[rope] for layer, rope in self._own_ropes.items()}

    def anchor_angles(
        self, rotations: RotaryCache, of_layers: Mapping[int, RotaryCache]
    ) -> NDArray[np.float64]:
        """Radians per token by which keys are rotated for anchors: [rotary_dim / 2], or [L, rotary_dim / 2]."""
        own: NDArray[np.float64] = rotations.view.inv_freq.numpy()
        if not of_layers:
            return own
        layers = [of_layers.get(layer, rotations) for layer in range(self._layout.num_layers)]
        return np.stack([cache.view.inv_freq.numpy() for cache in layers])

    def _cache(self, view: RopeView, memory: MemorySpec) -> RotaryCache:
        if uses_tables(self._device):  # these follow the position of one session
            return RotaryCache(view, memory, self._layout.block_size, self._device)
        key = memory, view.inv_freq.numpy().tobytes(), view.attention_scale
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = RotaryCache(view, memory, self._layout.block_size, self._device)
        return known


def _own_ropes(model: ModelSpec) -> dict[int, RopeSpec]:
    """The embeddings of stored layers that have their own; without rotation all angles are 0."""
    found = {}
    for at, index in enumerate(model.stored_layers):
        layer = model.layer(index)
        if not layer.rotates:
            found[at] = replace(model.rope, rope_type="default", distance_scale=0.0)
        elif layer.rope is not None:
            found[at] = layer.rope
    return found
