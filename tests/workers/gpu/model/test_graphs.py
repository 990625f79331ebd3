"""Recorded pieces, on a CPU where recording is running again into the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.graphs import MAX_TOKENS, PieceGraphs
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of


def record(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    result = run()

    def again() -> None:
        result.copy_(run())

    return again, result


def refuse(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    del run
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.fixture(scope="module", params=["llama3", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Something of the right shape that depends on all of its arguments."""
    mixed = (q.view(len(q), k.shape[1], -1, q.shape[2]) * k[:, :, None]).sum(-1, keepdim=True) + layer
    return (torch.tanh(mixed) * v[:, :, None]).reshape(q.shape)


def test_the_same_hidden_states_for_every_number_of_tokens(model: TinyModel) -> None:
    plain = Decoder.load(model.directory, model.spec, "float32", "cpu")
    recorded = Decoder.load(model.directory, model.spec, "float32", "cpu")
    recorded.graphs = PieceGraphs(recorded, record)
    for count in (1, 2, 3, 5, 8, 1, 3, MAX_TOKENS, MAX_TOKENS + 1):
        ids = torch.randint(2, model.spec.vocab_size, (count,))
        got, want = (decoder.forward(ids, attend) for decoder in (recorded, plain))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_results_outlive_the_next_step(model: TinyModel) -> None:
    decoder = Decoder.load(model.directory, model.spec, "float32", "cpu")
    decoder.graphs = PieceGraphs(decoder, record)
    first = decoder.forward(torch.tensor([3]), attend)
    kept = first.clone()
    decoder.forward(torch.tensor([9]), attend)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_a_session_gets_the_same_tokens(model: TinyModel) -> None:
    prompt, axes = prompt_of(model, 120), memory(topk=2)
    want = [r.token_id for r in Driver(model.directory, model.spec).generate(prompt, axes, (64,), 20)]
    driver = Driver(model.directory, model.spec)
    driver.worker.decoder.graphs = PieceGraphs(driver.worker.decoder, record)
    assert [r.token_id for r in driver.generate(prompt, axes, (64,), 20)] == want


def test_a_device_that_refuses_runs_without(model: TinyModel) -> None:
    decoder = Decoder.load(model.directory, model.spec, "float32", "cpu")
    want = decoder.forward(torch.tensor([3, 4]), attend)
    decoder.graphs = PieceGraphs(decoder, refuse)
    with pytest.warns(UserWarning, match="operation not permitted when stream is capturing$"):
        got = decoder.forward(torch.tensor([3, 4]), attend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(decoder.forward(torch.tensor([3, 4]), attend), want)
