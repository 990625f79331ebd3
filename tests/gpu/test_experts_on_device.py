"""Mixtures of experts on a GPU: all at once, one by one, and from host memory, against the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.graphs import PieceGraphs, cuda_capture
from moorage.workers.gpu.model.host_experts import MOST_HOST_TOKENS
from moorage.workers.spec import ExpertsPlace
from tests.tiny_models import build_tiny_checkpoint
from tests.workers.gpu.model.test_graphs import attend

COUNTS = (1, 3, MOST_HOST_TOKENS + 1)


@pytest.mark.parametrize("place", ExpertsPlace)
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss_mxfp4"])
def test_wherever_experts_lie_results_are_the_same(
    tmp_path: Path, device: torch.device, family: str, place: ExpertsPlace
) -> None:
    model = build_tiny_checkpoint(family, tmp_path)
    here = Decoder.load(model.directory, model.spec, "float32", device, experts=place)
    plain = Decoder.load(model.directory, model.spec, "float32", "cpu")
    for count in COUNTS:
        ids = torch.randint(2, model.spec.vocab_size, (count,))
        got, want = here.forward(ids.to(device), attend).cpu(), plain.forward(ids, attend)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_graphs_hold_all_experts_at_once(tmp_path: Path, device: torch.device) -> None:
    model = build_tiny_checkpoint("qwen2_moe", tmp_path)
    recorded, eager = (Decoder.load(model.directory, model.spec, "bfloat16", device) for _ in range(2))
    if recorded.waits_for_device:
        pytest.skip("this GPU computes experts one by one")
    recorded.graphs = PieceGraphs(recorded, cuda_capture())
    for count in (1, 3, 16, 1):
        ids = torch.randint(2, model.spec.vocab_size, (count,), device=device)
        got, want = (decoder.forward(ids, attend) for decoder in (recorded, eager))
        torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
