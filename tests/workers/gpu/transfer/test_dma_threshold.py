from __future__ import annotations

import pytest
import torch

from moorage.workers.gpu.transfer import dma_threshold as module
from moorage.workers.gpu.transfer.dma_threshold import PIECE_BYTES, dma_threshold, measure_threshold

KIB = 1024


@pytest.mark.parametrize(
    ("gather_ms", "dma_ms", "expected_kib"),
    [
        (1.0, {16: 9.0, 64: 3.0, 256: 0.9, 1024: 0.8}, 256),
        (1.0, {1024: 0.8, 256: 0.9, 64: 3.0, 16: 9.0}, 256),
        (1.0, {16: 1.0, 64: 1.0}, 16),
        (0.5, {16: 9.0, 64: 3.0, 256: 0.9, 1024: 0.8}, 2048),
        # A small size that wins by chance does not count while a larger one loses.
        (1.0, {16: 0.9, 64: 3.0, 256: 0.9}, 256),
    ],
)
def test_threshold_of_known_times(gather_ms, dma_ms, expected_kib):
    found = dma_threshold(gather_ms / 1e3, {kib * KIB: ms / 1e3 for kib, ms in dma_ms.items()})
    assert found == expected_kib * KIB


@pytest.mark.parametrize("num_blocks", [1, 6])
def test_measured_from_whole_copies_of_all_blocks(monkeypatch, num_blocks):
    pytest.importorskip("triton")
    monkeypatch.setattr(module, "SCRATCH_BYTES", 64 * KIB)
    blocks = torch.randn(num_blocks, 2, 2, 32, 64).half()
    copied: list[bool] = []
    timed, empty_like = module.least_seconds, torch.empty_like
    targets: list[torch.Tensor] = []

    def keep(like, **options):
        targets.append(empty_like(like, **options))
        return targets[-1]

    def run_and_look(run, device):
        targets[0].zero_()
        seconds = timed(run, device)
        copied.append(torch.equal(targets[0], blocks[: len(targets[0])]))
        return seconds

    monkeypatch.setattr(torch, "empty_like", keep)
    monkeypatch.setattr(module, "least_seconds", run_and_look)
    assert measure_threshold(blocks, torch.device("cpu")) in (*PIECE_BYTES, 2 * PIECE_BYTES[-1])
    assert copied == [True] * (1 + len(PIECE_BYTES))
    assert len(targets[0]) == min(num_blocks, 4)
