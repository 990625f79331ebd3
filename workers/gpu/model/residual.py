"""How attention's output and the feed-forward part join the hidden states: one function for each `Residual`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from moorage.workers.gpu.model.norms import AddNormalize, Normalize, add_normalizer, normalizer
from moorage.workers.gpu.model.parameters import LayerWeights
from moorage.workers.spec import ModelSpec, Residual

FeedForward = Callable[[LayerWeights, Tensor], Tensor]
"""(layer, normed rows [T, hidden]) -> what the feed-forward part adds to them."""
Join = Callable[[LayerWeights, Tensor, Tensor], None]
"""(layer, hidden [T, hidden], attention's output [T, hidden]): adds this and the feed-forward part to `hidden`."""


@dataclass(frozen=True, slots=True)
class Joins:
    """The functions of one model; `hidden` is changed in place, and `added` may be."""

    feed_forward: FeedForward
    norm: Normalize
    add_norm: AddNormalize
    scale: float
    """Factor on what is added."""

    def pre(self, layer: LayerWeights, hidden: Tensor, added: Tensor) -> None:
        """Adds both parts as Residual.PRE says."""
        assert layer.post_norm is not None
        normed = self.add_norm(hidden, self._scaled(added), layer.post_norm)
        hidden += self._scaled(self.feed_forward(layer, normed))

    def post(self, layer: LayerWeights, hidden: Tensor, added: Tensor) -> None:
        """Adds both parts as Residual.POST says."""
        assert layer.attention_out_norm is not None
        assert layer.mlp_out_norm is not None
        hidden += self._scaled(self.norm(added, layer.attention_out_norm))
        hidden += self._scaled(self.norm(self.feed_forward(layer, hidden), layer.mlp_out_norm))

    def sandwich(self, layer: LayerWeights, hidden: Tensor, added: Tensor) -> None:
        """Adds both parts as Residual.SANDWICH says."""
        assert layer.attention_out_norm is not None
        assert layer.post_norm is not None
        assert layer.mlp_out_norm is not None
        added = self._scaled(self.norm(added, layer.attention_out_norm))
        normed = self.add_norm(hidden, added, layer.post_norm)
        hidden += self._scaled(self.norm(self.feed_forward(layer, normed), layer.mlp_out_norm))

    def parallel(self, layer: LayerWeights, hidden: Tensor, added: Tensor) -> None:
        """Adds both parts as Residual.PARALLEL says: the feed-forward part takes the rows that attention took."""
        assert layer.input_norm is not None
        more = self.feed_forward(layer, self.norm(hidden, layer.input_norm))
        hidden += self._scaled(more.add_(added))

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.scale == 1.0 else added.mul_(self.scale)


def join_of(spec: ModelSpec, feed_forward: FeedForward) -> Join:
    """The function of a model."""
    joins = Joins(feed_forward, normalizer(spec), add_normalizer(spec), spec.residual_scale)
    return {
        Residual.PRE: joins.pre,
        Residual.POST: joins.post,
        Residual.SANDWICH: joins.sandwich,
        Residual.PARALLEL: joins.parallel,
    }[spec.residual]
