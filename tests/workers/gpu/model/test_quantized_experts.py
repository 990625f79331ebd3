"""Experts whose weights are kept in 8 bits: each token still meets its own experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.spec import WeightKind
from tests.tiny_models import build_tiny_checkpoint, random_prompt
from tests.workers.gpu.model.test_decoder import logits_of

MOST_KL = 0.02
"""Nats; a token that meets another expert is off by tenths."""


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_8_bits_say_nearly_what_floats_say(tmp_path: Path, family: str) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    prompt = random_prompt(tiny.spec, 60)
    expected = torch.log_softmax(tiny.logits(prompt), -1)
    decoder = Decoder.load(tiny.directory, tiny.spec, "float32", "cpu", weights=WeightKind.INT8)
    found = torch.log_softmax(logits_of(decoder, prompt), -1)
    assert (expected.exp() * (expected - found)).sum(-1).mean() < MOST_KL
    alone = torch.log_softmax(logits_of(decoder, prompt[:1]), -1)
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=1e-3)
