"""The levels of quantizers, and what a quantizer must be to be used."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from moorage.workers.kv.formats.quantizer import LayerQuantizer, least_error_levels, normal_levels

# Table of levels in QLoRA (NeurIPS 2023), appendix E.
NF4 = [
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500),
    *(0.0, 0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
]


def layer_quantizer(bits: int = 2) -> LayerQuantizer:
    return LayerQuantizer(
        key_levels=normal_levels(bits),
        value_levels=normal_levels(bits),
        key_scale=np.ones((2, 4)),
        key_zero=np.zeros((2, 4)),
        key_low=-np.ones((2, 4)),
        key_high=np.ones((2, 4)),
    )


def test_normal_levels_are_those_published() -> None:
    np.testing.assert_allclose(normal_levels(4), NF4, atol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_levels_ascend_from_one_end_to_the_other(bits: int) -> None:
    levels = normal_levels(bits)
    assert levels.shape == (2**bits,)
    assert (np.diff(levels) > 0).all()
    assert (levels[0], levels[-1]) == (-1, 1)
    assert 0 in levels


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_levels_have_less_error_over_normal_numbers_than_those_of_least_error(bits: int) -> None:
    numbers = np.random.default_rng(bits).standard_normal(100_000)
    numbers = numbers[abs(numbers) <= 2.6] / 2.6

    def error(levels: np.ndarray) -> float:
        limits = (levels[1:] + levels[:-1]) / 2
        return float(((numbers - levels[np.searchsorted(limits, numbers)]) ** 2).mean())

    levels = least_error_levels(bits)
    assert error(levels) < error(normal_levels(bits))
    assert error(levels) < min(error(levels * factor) for factor in (0.95, 1.05))
    moved = np.eye(2**bits) * 0.02
    assert all(error(levels) < error(levels + sign * step) for step in moved for sign in (-1, 1))


def test_a_quantizer_keeps_its_own_float32_copies() -> None:
    scale = np.full((2, 4), 3.0)
    made = replace(layer_quantizer(), key_scale=scale)
    scale[:] = 5
    assert made.key_scale.dtype == np.float32
    assert (made.key_scale == 3).all()
    with pytest.raises(ValueError, match="read-only"):
        made.key_scale[0, 0] = 1


def test_without_feedback_each_channel_is_coded_for_itself() -> None:
    found = layer_quantizer().key_feedback
    assert found.shape == (2, 4, 4)
    assert not found.any()


def test_a_whole_quantizer_has_no_fault() -> None:
    assert layer_quantizer().fault(2) is None


@pytest.mark.parametrize(
    ("field", "values", "fault"),
    [
        ("key_levels", normal_levels(3), r"key_levels has shape \[8\], not \[4\]"),
        ("value_levels", [0, 0.5, 0.25, 1], "value_levels does not ascend"),
        ("value_levels", [-2, 0, 0.25, 1], "value_levels does not ascend"),
        ("value_levels", [-1, 0, 0.25, np.nan], "value_levels does not ascend"),
        ("key_zero", np.zeros((2, 3)), r"key_zero has shape \[2, 3\]"),
        ("key_zero", np.full((2, 4), np.inf), "key_zero has numbers that are not finite"),
        ("key_scale", np.full((2, 4), -1), "a range that ends below its beginning"),
        ("key_low", np.full((2, 4), 2), "a range that ends below its beginning"),
        ("key_feedback", np.zeros((2, 4, 3)), r"key_feedback is not finite numbers \[2, 4, 4\]"),
        ("key_feedback", np.full((2, 4, 4), np.nan), r"key_feedback is not finite numbers \[2, 4, 4\]"),
    ],
)
def test_what_cannot_be_used_is_named(field: str, values: object, fault: str) -> None:
    found = replace(layer_quantizer(), **{field: np.asarray(values)}).fault(2)
    assert found is not None
    assert re.search(fault, found)
