"""Formats side by side on the embedded model, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.cli import main
from moorage.runtime.evals.formats.choices import format_variants
from moorage.runtime.evals.variants import Variant
from moorage.workers.errors import InvalidRequest

MODEL = Path(__file__).parents[4] / "deploy" / "models" / "moorage-ref"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(("eval", "formats", *arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


def test_formats_and_settings_of_ones_own_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    chosen = [
        "--formats",
        "FP16,INT8",
        "--variant",
        "small blocks:memory.preset=full,long_context.block_size=32",
    ]
    tasks = ["--tasks", "perplexity,passkey", "--lengths", "384", "--samples", "1"]
    windows = ["--window", "256", "--windows", "2", "--output", str(tmp_path / "out"), "--json", "-"]
    assert run("--model", str(MODEL), *chosen, *tasks, *windows) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "formats.json").read_text()) == report
    first, packed, small = report["formats"]
    assert [row["name"] for row in report["formats"]] == ["FP16", "INT8", "small blocks"]
    # 4 layers with K and V of 2 heads of 64 in two bytes each; scales and zeros come to the single bytes of INT8.
    assert first["kv_bytes"] == small["kv_bytes"] == 4 * 2 * 2 * 64 * 2
    assert 1.8 < packed["ratio"] < 2
    assert 5 < first["perplexity"]["value"] < 200
    assert 0 < abs(packed["perplexity"]["change"]) < 0.01
    assert small["perplexity"]["change"] == pytest.approx(0, abs=1e-3)
    assert [cell["score"] for row in report["formats"] for cell in row["retrieved"]] == [1, 1, 1]
    assert (tmp_path / "out" / "formats.png").stat().st_size > 0
    lines = (tmp_path / "out" / "formats.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| FP16", "| INT8", "| small blocks"]


def test_each_format_is_measured_under_each_preset() -> None:
    found = format_variants(["fp16", "FP32"], ["full", "moorage"], None)
    assert [variant.name for variant in found] == [
        "FP16, full",
        "FP32, full",
        "FP16, moorage",
        "FP32, moorage",
    ]
    assert found[1].overrides == ("long_context.kv_type=FP32", "memory.preset=full")


def test_formats_that_can_use_a_quantizer_get_its_file(tmp_path: Path) -> None:
    file = tmp_path / "quantizer.safetensors"
    found = format_variants(["FP16", "INT4", "NUQ3"], ["full"], file)
    assert [f"kv_store.quantizer={file}" in variant.overrides for variant in found] == [False, False, True]


@pytest.mark.parametrize(
    ("formats", "more", "word"),
    [(["FP15"], [], "FP15"), (["FP16", "FP32"], [Variant("FP32")], "named twice")],
)
def test_unknown_formats_and_doubled_names_are_refused(
    formats: list[str], more: list[Variant], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        format_variants(formats, ["full"], None, more)


@pytest.mark.parametrize(
    ("flags", "word", "code"),
    [
        ([], "--model", 2),
        (["--model", str(MODEL), "--tasks", "poetry"], "poetry", 2),
        (["--model", str(MODEL), "--formats", "FP15"], "FP15", 1),
        (["--model", str(MODEL), "--variant", "broken"], "NAME:section.key=value", 1),
    ],
)
def test_refusals_are_in_words(
    capsys: pytest.CaptureFixture[str], flags: list[str], word: str, code: int
) -> None:
    assert run(*flags) == code
    assert word in capsys.readouterr().err
