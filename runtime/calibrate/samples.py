"""Keys, values and gradients of a text's windows, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from moorage.runtime.calibrate.dense import DenseDecoder, LayerRows
from moorage.runtime.config.units import format_bytes
from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.model.decoder import Decoder

_BYTES = 8
"""Of a key and a value in memory with their gradients: float16 and bfloat16."""


@dataclass(frozen=True, slots=True)
class LayerSamples:
    """Of one layer, over all windows [W, T, Hkv, D]."""

    keys: Tensor
    """float16, as are values."""
    values: Tensor
    key_gradients: Tensor
    """Of the summed loss, bfloat16, as are those by values."""
    value_gradients: Tensor


def sample(
    decoder: Decoder, windows: Sequence[Sequence[int]], on_window: Callable[[float], None]
) -> list[LayerSamples]:
    """Samples of the stored layers from windows of one length; `on_window` gets the loss of each, in nats per token.

    Raises ResourceExhausted where they do not fit the memory.
    """
    spec, dense = decoder.spec, DenseDecoder(decoder)
    shape = (len(windows), len(windows[0]), spec.num_kv_heads, spec.head_dim)
    needed = _BYTES * len(spec.stored_layers) * torch.Size(shape).numel()
    available = psutil.virtual_memory().available
    if needed > available:
        raise ResourceExhausted(
            f"calibrate: {format_bytes(needed)} of keys and values do not fit the {format_bytes(available)} of free "
            "memory; use fewer --windows"
        )
    found = [_empty(shape) for _ in spec.stored_layers]
    for index, window in enumerate(windows):
        loss, layers = dense.rows(torch.tensor(window, device=decoder.device))
        for samples, rows in zip(found, layers, strict=True):
            _put(samples, index, rows)
        on_window(loss)
    return found


def _empty(shape: tuple[int, ...]) -> LayerSamples:
    keys, values = (torch.empty(shape, dtype=torch.float16) for _ in range(2))
    return LayerSamples(keys, values, *(torch.empty(shape, dtype=torch.bfloat16) for _ in range(2)))


def _put(samples: LayerSamples, index: int, rows: LayerRows) -> None:
    samples.keys[index], samples.values[index] = rows.keys, rows.values
    samples.key_gradients[index], samples.value_gradients[index] = rows.key_gradients, rows.value_gradients
