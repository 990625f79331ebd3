"""Which layers slide and rotate, and with which rotary embedding, by the keys of config.json."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_pattern, with_rotation, with_sliding_rope
from moorage.workers.hf_rope import read_rope, read_sliding_rope
from moorage.workers.spec import LayerSpec, ModelSpec, RopeSpec

HEAD_DIM = 64


def fields(**values: Any) -> Fields:
    return Fields({"num_hidden_layers": 6, "max_position_embeddings": 4096, **values}, "config.json")


def model() -> ModelSpec:
    return ModelSpec("llama", 6, 64, 64, 4, 2, HEAD_DIM, 100, 4096, 1e-6, RopeSpec(theta=1e6))


@pytest.mark.parametrize(
    ("values", "full"),
    [
        ({}, [2, 5]),
        ({"sliding_window_pattern": 6}, [5]),
        ({"sliding_window_pattern": 1}, [0, 1, 2, 3, 4, 5]),
        ({"layer_types": ["full_attention"] + ["sliding_attention"] * 5, "sliding_window_pattern": 2}, [0]),
    ],
)
def test_every_nth_layer_attends_everything(values: dict[str, Any], full: list[int]) -> None:
    slides = read_pattern(fields(**values), default=3)
    assert [layer for layer, slid in enumerate(slides) if not slid] == full


SLIDING_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def test_layers_that_slide_have_their_own_rotary_embedding() -> None:
    """Gemma 3 in the keys of transformers 5, and in the older ones."""
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    newer = fields(rope_parameters={"full_attention": full, "sliding_attention": SLIDING_ROPE})
    older = fields(
        rope_theta=1e6, rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=10000.0
    )
    for config in (newer, older):
        rope = read_rope(config, HEAD_DIM, by_layer=True)
        assert (rope.rope_type, rope.theta, rope.factor) == ("linear", 1e6, 8.0)
        rope = read_sliding_rope(config, HEAD_DIM)
        assert (rope.rope_type, rope.theta, rope.factor, rope.rotary_dim) == ("default", 1e4, 1.0, HEAD_DIM)


def test_one_rotary_embedding_for_all_layers() -> None:
    config = fields(rope_theta=5e5)
    assert read_sliding_rope(config, HEAD_DIM) == read_rope(config, HEAD_DIM, by_layer=True)


def test_a_family_with_one_rotary_embedding_refuses_two() -> None:
    config = fields(rope_parameters={"full_attention": SLIDING_ROPE, "sliding_attention": SLIDING_ROPE})
    with pytest.raises(InvalidModel, match="rope_parameters: differs by layer type"):
        read_rope(config, HEAD_DIM)


def test_layers_take_what_is_theirs() -> None:
    slides = (True, True, False) * 2
    local = RopeSpec(theta=1e4)
    spec = with_rotation(with_sliding_rope(model(), slides, local), slides)
    assert [spec.layer(i) for i in (0, 2)] == [LayerSpec(rope=local), LayerSpec(rotates=False)]


def test_layers_without_a_difference_are_left_out() -> None:
    spec = model()
    assert with_rotation(spec, (True,) * 6) is spec
    assert with_sliding_rope(spec, (True,) * 6, spec.rope) is spec
