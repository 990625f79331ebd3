"""Files of quantizers: safetensors, with what they were made from as JSON in the header.

For each number of bits b the tensors are `b.NAME` [num_layers, ...], one for each field of `LayerQuantizer`. The
feedback of keys is the same at all bits: one tensor `key_feedback` in fp16, which a file without it does not have.
Where layers have different numbers of bits, `layer_bits` of the header says which, and the quantizer is put together
from those of these bits, layer by layer. The header names the model by its fingerprint, the text and the settings of
the calibration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer

KIND = "moorage-quantizer-1"
"""Value of `kind` in the header; the number rises when the meaning of the file changes."""
QUANTIZER_MARK = KIND.encode()
"""Stands in the first bytes of each such file, and in no other."""
_HEADER = "quantizer"
_FEEDBACK = "key_feedback"
_FIELDS = tuple(each.name for each in fields(LayerQuantizer) if each.name != _FEEDBACK)
BITS = (2, 3, 4)
"""That a quantizer can have."""


@dataclass(frozen=True, slots=True)
class QuantizerHeader:
    """What a file of quantizers says about itself."""

    model: str
    """The fingerprint of the model's files."""
    model_name: str
    bits: tuple[int, ...]
    """The numbers of bits for which it has quantizers."""
    num_layers: int
    """Layers that the stores hold; those that attend a sliding window are not among them."""
    num_kv_heads: int
    head_dim: int
    data: Mapping[str, Any]
    """The text: name, hash, number of tokens."""
    settings: Mapping[str, Any]
    """How levels and statistics were made."""
    layer_bits: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The bits of each layer, by their mean as text. Where a mean is not here all layers have it."""
    kind: str = KIND

    def bits_of(self, bits: int) -> tuple[int, ...]:
        """The bits of each layer in the quantizer of `bits` bits."""
        return tuple(self.layer_bits.get(str(bits), (bits,) * self.num_layers))


def write_quantizers(file: Path, header: QuantizerHeader, quantizers: Sequence[Quantizer]) -> None:
    """Writes a file with `quantizers`, each of one number of bits: those of the header's `bits`, and what its
    `layer_bits` have. Raises InvalidConfig where it can't.
    """
    from safetensors.numpy import save

    used = {each for bits in header.bits for each in header.bits_of(bits)}
    assert used <= {each.bits for each in quantizers}
    tensors = {
        f"{each.bits}.{name}": np.stack([getattr(layer, name) for layer in each.layers])
        for each in quantizers
        for name in _FIELDS
    }
    feedback = [layer.key_feedback for each in quantizers[:1] for layer in each.layers]
    if any(shares.any() for shares in feedback):
        tensors[_FEEDBACK] = np.stack(feedback).astype(np.float16)
    written = save(tensors, {_HEADER: json.dumps(asdict(header))})
    try:
        file.write_bytes(written)
    except OSError as error:
        raise InvalidConfig(
            f"{file}: can't be written ({error.strerror or error}); name another file"
        ) from None


def read_quantizer_header(file: Path) -> QuantizerHeader:
    """What `file` says about itself; its tensors are not read. Raises InvalidConfig when it is no quantizer file."""
    header, _ = _read(file, ())
    return header


def read_quantizer(file: Path, bits: int, model: str, shape: tuple[int, int, int]) -> Quantizer:
    """The quantizer of `bits` bits for the model whose fingerprint is `model`.

    `shape` is (num_layers, num_kv_heads, head_dim) of the stores. Raises InvalidConfig for a file of another model or
    without these bits, and for one that is damaged.
    """
    header, tensors = _read(file, None)
    if header.model != model:
        raise InvalidConfig(
            f"{file}: quantizer of another model, {header.model_name} ({header.model[:8]}), not of the model that is "
            f"served ({model[:8]}); make one with runtime calibrate --model"
        )
    if (header.num_layers, header.num_kv_heads, header.head_dim) != shape:
        raise _damaged(file, f"it is for {_shown(header)}, the model has {_sizes(*shape)}")
    if bits not in header.bits:
        has = ", ".join(f"NUQ{each}" for each in header.bits)
        raise InvalidConfig(
            f"{file}: no quantizer for NUQ{bits}, only for {has}; make one with runtime calibrate --bits {bits}"
        )
    feedback = _feedback(file, header, tensors.get(_FEEDBACK))
    uniform = {each: _uniform(file, header, tensors, feedback, each) for each in {*header.bits_of(bits)}}
    return Quantizer(bits, tuple(uniform[own][layer] for layer, own in enumerate(header.bits_of(bits))))


def _uniform(
    file: Path,
    header: QuantizerHeader,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    feedback: np.ndarray[Any, Any],
    bits: int,
) -> tuple[LayerQuantizer, ...]:
    """The quantizers of all layers at `bits` bits. Raises InvalidConfig for a damaged one."""
    arrays = []
    for name in _FIELDS:
        array = tensors.get(f"{bits}.{name}")
        if array is None or array.shape[:1] != (header.num_layers,) or array.dtype != np.float32:
            raise _damaged(file, f"tensor {bits}.{name} is not float32 [{header.num_layers}, ...]")
        arrays.append(array)
    layers = tuple(LayerQuantizer(*rows) for rows in zip(*arrays, feedback, strict=True))
    for index, layer in enumerate(layers):
        fault = layer.fault(bits) or _wrong_shape(layer, header)
        if fault:
            raise _damaged(file, f"layer {index} at {bits} bits: {fault}")
    return layers


def _feedback(
    file: Path, header: QuantizerHeader, found: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    """The feedback of keys of all layers; zeros where the file has none."""
    wanted = header.num_layers, header.num_kv_heads, header.head_dim, header.head_dim
    if found is None:
        return np.zeros(wanted, np.float32)
    if found.shape != wanted or found.dtype != np.float16:
        raise _damaged(file, f"tensor {_FEEDBACK} is not float16 {list(wanted)}")
    return found.astype(np.float32)


def _read(file: Path, names: Sequence[str] | None) -> tuple[QuantizerHeader, dict[str, np.ndarray[Any, Any]]]:
    """The header, and those tensors of `names` that the file has; all where no names are given."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(_HEADER)
            header = _parsed(file, text)
            wanted = [name for name in opened.keys() if names is None or name in names]  # noqa: SIM118
            return header, {name: opened.get_tensor(name) for name in wanted}
    except OSError as error:
        raise InvalidConfig(
            f"{file}: can't be read ({error.strerror or error}); check the path of the quantizer file"
        ) from None
    except SafetensorError as error:
        raise _damaged(file, f"not a whole safetensors file, {error}") from None


