"""The files of the model families: what each must say, and what no other file says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model import families
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.families.llama import FAMILY as LLAMA
from moorage.workers.gpu.model.naming import Slot
from moorage.workers.gpu.model.parts import part_shapes
from moorage.workers.hf_config import read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_tensors import checkpoint_tensors, present_name
from moorage.workers.spec import ModelSpec


def smallest(family: str) -> ModelSpec:
    """A published model of the family, with one layer."""
    model = next(iter(FAMILIES[family].published.values()))
    return replace(read_spec(Fields(model.config(), family), FAMILIES[family]), num_layers=1)


def test_every_module_is_the_family_of_its_name() -> None:
    modules = {path.stem for path in Path(families.__path__[0]).glob("*.py")} - {"__init__"}
    assert modules == set(FAMILIES) >= {"internlm2", "llama", "mistral", "qwen2", "qwen3"}


def test_no_two_families_claim_one_architecture_or_one_published_name() -> None:
    everything = FAMILIES.values()
    names = Counter(name for family in everything for name in (*family.architectures, *family.published))
    assert max(names.values()) == 1
    assert set(MODEL_PRESETS) == {name for family in everything for name in family.published}


def test_families_are_read_without_torch() -> None:
    code = (
        "import sys, moorage.workers.gpu.model.families; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("family", "way"),
    [(name, way) for name in FAMILIES for way in range(1 + len(FAMILIES[name].other_tensors))],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_fills_every_part_once(family: str, way: int, tied: bool) -> None:
    """A part that a family forgets to name would keep whatever its memory held."""
    spec = replace(smallest(family), tie_word_embeddings=tied)
    tensors = (FAMILIES[family].tensors, *FAMILIES[family].other_tensors)[way]
    prefix = tensors.layer_prefix.format(0)
    names = {f"{prefix}{name}{suffix}" for name in tensors.layer for suffix in ("", ".weight")}
    weights = [tensor for tensor in checkpoint_tensors(spec, names) if tensor.kind == "weight"]
    every_expert = range(spec.experts.num_experts if spec.experts else 0)
    filled = Counter(
        (part, expert)
        for tensor in weights
        for part in tensor.parts
        for expert in (every_expert if tensor.stacked else [tensor.expert])
    )
    wanted = Counter(
        (part, expert)
        for part, shape in part_shapes(spec, spec.layer(0)).items()
        for expert in (every_expert if len(shape) == 3 else [None])
    )
    assert filled == wanted


def test_a_value_that_a_family_does_not_accept_is_refused() -> None:
    config = LLAMA.published["llama-3-8b"].config() | {"hidden_act": "gelu"}
    with pytest.raises(InvalidModel, match="hidden_act is 'gelu'; it must be silu"):
        read_spec(Fields(config, "config.json"), LLAMA)


def test_older_names_are_those_of_one_family() -> None:
    """Yi's first checkpoints, which count as Llama, call the norms ln1 and ln2."""
    older, present = "model.layers.0.ln1.weight", "model.layers.0.input_layernorm.weight"
    assert present_name(older, "llama") == present_name(present, "llama") == present
    assert present_name(older, "internlm2") == older


def test_a_packed_tensor_fills_its_parts_group_by_group() -> None:
    """Two groups of two rows for the first part and one for the second."""
    first, second = torch.zeros(4, 3), torch.zeros(2, 3)
    slot = Slot((first, second), groups=2)
    assert slot.shape == (6, 3)
    slot.fill(torch.arange(6.0)[:, None].expand(6, 3))
    assert first[:, 0].tolist() == [0, 1, 3, 4]
    assert second[:, 0].tolist() == [2, 5]
