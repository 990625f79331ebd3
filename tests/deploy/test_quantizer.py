"""The quantizer that comes with the reference model is that model's own."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.formats.quantizer_file import read_quantizer

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "models" / "moorage-ref"


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_it_has_a_quantizer_for_each_number_of_bits(bits: int) -> None:
    spec = read_model_spec(MODEL)
    shape = (len(spec.stored_layers), spec.num_kv_heads, spec.head_dim)
    found = read_quantizer(MODEL / "quantizer.safetensors", bits, model_fingerprint(MODEL), shape)
    assert len(found.layers) == shape[0]
    assert mean(found.layer_bits) == bits
