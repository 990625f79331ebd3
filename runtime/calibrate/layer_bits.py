"""Which layers get more bits than others, at the same number on the mean.

An error in the keys of one layer can cost a hundred times what it costs in another. The codecs themselves measure
what a layer gains by one bit more and what another loses by one bit less, on blocks of the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from moorage.kernels.packed_blocks.layout import PackedFamily
from moorage.runtime.calibrate.fitting import BLOCK
from moorage.runtime.calibrate.samples import LayerSamples
from moorage.workers.kv.formats.packed import PackedBlocks
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer
from moorage.workers.spec import PACKED_TOKENS, BlockShape

WORTH = 1.5
"""How many times what it costs elsewhere a bit must gain. Few bits cost more than the quadratic form says."""
_MOST_BLOCKS = 96
"""Blocks, spread over the windows, that are packed and unpacked."""


def spread_bits(costs: Sequence[Mapping[int, float]], bits: int) -> tuple[int, ...]:
    """The bits of each layer: `bits`, or one more or less, `bits` on the mean. `costs` has those of a layer by bits.

    The layer that gains most by one more is paired with the one that loses least by one less, and so on. Where costs
    do not say what one more or one less would cost, all layers have `bits`.
    """
    found = [bits] * len(costs)
    if not all({bits - 1, bits, bits + 1} <= set(each) for each in costs):
        return tuple(found)
    gains = {layer: each[bits] - each[bits + 1] for layer, each in enumerate(costs)}
    losses = {layer: each[bits - 1] - each[bits] for layer, each in enumerate(costs)}
    while len(gains) > 1:
        more = max(gains, key=lambda layer: gains[layer])
        less = min((layer for layer in losses if layer != more), key=lambda layer: losses[layer])
        if gains[more] < WORTH * losses[less]:
            break
        found[more], found[less] = bits + 1, bits - 1
        for layer in (more, less):
            del gains[layer], losses[layer]
    return tuple(found)


def coding_cost(samples: LayerSamples, quantizer: LayerQuantizer, sinks: int) -> float:
    """What the errors of keys and values cost, the mean of a token, after the first `sinks` of each window.

    It is their quadratic form under the Fisher information of each head: the mean product of the gradients by two
    channels.
    """
    rows, gradients = _blocks(samples, sinks)
    errors = _decoded(rows, quantizer) - rows.float()
    products = torch.einsum("nchbd,nchbe->chde", gradients, gradients) / (len(rows) * rows.shape[3])
    return float(torch.einsum("nchbd,chde,nchbe->", errors, products, errors)) / (len(rows) * rows.shape[3])


def _blocks(samples: LayerSamples, sinks: int) -> tuple[Tensor, Tensor]:
    """At most `_MOST_BLOCKS` blocks of keys and values, fp16 [N, 2, Hkv, B, D], and of their gradients, fp32."""
    kinds = ((samples.keys, samples.values), (samples.key_gradients, samples.value_gradients))
    size = min(BLOCK, (samples.keys.shape[1] - sinks) // PACKED_TOKENS * PACKED_TOKENS)
    found = []
    for kind in kinds:
        rows = torch.stack([each[:, sinks:] for each in kind], 1)
        whole = rows.shape[2] // size * size
        blocks = (
            rows[:, :, :whole].reshape(len(rows), 2, -1, size, *rows.shape[3:]).transpose(1, 2).flatten(0, 1)
        )
        step = -(-len(blocks) // _MOST_BLOCKS)
        found.append(blocks[::step].transpose(2, 3).contiguous())
    return found[0], found[1].float()


def _decoded(rows: Tensor, quantizer: LayerQuantizer) -> Tensor:
    """Blocks [N, 2, Hkv, B, D] after they were packed and unpacked, fp32."""
    num, _, heads, size, dim = rows.shape
    format = PackedBlocks(PackedFamily(quantizer.bits, outliers=True))
    codec = format.codec(BlockShape(heads, size, dim), Quantizer(quantizer.bits, (quantizer,)))
    pages, blocks = np.arange(num, dtype=np.int32), rows.numpy().view(np.uint16)
    stored = np.zeros((num, codec.layout_of(0).block_bytes), np.uint8)
    codec.encode(0, blocks, stored, pages)
    found = np.empty_like(blocks)
    codec.decode(0, stored, pages, found, pages)
    return torch.from_numpy(found.view(np.float16).astype(np.float32))
