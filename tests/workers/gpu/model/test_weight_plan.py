from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moorage.kernels.code_kinds import CodeKind
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.parameters import MlpWeights
from moorage.workers.gpu.model.parts import Part
from moorage.workers.gpu.model.quantized import QuantizedMatrix, StackedMatrix, dequantize, quantize
from moorage.workers.gpu.model.weight_plan import group_size_for, plan_weights, planned_bytes, stored_matrix
from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.spec import WeightKind
from tests.tiny_models import FAMILIES, TinyModel, build_tiny_checkpoint

CPU = torch.device("cpu")


def load(tiny: TinyModel, kept: WeightKind):
    return load_weights(tiny.directory, tiny.spec, torch.float32, CPU, kept=kept)


@pytest.mark.parametrize("kept", WeightKind)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_planned_is_allocated(tmp_path: Path, family: str, kept: WeightKind) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    planned = planned_bytes(tiny.spec, plan_weights(tiny.spec, kept), 4)
    assert load(tiny, kept).num_bytes == planned


@pytest.mark.parametrize(("kept", "bits"), [(WeightKind.INT8, 8), (WeightKind.INT4, 4)])
def test_parts_are_quantised_as_they_are_read(tmp_path: Path, kept: WeightKind, bits: int) -> None:
    tiny = build_tiny_checkpoint("llama2", tmp_path)
    plain, found = load(tiny, WeightKind.FLOAT).layers[0], load(tiny, kept).layers[0]
    assert isinstance(plain.feed_forward, MlpWeights)
    assert isinstance(found.feed_forward, MlpWeights)
    pairs = (
        (plain.qkv, found.qkv),
        (plain.output, found.output),
        (plain.feed_forward.gate_up, found.feed_forward.gate_up),
        (plain.feed_forward.down, found.feed_forward.down),
    )
    for weight, matrix in pairs:
        assert isinstance(weight, torch.Tensor)
        assert isinstance(matrix, QuantizedMatrix)
        assert torch.equal(dequantize(matrix), dequantize(quantize(weight, bits, matrix.group_size)))


def test_embeddings_and_head_have_8_bits(tmp_path: Path) -> None:
    tiny = build_tiny_checkpoint("llama2", tmp_path)
    plan = plan_weights(tiny.spec, WeightKind.INT4)
    hidden, intermediate = (
        group_size_for(n) or 0 for n in (tiny.spec.hidden_size, tiny.spec.intermediate_size)
    )
    assert plan[None, Part.EMBED] == MatrixKind(CodeKind.INT8, hidden)
    assert plan[0, Part.DOWN] == MatrixKind(CodeKind.INT4, intermediate, has_minima=True)
    weights = load(tiny, WeightKind.INT4)
    assert isinstance(weights.embed, QuantizedMatrix)
    assert (weights.lm_head is weights.embed) == tiny.spec.tie_word_embeddings


def test_what_a_checkpoint_holds_quantised_stays(tmp_path: Path) -> None:
    spec = build_tiny_checkpoint("llama2", tmp_path).spec
    stored = {(0, Part.DOWN): MatrixKind(CodeKind.TABLE4, 32)}
    matrices = tuple(stored_matrix(layer, part, kind) for (layer, part), kind in stored.items())
    spec = replace(spec, stored_matrices=matrices)
    assert plan_weights(spec, WeightKind.AUTO) == stored
    assert plan_weights(spec, WeightKind.INT8)[0, Part.DOWN].code is CodeKind.TABLE4
    assert plan_weights(spec, WeightKind.INT8)[1, Part.DOWN].code is CodeKind.INT8
    assert plan_weights(spec, WeightKind.FLOAT) == {}


def test_rows_that_no_group_divides_stay_float(tmp_path: Path) -> None:
    spec = replace(build_tiny_checkpoint("llama2", tmp_path).spec, intermediate_size=40)
    plan = plan_weights(spec, WeightKind.INT8)
    assert (0, Part.DOWN) not in plan
    assert (0, Part.GATE) in plan


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [WeightKind.INT8, WeightKind.INT4])
def test_a_decoder_computes_with_the_weights_that_its_codes_stand_for(
    tmp_path: Path, family: str, kept: WeightKind
) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    decoder = Decoder.load(tiny.directory, tiny.spec, "float32", CPU, weights=kept)
    again = Decoder(tiny.spec, as_floats(decoder.weights))
    ids = torch.arange(7)
    heads = tiny.spec.num_heads // tiny.spec.num_kv_heads

    def attend(_layer, _query, _key, value):
        return value.repeat_interleave(heads, 1)

    for rows in (ids, ids.repeat(9)):
        hidden, expected = (each.forward(rows, attend) for each in (decoder, again))
        torch.testing.assert_close(hidden, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(decoder.logits(hidden), again.logits(hidden), rtol=1e-3, atol=1e-3)


def as_floats(value):
    """The same weights as plain tensors."""
    if isinstance(value, QuantizedMatrix):
        return dequantize(value)
    if isinstance(value, StackedMatrix):
        return torch.cat([as_floats(part) for part in value.parts])
    if isinstance(value, tuple):
        return tuple(as_floats(part) for part in value)
    if value is None or isinstance(value, torch.Tensor | torch.dtype | int):
        return value
    names = value.__dataclass_fields__
    floats = {name: as_floats(getattr(value, name)) for name in names}
    if floats.get("num_experts"):
        number = floats["num_experts"]
        floats |= {
            name: floats[name].reshape(number, -1, floats[name].shape[-1]) for name in ("gate_up", "down")
        }
    return type(value)(**floats)
