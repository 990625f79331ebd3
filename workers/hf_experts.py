"""The keys of a config.json that say which layers have experts, and how many."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ExpertsSpec, ModelSpec

MOST_EXPERTS, MOST_INTERMEDIATE = 2**16, 2**20
"""Numbers of experts and of their channels beyond these are taken for mistakes."""


def with_experts(spec: ModelSpec, experts: ExpertsSpec, dense_layers: Collection[int] = ()) -> ModelSpec:
    """`spec` with experts in every layer but `dense_layers`."""
    layers = (replace(spec.layer(i), has_experts=i not in dense_layers) for i in range(spec.num_layers))
    return replace(spec, experts=experts, layers=tuple(layers))


def read_expert_counts(config: Fields) -> tuple[int, int]:
    """The number of experts, by either name that transformers has for it, and how many of them a token uses.

    Raises InvalidModel.
    """
    local = config.get("num_experts") is None and config.get("num_local_experts") is not None
    name = "num_local_experts" if local else "num_experts"
    number = config.positive_int(name, most=MOST_EXPERTS)
    per_token = config.positive_int("num_experts_per_tok")
    if per_token > number:
        raise config.wrong("num_experts_per_tok", f"at most {name} {number}")
    return number, per_token


def read_dense_layers(config: Fields, num_layers: int) -> frozenset[int]:
    """Qwen's layers without experts: those of `mlp_only_layers`, and all but every `decoder_sparse_step`-th one.

    Raises InvalidModel.
    """
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(index) is int for index in listed):
        raise config.wrong("mlp_only_layers", "a list of numbers of layers")
    step = config.positive_int("decoder_sparse_step", 1)
    dense = {index for index in range(num_layers) if index in listed or (index + 1) % step}
    if len(dense) == num_layers:
        raise InvalidModel(
            f"{config.source}: mlp_only_layers and decoder_sparse_step leave no layer with experts; correct them, or "
            "use the architecture without experts"
        )
    return frozenset(dense)
