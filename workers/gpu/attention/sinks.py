"""Learned attention sinks: a logit of each query head that takes part in the softmax and has no value (GPT-OSS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class AttentionSinks:
    """Sinks of some layers, by layer; None where a layer has none."""

    def __init__(self, layers: Sequence[torch.Tensor | None]) -> None:
        """Each is [Hq]."""
        self._layers = [None if logits is None else logits.float() for logits in layers]

    def weigh(self, layer: int, out: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
        """Attention beside the layer's sinks, given `out` [..., Hq, D] over keys alone and `lse` [..., Hq] of these.

        The keys have the share exp(lse) / (exp(lse) + exp(sink)) of the softmax. `lse` itself stays that of the keys,
        so that parts are merged, and recall is measured, without sinks.
        """
        logits = self._layers[layer]
        return out if logits is None else out * torch.sigmoid(lse - logits)[..., None]
