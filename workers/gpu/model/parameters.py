"""The weights of a decoder, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Matrices are [out, in]. Query, key and value are one matrix in this order; so are gate and up."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None
    output_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole decoder. With tied embeddings `lm_head` is the same tensor as `embed`."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors; a tensor that stands twice counts once."""
        return sum({id(tensor): tensor.nbytes for tensor in self.tensors()}.values())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors; those of tied embeddings stand twice."""
        yield from (self.embed, self.norm, self.lm_head)
        for layer in self.layers:
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    yield tensor
