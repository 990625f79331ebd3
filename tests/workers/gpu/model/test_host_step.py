from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.host_step import MOST_TOKENS, HostStep
from moorage.workers.spec import WeightKind
from tests.tiny_models import FAMILIES, build_tiny_checkpoint

CPU = torch.device("cpu")


def attend(_layer, query, key, value):
    """What depends on all three, and on no other row."""
    group = query.shape[1] // value.shape[1]
    weight = (query * key.repeat_interleave(group, 1)).sum(-1, keepdim=True).tanh()
    return value.repeat_interleave(group, 1) * weight


def both(tmp_path: Path, family: str, kept: WeightKind, dtype: str = "float32") -> tuple[Decoder, Decoder]:
    """A decoder of torch operations, and one of the same weights with compiled steps."""
    tiny = build_tiny_checkpoint(family, tmp_path)
    plain = Decoder.load(tiny.directory, tiny.spec, dtype, CPU, weights=kept)
    compiled = Decoder(tiny.spec, plain.weights)
    if not HostStep.runs(compiled):
        pytest.skip("this shape is not compiled")
    compiled.graphs = HostStep(compiled)
    return plain, compiled


@pytest.mark.parametrize("kept", [WeightKind.FLOAT, WeightKind.INT8, WeightKind.INT4])
@pytest.mark.parametrize("family", FAMILIES)
def test_computes_what_torch_computes(tmp_path: Path, family: str, kept: WeightKind) -> None:
    plain, compiled = both(tmp_path, family, kept)
    for count in (1, 5, MOST_TOKENS):
        ids = torch.arange(count) * 3
        expected, found = plain.forward(ids, attend), compiled.forward(ids, attend)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(compiled.logits(found), plain.logits(expected), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kept", [WeightKind.FLOAT, WeightKind.INT4])
def test_a_row_does_not_depend_on_the_others(tmp_path: Path, kept: WeightKind) -> None:
    _, compiled = both(tmp_path, "llama3", kept)
    ids = torch.arange(7)
    together = compiled.forward(ids, attend)
    for row in range(7):
        assert torch.equal(compiled.forward(ids[row : row + 1], attend)[0], together[row])


def test_weights_of_16_bits_are_used_as_they_are(tmp_path: Path) -> None:
    plain, compiled = both(tmp_path, "llama3", WeightKind.FLOAT, "bfloat16")
    exact = Decoder.load(build_tiny_checkpoint("llama3", tmp_path).directory, plain.spec, "float32", CPU)
    ids = torch.arange(4)
    off = (compiled.forward(ids, attend) - exact.forward(ids, attend)).abs().mean()
    assert off < (plain.forward(ids, attend).float() - exact.forward(ids, attend)).abs().mean()
    assert compiled.logits(compiled.forward(ids, attend)).dtype == torch.float32


def test_longer_steps_are_left_to_torch(tmp_path: Path) -> None:
    plain, compiled = both(tmp_path, "llama3", WeightKind.FLOAT)
    ids = torch.arange(MOST_TOKENS + 1)
    assert torch.equal(compiled.forward(ids, attend), plain.forward(ids, attend))
