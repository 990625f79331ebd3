"""The sweep on the embedded model, as small as it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.cli import main
from moorage.runtime.cli.eval_recall import DEFAULT_CONFIG as LOCAL
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.presets import PRESETS, Preset
from moorage.runtime.config.resolve import resolve_settings
from moorage.runtime.evals.sweep import points, points_of_presets
from moorage.workers.spec import AnchorType


def test_points_that_make_no_sense_are_left_out() -> None:
    found = points(
        [("QUEST", "rotated"), ("REPR_TOPK", "plain"), ("FIXED", "plain")],
        [1, 3],
        [32, 48],
        [96],
        ["off", "prompt"],
    )
    assert all(point.block_size % point.anchor_num == 0 for point in found)
    assert not any(point.anchor_type == "REPR_TOPK" and point.anchor_num == 3 for point in found)
    assert len(found) == len(set(found)) == 2 * (3 + 2 + 3)


def test_presets_bring_their_own_anchors_and_blocks_at_one_budget() -> None:
    found = points_of_presets(["moorage", "ktransformers"], [512], LOCAL)
    assert [(point.preset, point.anchor_type, point.block_size, point.prefill) for point in found] == [
        ("moorage", "KEY_CODES", 64, "exact"),
        ("ktransformers", "DYNAMIC", 128, "exact"),
        ("ktransformers", "DYNAMIC", 128, "configured"),
    ]
    assert {point.anchor_space for point in found} == {"plain"}
    rope = points_of_presets(["ktransformers"], [512], LOCAL, ["memory.positions=rope"])
    assert {point.anchor_space for point in rope} == {"rotated"}
    for point in found:
        config = load_cluster_config(LOCAL, point.overrides())
        preset = resolve_settings(config)
        selection = preset.memory.selection
        assert selection.selected_tokens(preset.store.block_size) == 512
        assert selection.execution_block == (0 if point.prefill == "exact" else 128)
    with pytest.raises(ValueError, match="no such preset; did you mean moorage"):
        points_of_presets(["morage"], [512], LOCAL)


def test_codes_of_keys_are_swept_by_numbers_of_single_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    differs = {"topk_keys": 256, "block_size": 64, "anchor_type": AnchorType.KEY_CODES}
    monkeypatch.setitem(PRESETS, "keys", Preset("keys", "", differs, {"topk": 4}))
    found = [
        *points([("KEY_CODES", "plain")], [1, 2], [24, 32], [96], ["off", "prompt"]),
        *points_of_presets(["keys"], [96], LOCAL),
    ]
    assert [(point.block_size, point.anchor_num, point.anchor_space) for point in found] == [
        (32, 1, "plain"),
        (64, 1, "plain"),
    ]
    for point in found:
        selection = resolve_settings(load_cluster_config(LOCAL, point.overrides())).memory.selection
        assert (selection.topk, selection.topk_keys, selection.execution_block) == (None, 96, 0)
    rope = points_of_presets(["keys"], [96], LOCAL, ["memory.positions=rope"])
    assert [point.anchor_space for point in rope] == ["rotated"]


def test_one_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    arguments = [
        "--anchors",
        "QUEST",
        "--anchor-nums",
        "1",
        "--block-sizes",
        "32",
        "--budgets",
        "128",
        "--length",
        "1K",
        "--samples",
        "2",
    ]
    with pytest.raises(SystemExit) as left:
        main(["eval", "sweep", *arguments, "--json", str(path)])
    assert left.value.code == 0, capsys.readouterr().err
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["anchor_type"], row["anchor_space"], row["budget_tokens"], row["samples"]) == (
        "QUEST", "plain", 128, 2,
    )  # fmt: skip
    # Four chosen blocks, the sink block, and a window of 256 that begins anywhere in its first block.
    assert 128 + 32 + 256 <= row["attended_tokens"] <= 128 + 32 + 256 + 31
    assert 0 < row["recall"] <= row["oracle"] + 1e-4 <= 1 + 2e-4
    assert "QUEST" in capsys.readouterr().out
