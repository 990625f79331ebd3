"""The decoder: all of a Llama-like transformer except attention, which the caller supplies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moorage.workers.gpu.model.activations import gated
from moorage.workers.gpu.model.experts import run_experts, runs_at_once
from moorage.workers.gpu.model.linear import embedding, linear
from moorage.workers.gpu.model.mlp import run_mlp
from moorage.workers.gpu.model.norms import head_normalizer, normalizer
from moorage.workers.gpu.model.parameters import DecoderWeights, ExpertsWeights, LayerWeights, MlpWeights
from moorage.workers.gpu.model.residual import join_of
from moorage.workers.gpu.model.weights import Progress, load_weights, resolve_dtype
from moorage.workers.spec import ExpertsPlace, ModelSpec, WeightKind

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D]) -> [T, Hq, D]. q and k are un-rotated; all may be views."""

MLP_WORKSPACE_BYTES = 128 * 2**20
"""Most memory that the intermediate values of the feed-forward part take; longer inputs pass through it in pieces."""


class Heads(NamedTuple):
    """What one layer attends with: q [T, Hq, D], k and v [T, Hkv, D], un-rotated."""

    q: Tensor
    k: Tensor
    v: Tensor


class StepGraphs(Protocol):
    """A forward pass of few tokens that is prepared: CUDA graphs, or compiled calls on a CPU."""

    def takes(self, num_tokens: int) -> bool:
        """Whether a step of `num_tokens` is prepared."""

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """See Decoder.forward."""


class Decoder:
    """Weights of a model and their forward pass over the tokens of several sessions, laid end to end."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights) -> None:
        self.spec = spec
        self.weights = weights
        self._activate = gated(spec.activation)
        self._norm, self._norm_heads = normalizer(spec), head_normalizer(spec)
        self._join = join_of(spec, self._feed_forward)
        # Rounded as the reference rounds it, which multiplies in the type of the embeddings.
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=weights.dtype).item()
        self.graphs: StepGraphs | None = None
        """Run all that lies between two attentions at once, for few tokens. An engine sets them."""

    @classmethod
    def load(
        cls,
        directory: str | Path,
        spec: ModelSpec,
        dtype: str,
        device: torch.device | str,
        progress: Progress | None = None,
        weights: WeightKind = WeightKind.AUTO,
        experts: ExpertsPlace = ExpertsPlace.DEVICE,
    ) -> Decoder:
        """The decoder of a Hugging Face directory, in float32, bfloat16, float16 or, as auto, the checkpoint's type.

        `weights` says how its matrices are kept, `experts` where those of experts lie. Raises InvalidModel for a
        directory that does not match `spec`, ResourceExhausted for lack of memory.
        """
        torch_dtype = resolve_dtype(dtype, spec)
        device = torch.device(device)
        return cls(spec, load_weights(directory, spec, torch_dtype, device, progress, weights, experts))

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and hidden states."""
        return self.weights.dtype

    @property
    def waits_for_device(self) -> bool:
        """Whether the host must know results between two attentions: which experts to run."""
        experts = [
            layer.feed_forward.experts
            for layer in self.weights.layers
            if isinstance(layer.feed_forward, ExpertsWeights)
        ]
        return any(not runs_at_once(each, self.device, self.dtype) for each in experts)

    @property
    def device(self) -> torch.device:
        """The device of weights and hidden states."""
        return self.weights.norm.weight.device

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, hidden] after the final norm, of `token_ids`, int64 [T] on this device."""
        with torch.inference_mode():
            if self.graphs is not None and self.graphs.takes(len(token_ids)):
                return self.graphs.forward(token_ids, attend)
            hidden = self.embed(token_ids)
            heads = self.inputs(0, hidden)
            for index in range(len(self.weights.layers)):
                heads = self.between(index, hidden, attend(index, *self.split(heads)))
            return heads

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [T, hidden] of `token_ids`."""
        hidden = embedding(token_ids, self.weights.embed, self.dtype)
        return hidden if self._embedding_scale == 1.0 else hidden.mul_(self._embedding_scale)

    def split(self, heads: Tensor) -> Heads:
        """Views of `heads` [T, Hq + 2 Hkv, D]."""
        spec = self.spec
        return Heads(*heads.split_with_sizes([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1))

    def inputs(self, index: int, hidden: Tensor) -> Tensor:
        """Queries, keys and values of layer `index` in one tensor [T, Hq + 2 Hkv, D]."""
        spec, layer = self.spec, self.weights.layers[index]
        normed = hidden if layer.input_norm is None else self._norm(hidden, layer.input_norm)
        num_heads = spec.num_heads + 2 * spec.num_kv_heads
        heads = linear(normed, layer.qkv, layer.qkv_bias).view(hidden.shape[0], num_heads, spec.head_dim)
        if self._norm_heads is not None:
            self._norm_heads(heads, layer)
        return heads

    def between(self, index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """Runs all that lies between the attention of layer `index`, whose output is `attended`, and the next one.

        Adds to `hidden` in place. Returns the next layer's inputs or, after the last layer, the final norm's output.
        """
        layer = self.weights.layers[index]
        added = linear(attended.to(hidden.dtype).flatten(1), layer.output, layer.output_bias)
        self._join_in_pieces(layer, hidden, added)
        if index + 1 < len(self.weights.layers):
            return self.inputs(index + 1, hidden)
        return self._norm(hidden, self.weights.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits f32 [n, vocab] of `hidden` [n, hidden], which are rows that `forward` returned."""
        with torch.inference_mode():
            logits, cap = linear(hidden, self.weights.lm_head).float(), self.spec.logit_softcap
            if self.spec.logit_scale != 1.0:
                logits *= self.spec.logit_scale
            return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _join_in_pieces(self, layer: LayerWeights, hidden: Tensor, added: Tensor) -> None:
        """Adds attention's output and the feed-forward part to `hidden` in place, in pieces of bounded workspace."""
        bytes_per_token = 3 * self.spec.feed_forward_channels * hidden.element_size()
        at_once = max(1, MLP_WORKSPACE_BYTES // bytes_per_token)
        whole = hidden.shape[0] <= at_once
        pieces = (
            [(hidden, added)]
            if whole
            else zip(*(torch.split(x, at_once) for x in (hidden, added)), strict=True)
        )
        for piece, more in pieces:
            self._join(layer, piece, more)

    def _feed_forward(self, layer: LayerWeights, normed: Tensor) -> Tensor:
        if isinstance(layer.feed_forward, MlpWeights):
            return run_mlp(normed, layer.feed_forward, self._activate)
        assert self.spec.experts is not None
        return run_experts(normed, layer.feed_forward, self.spec.experts, self._activate)
