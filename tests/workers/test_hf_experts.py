"""Keys of config.json about experts: what they say, and one line for what they can't."""

from __future__ import annotations

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ExpertScores, ModelSpec


def read(family: str, **changes: object) -> ModelSpec:
    config = next(iter(FAMILIES[family].published.values())).config() | changes
    return read_spec(Fields(config, "config.json"), FAMILIES[family])


def sparse(spec: ModelSpec) -> list[int]:
    return [i for i in range(spec.num_layers) if spec.layer(i).has_experts]


def test_the_number_of_experts_has_two_names() -> None:
    for family in ("mixtral", "qwen3_moe"):
        for changes in (
            {"num_experts": 12, "num_local_experts": None},
            {"num_local_experts": 12, "num_experts": None},
        ):
            experts = read(family, **changes).experts
            assert experts is not None
            assert experts.num_experts == 12


def test_the_weights_of_experts_are_divided_by_their_sum_where_config_says_so() -> None:
    for normalized, scores in ((True, ExpertScores.SOFTMAX_NORMALIZED), (False, ExpertScores.SOFTMAX)):
        experts = read("qwen3_moe", norm_topk_prob=normalized).experts
        assert experts is not None
        assert experts.scores is scores


def test_layers_without_experts_lie_between() -> None:
    assert sparse(read("qwen2_moe", num_hidden_layers=6)) == [0, 1, 2, 3, 4, 5]
    assert sparse(read("qwen2_moe", num_hidden_layers=6, decoder_sparse_step=2)) == [1, 3, 5]
    assert sparse(read("qwen2_moe", num_hidden_layers=6, mlp_only_layers=[0, 5])) == [1, 2, 3, 4]
    both = read("qwen2_moe", num_hidden_layers=6, decoder_sparse_step=3, mlp_only_layers=[2])
    assert sparse(both) == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "num_experts is missing"),
        ({"num_experts": 0}, "num_experts is 0; it must be a positive integer"),
        ({"num_experts": 10**9}, "num_experts is 1000000000; it must be at most"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok is 129; it must be at most num_experts 128"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"moe_intermediate_size": 2**30}, "moe_intermediate_size is 1073741824; it must be at most"),
        ({"mlp_only_layers": ["1"]}, "mlp_only_layers is .* it must be a list of numbers of layers"),
        ({"decoder_sparse_step": 1000}, "leave no layer with experts"),
        ({"use_sliding_window": True}, "use_sliding_window is True; it must be false"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidModel, match=f"^config.json: .*{message}") as caught:
        read("qwen3_moe", **changes)
    assert "\n" not in str(caught.value)
