from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from moorage.workers.gpu.engine import engine
from moorage.workers.gpu.engine.compute_type import WORTH, attention_dtype, bfloat16_speed
from moorage.workers.hf_config import read_model_spec
from tests.engine_driver import FULL, Driver

MODEL = Path(__file__).resolve().parents[4] / "deploy" / "models" / "moorage-ref"
CPU = torch.device("cpu")


@pytest.mark.parametrize("weights", [torch.float32, torch.float16])
def test_a_cpu_attends_in_float32(weights):
    assert attention_dtype(weights, CPU) == torch.float32


def test_a_gpu_attends_in_the_type_of_the_weights():
    assert attention_dtype(torch.float16, torch.device("cuda")) == torch.float16


def test_a_cpu_attends_in_bfloat16_where_that_is_faster():
    is_faster = bfloat16_speed(torch.get_num_threads()) >= WORTH
    assert attention_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if is_faster else torch.float32)


@pytest.fixture
def text():
    """Token ids of a piece of the document that the reference model was made for."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    document = MODEL.parents[1] / "documents" / "python_reference.txt"
    with document.open(encoding="utf-8") as lines:
        return tokenizer.encode(lines.read(6000)).ids[:400]


def test_bfloat16_answers_as_float32_does(monkeypatch, text):
    """KL from what the same weights say with attention in float32, mean over positions, under 0.005."""
    spec = replace(read_model_spec(MODEL), dtype="bfloat16")
    said = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(engine, "attention_dtype", lambda *_, dtype=dtype: dtype)
        driver = Driver(MODEL, spec, dtype="bfloat16")
        assert driver.worker.attention_dtype() == str(dtype).removeprefix("torch.")
        found = driver.distributions(text, FULL, [*range(100, len(text), 100)])
        said.append(torch.stack([found[end] for end in sorted(found)]).double())
    wide, narrow = said
    divergence = (wide.exp() * (wide - narrow)).sum(dim=1)
    assert divergence.abs().max() > 0
    assert divergence.mean() < 0.005