def _parsed(file: Path, text: str | None) -> QuantizerHeader:
    """The header as a record. Raises InvalidConfig for one that is not of this kind."""
    if text is None:
        raise _damaged(file, "a safetensors file, but not one of quantizers")
    try:
        values = json.loads(text)
        header = QuantizerHeader(**{**values, "bits": tuple(values["bits"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(file, "its header is not that of quantizers") from None
    if header.kind != KIND:
        raise _damaged(file, f"its kind is {header.kind!r}, not {KIND!r}")
    counts = (*header.bits, header.num_layers, header.num_kv_heads, header.head_dim)
    if not _are_layer_bits(header):
        raise _damaged(file, "its layer_bits are not 2, 3 or 4 for each layer")
    texts = (header.model, header.model_name)
    if not (
        all(type(each) is int and each > 0 for each in counts) and all(isinstance(t, str) for t in texts)
    ):
        raise _damaged(file, "its header is not that of quantizers")
    return header


def _are_layer_bits(header: QuantizerHeader) -> bool:
    """Whether `layer_bits` of a file are what they should be."""
    return isinstance(header.layer_bits, dict) and all(
        isinstance(own, list)
        and len(own) == header.num_layers
        and all(type(each) is int and each in BITS for each in own)
        for own in header.layer_bits.values()
    )


def _wrong_shape(layer: LayerQuantizer, header: QuantizerHeader) -> str | None:
    if layer.key_scale.shape == (header.num_kv_heads, header.head_dim):
        return None
    return (
        f"key_scale has shape {list(layer.key_scale.shape)}, not [{header.num_kv_heads}, {header.head_dim}]"
    )


def _shown(header: QuantizerHeader) -> str:
    return _sizes(header.num_layers, header.num_kv_heads, header.head_dim)


def _sizes(num_layers: int, num_kv_heads: int, head_dim: int) -> str:
    return f"{num_layers} layers, {num_kv_heads} KV heads of {head_dim}"


def _damaged(file: Path, reason: str) -> InvalidConfig:
    return InvalidConfig(
        f"{file}: not a usable quantizer file ({reason}); make it again with runtime calibrate"
    )
