from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.workers.gpu.engine import chunk_size as module
from moorage.workers.gpu.engine.chunk_size import hiding_chunk, measure_rates, measured_chunk
from moorage.workers.sizes import LEAST_CHUNK, MOST_CHUNK
from moorage.workers.spec import AnchorType, KvLayout, KvType

LAYOUT = KvLayout(1, 2, 64, 16, KvType.FP16, AnchorType.QUEST, 1)


@pytest.mark.parametrize(
    ("link", "flops", "most", "chunk"),
    [  # 32 query heads, 8 KV heads of 128 in fp16: flops / (4 * link) tokens are needed
        (50e9, 600e12, 8192, 4096),
        (25e9, 165e12, 8192, 2048),
        (12e9, 300e12, 8192, 8192),
        (12e9, 300e12, 4096, 4096),
        (1e9, 600e12, 8192, 8192),
        (400e9, 600e12, 8192, 2048),
        (400e9, 600e12, 700, 700),
    ],
)
def test_known_machines(link, flops, most, chunk):
    assert hiding_chunk(32, 128, 2 * 8 * 128 * 2, link, flops, most) == chunk


def test_shortest_that_hides_a_piece_of_any_length(rng):
    for _ in range(200):
        heads, group, dim = (int(2 ** rng.integers(0, high)) for high in (4, 4, 9))
        link, flops = 10 ** rng.uniform(9, 12), 10 ** rng.uniform(12, 15)
        token_bytes = 2 * heads * dim * 2
        chunk = hiding_chunk(heads * group, dim, token_bytes, link, flops, MOST_CHUNK)
        past = int(rng.integers(1, 10**6))
        stream_s = past * token_bytes / link

        def attend_s(tokens, past=past, dim=dim, num_heads=heads * group, flops=flops):
            return 4 * past * tokens * num_heads * dim / flops

        assert LEAST_CHUNK <= chunk <= MOST_CHUNK
        assert np.log2(chunk) % 1 == 0
        assert chunk == MOST_CHUNK or attend_s(chunk) >= stream_s * (1 - 1e-9)
        assert chunk == LEAST_CHUNK or attend_s(chunk / 2) < stream_s


def test_rates_follow_from_the_times(monkeypatch):
    monkeypatch.setattr(module, "_QUERIES", 32)
    monkeypatch.setattr(module, "_KEYS", 64)
    seconds = iter((0.5, 0.25))

    def run_once(run, _device):
        run()
        return next(seconds)

    monkeypatch.setattr(module, "least_seconds", run_once)
    link, flops = measure_rates(torch.device("cpu"), LAYOUT, 4, torch.float32)
    assert link == 64 * 2**20
    assert flops == 4 * 32 * 64 * 4 * 64 / 0.25


def test_measured_where_the_tests_run(monkeypatch):
    monkeypatch.setattr(module, "_QUERIES", 32)
    found = measured_chunk(torch.device("cpu"), LAYOUT, 4, torch.float32, MOST_CHUNK)
    assert found in (2048, 4096, 8192)
