"""What a file of quantizers says about its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.workers.kv.formats.quantizer_file import QuantizerHeader
from moorage.workers.spec import ModelSpec


def header_of(
    model: Path, spec: ModelSpec, bits: Sequence[int], data: Mapping[str, Any], settings: Mapping[str, Any]
) -> QuantizerHeader:
    """The header of a file for the model at `model`, whose shape is `spec`."""
    return QuantizerHeader(
        model=model_fingerprint(model),
        model_name=model.name,
        bits=tuple(bits),
        num_layers=len(spec.stored_layers),
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        data=data,
        settings=settings,
    )
