"""Recorded pieces against the same pieces launched one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.graphs import PieceGraphs, cuda_capture
from tests.tiny_models import build_tiny_checkpoint
from tests.workers.gpu.model.test_graphs import attend


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_graphs_equal_single_launches(tmp_path: Path, device: torch.device, family: str, dtype: str) -> None:
    model = build_tiny_checkpoint(family, tmp_path)
    recorded, eager = (Decoder.load(model.directory, model.spec, dtype, device) for _ in range(2))
    recorded.graphs = PieceGraphs(recorded, cuda_capture())
    for count in (1, 3, 16, 1):
        ids = torch.randint(2, model.spec.vocab_size, (count,), device=device)
        got, want = (decoder.forward(ids, attend) for decoder in (recorded, eager))
        tolerance = 1e-4 if dtype == "float32" else 5e-2
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
