"""Presets and variants at one budget of attended tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.evals.fidelity.choices import PER_KV_HEAD, Choice, Frame, choices
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.evals.variants import parse_variant
from moorage.runtime.packaged import DEPLOY
from moorage.workers.errors import InvalidRequest
from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import AnchorType, HeadSelectMode, Positions

MODEL = DEPLOY / "models" / "moorage-ref"
SPEC = read_model_spec(MODEL)
FRAME = Frame(sinks=32, window=96)


def made(
    presets: str, *variants: str, budgets: tuple[int, ...] = (256,), config: Path | None = None
) -> list[Choice]:
    source = LocalConfig(config, None if config else MODEL)
    return choices(source, SPEC, presets.split(","), [parse_variant(v) for v in variants], budgets, FRAME)


def test_presets_bring_their_selection_and_store_at_equal_tokens() -> None:
    full, *others = made("full,ktransformers,inf-llm", budgets=(256, 512))
    assert (full.name, full.budget, full.attends_all) == ("full", None, True)
    assert [(choice.name, choice.budget, choice.memory.selection.topk) for choice in others] == [
        ("ktransformers", 256, 2),
        ("ktransformers", 512, 4),
        ("inf-llm", 256, 2),
        ("inf-llm", 512, 4),
    ]
    assert [choice.layout.anchor_type for choice in others[::2]] == [AnchorType.DYNAMIC, AnchorType.REPR_TOPK]
    for choice in (full, *others):
        memory = choice.memory
        assert (memory.retention.sinks, memory.retention.window) == (32, 96)
        assert (memory.selection.execution_block, memory.recall_every) == (0, 0)
        assert memory.positions.scheme is Positions.ROPE
    assert full.layout == others[0].layout


@pytest.mark.parametrize("name", ["local.yaml", "reference.yaml"])
def test_a_files_own_selection_gives_way_and_its_positions_stay(name: str) -> None:
    _, choice = made("ktransformers", config=DEPLOY / name)
    assert (choice.layout.anchor_type, choice.layout.block_size) == (AnchorType.DYNAMIC, 128)
    assert choice.memory.positions.scheme is Positions.CLAMPED


def test_a_variant_that_names_its_budget_is_measured_once() -> None:
    _, own, *both = made(
        "full", "own:memory.preset=ktransformers,memory.topk=5,memory.n_init=128",
        "shared:memory.preset=ktransformers,long_context.block_size=32", budgets=(64, 128),
    )  # fmt: skip
    assert (own.budget, own.memory.selection.topk, own.memory.retention.sinks) == (None, 5, 128)
    assert [(choice.budget, choice.memory.selection.topk) for choice in both] == [(64, 2), (128, 4)]


def test_a_store_of_codes_selects_single_keys() -> None:
    keys = "memory.preset=full,long_context.anchor_type=KEY_CODES,long_context.block_size=64"
    full, *found = made("full", f"keys:{keys}", f"own:{keys},memory.topk_keys=96", budgets=(64, 128))
    assert [(choice.name, choice.budget, choice.memory.selection.topk_keys) for choice in found] == [
        ("keys", 64, 64),
        ("keys", 128, 128),
        ("own", None, 96),
    ]
    assert full.attends_all
    assert not any(choice.attends_all for choice in found)


def test_bytes_of_the_index_are_those_of_one_key() -> None:
    source = LocalConfig(None, MODEL)
    full, choice = choices(source, SPEC, [], [PER_KV_HEAD], [64], FRAME)
    assert choice.memory.selection.head_select_mode is HeadSelectMode.SEPARATE
    # A block of 32 keys has two bounds of 64 channels in two bytes.
    assert choice.index_bytes == pytest.approx(2 * 64 * 2 / 32)
    assert full.layout == choice.layout


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(InvalidRequest, match="--preset morage: no such preset; did you mean moorage"):
        made("morage")
