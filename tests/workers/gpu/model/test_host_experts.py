"""Experts in host memory: the same sums as on the device, whichever side computes, and their pinning."""

from __future__ import annotations

import pytest
import torch

from moorage.kernels.experts import route, sum_experts
from moorage.workers.gpu.model.activations import gated
from moorage.workers.gpu.model.allocation import allocate
from moorage.workers.gpu.model.host_experts import MOST_HOST_TOKENS, pin_experts, sum_host_experts
from moorage.workers.gpu.model.mlp import run_mlp
from moorage.workers.gpu.model.parameters import DecoderWeights, ExpertsWeights, MlpWeights, mlp_tensors
from moorage.workers.gpu.model.weight_plan import expert_bytes, plan_weights, planned_bytes
from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.spec import ExpertsPlace, WeightKind
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.transfer.test_pinning import CountingMemory

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["gpt_oss", "gpt_oss_mxfp4", "qwen2_moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def experts_of(weights: DecoderWeights) -> list[MlpWeights]:
    parts = (layer.feed_forward for layer in weights.layers)
    return [part.experts for part in parts if isinstance(part, ExpertsWeights)]


@pytest.mark.parametrize("kept", [WeightKind.AUTO, WeightKind.INT8])
@pytest.mark.parametrize("tokens", [0, 1, MOST_HOST_TOKENS, MOST_HOST_TOKENS + 9])
def test_few_and_many_tokens_give_the_same_sums(model: TinyModel, tokens: int, kept: WeightKind) -> None:
    spec = model.spec
    assert spec.experts is not None
    experts = experts_of(load_weights(model.directory, spec, torch.float32, CPU, kept=kept))[0]
    rows = torch.randn(tokens, spec.hidden_size)
    routing = route(torch.randn(tokens, spec.experts.num_experts), spec.experts.per_token, True)
    activate = gated(spec.activation)
    expected = sum_experts(
        rows,
        routing,
        spec.experts.num_experts,
        lambda expert, taken: run_mlp(taken, experts.of(expert), activate),
    )
    torch.testing.assert_close(
        sum_host_experts(rows, routing, experts, activate), expected, rtol=1e-5, atol=1e-5
    )


def test_only_experts_leave_the_device(model: TinyModel) -> None:
    """The device is one that holds nothing."""
    meta, plan = torch.device("meta"), plan_weights(model.spec, WeightKind.AUTO)
    weights = allocate(model.spec, torch.bfloat16, meta, plan, ExpertsPlace.HOST)
    on_host = [tensor for tensor in weights.tensors() if tensor.device == CPU]
    expected = [tensor for part in experts_of(weights) for tensor in mlp_tensors(part)]
    assert {id(tensor) for tensor in on_host} == {id(tensor) for tensor in expected}
    num_bytes = sum(tensor.nbytes for tensor in on_host)
    assert num_bytes == expert_bytes(model.spec, plan, 2)
    assert weights.num_bytes == planned_bytes(model.spec, plan, 2)


def test_all_experts_are_pinned_until_the_system_refuses(model: TinyModel) -> None:
    weights = load_weights(model.directory, model.spec, torch.float32, CPU)
    held = [tensor for part in experts_of(weights) for tensor in mlp_tensors(part)]
    memory = CountingMemory()
    assert pin_experts(weights, memory) == sum(tensor.nbytes for tensor in held)
    assert memory.held == {tensor.data_ptr(): tensor.nbytes for tensor in held}
    limited = CountingMemory(limit=held[0].nbytes)
    assert pin_experts(weights, limited) == held[0].nbytes
    assert limited.errors == 0
