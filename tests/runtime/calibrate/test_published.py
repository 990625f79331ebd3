"""A quantizer file of KVQuant's release becomes a quantizer; one for another model is one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.published import import_quantizer
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import ModelSpec, RopeSpec

SPEC = ModelSpec(
    family="llama",
    num_layers=2,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    vocab_size=100,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope=RopeSpec(),
)
CHANNELS = SPEC.num_kv_heads * SPEC.head_dim
CENTROIDS = np.float32([[0.1], [-0.8], [0.7], [-0.2]])
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # by torch's own pickling

Entries = dict[str, tuple[Any, ...]]


def release(rng: np.random.Generator, norm: tuple[Any, ...] = ()) -> Entries:
    """What KVQuant's calibration leaves for a model of these sizes: thresholds as tensors of float64."""
    found: Entries = {}
    for layer in range(SPEC.num_layers):
        for part in ("k_proj", "v_proj"):
            low = torch.from_numpy(-1 - rng.random((1, CHANNELS)))
            found[f"model.layers.{layer}.self_attn.{part}"] = (low + 3, low, [CENTROIDS], *norm)
    return found


def saved(folder: Path, entries: Any) -> Path:
    file = folder / "quantizers.pickle"
    file.write_bytes(pickle.dumps(entries, pickle.HIGHEST_PROTOCOL))
    return file


def test_thresholds_become_scales_and_centroids_levels(tmp_path: Path, rng: np.random.Generator) -> None:
    entries = release(rng)
    found = import_quantizer(saved(tmp_path, entries), SPEC)
    assert (found.bits, len(found.layers)) == (2, 2)
    for index, layer in enumerate(found.layers):
        high, low = (x.numpy().reshape(4, 8) for x in entries[f"model.layers.{index}.self_attn.k_proj"][:2])
        np.testing.assert_allclose(layer.key_low, low, rtol=1e-6)
        np.testing.assert_allclose(layer.key_high, high, rtol=1e-6)
        np.testing.assert_allclose(layer.key_zero + layer.key_scale, high, rtol=1e-6)
        np.testing.assert_allclose(layer.key_zero - layer.key_scale, low, rtol=1e-6)
        np.testing.assert_array_equal(layer.key_levels, np.float32([-0.8, -0.2, 0.1, 0.7]))
        np.testing.assert_array_equal(layer.value_levels, layer.key_levels)


@pytest.mark.parametrize(
    "norm", [(torch.tensor(0.5), torch.tensor(0.25)), ([0.5, np.float64(0.25)],), (np.float32(0.5), 0.25, -1)]
)
def test_q_norm_moves_the_levels(norm: tuple[Any, ...], tmp_path: Path, rng: np.random.Generator) -> None:
    found = import_quantizer(saved(tmp_path, release(rng, norm)), SPEC)
    np.testing.assert_allclose(found.layers[1].value_levels, [-0.15, 0.15, 0.3, 0.6], rtol=1e-6)


def _without(entries: Entries) -> object:
    return {name: entry for name, entry in entries.items() if "1.self_attn.v" not in name}


def _with_five_centroids(entries: Entries) -> object:
    return {name: (*entry[:2], [np.zeros((5, 1))]) for name, entry in entries.items()}


def _with_a_third_layer(entries: Entries) -> object:
    return entries | {"model.layers.2.self_attn.k_proj": entries["model.layers.1.self_attn.k_proj"]}


def _narrower(entries: Entries) -> object:
    return {name: (entry[0][:, 1:], *entry[1:]) for name, entry in entries.items()}


def _turned_round(entries: Entries) -> object:
    return {name: (entry[1], entry[0], *entry[2:]) for name, entry in entries.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without, "layer 1: v_proj has no thresholds and centroids"),
        (_with_five_centroids, "it has 5 centroids; 4, 8 or 16 are read"),
        (_with_a_third_layer, "it has layer 2, and the model 2 layers"),
        (_narrower, "layer 0: k_proj has 31 channels, the model 4 KV heads of 8"),
        (_turned_round, "layer 0: a key channel has a range that ends below its beginning"),
        (lambda _: [1, 2], "it has no dictionary of layers"),
        (lambda entries: dict.fromkeys(entries, 1), "layer 0: k_proj has no thresholds"),
        (lambda entries: dict.fromkeys(entries, ("a", "b", "c")), "layer 0: an array is missing"),
        (lambda _: {}, "layer 0: k_proj has no thresholds"),
    ],
)
def test_a_file_of_another_model_is_one_line(
    change: Callable[[Entries], object], reason: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = saved(tmp_path, change(release(rng)))
    with pytest.raises(InvalidRequest, match=rf"quantizers\.pickle: no quantizer for this model \({reason}"):
        import_quantizer(file, SPEC)


def test_a_model_that_kvquant_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="llama and mistral alone, and the model is qwen3"):
        import_quantizer(tmp_path / "any", replace(SPEC, family="qwen3"))
