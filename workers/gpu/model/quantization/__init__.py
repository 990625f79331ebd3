"""Checkpoints whose weights are quantised, one file for each format; `quantization_config` names it."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.quantization import awq, compressed_tensors, fp8, gptq
from moorage.workers.gpu.model.quantization.base import FormatReader, StoredTensor, WeightFormat
from moorage.workers.hf_fields import Fields

__all__ = ["FORMATS", "StoredTensor", "WeightFormat", "read_format"]

FORMATS: Mapping[str, FormatReader] = {
    "awq": awq.read,
    "gptq": gptq.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "fbgemm_fp8": fp8.read_fbgemm,
}
"""`quant_method` -> what reads the rest of `quantization_config`."""


def read_format(config: Fields) -> WeightFormat | None:
    """The format that a config.json names; None for plain floats. Raises InvalidModel for one that is not read."""
    values = config.child("quantization_config")
    if values is None:
        return None
    name = values.get("quant_method")
    if name not in FORMATS:
        raise InvalidModel(
            f"{values.source}: quant_method {name!r} is not supported; use a checkpoint of {', '.join(FORMATS)}, a "
            "GGUF file, or plain float weights with model.weights int8 or int4"
        )
    return FORMATS[str(name)](values)
