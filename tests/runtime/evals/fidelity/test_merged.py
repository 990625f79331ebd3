"""Several runs of the comparison as one table: each cell once, and the measures' worth over all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.cli import main
from moorage.runtime.evals.fidelity.choices import Frame
from moorage.runtime.evals.fidelity.figures import Cell
from moorage.runtime.evals.fidelity.merged import merge
from moorage.runtime.evals.fidelity.report import Report
from moorage.workers.errors import InvalidRequest


def cell(choice: str, kl: float, mass: float, passages: int = 2, length: int = 512) -> Cell:
    return Cell(
        task="copy", length=length, choice=choice, budget=64, passages=passages, attended=200.0, index_bytes=8.0,
        kl=kl, kl_interval=None, kl_by_passage=[kl] * passages, agreement=1.0, flip_margin=None,
        lost_hits=[(0, 3, 0.5)], hits=0.5, full_hits=0.5, mass=mass, low_mass=mass / 2, retrieval_mass=None,
        low_retrieval_mass=None, mass_by_head=[[mass]],
    )  # fmt: skip


def written(folder: Path, *cells: Cell, window: int = 64, **changed: Any) -> Path:
    heads = [(0, 1), (1, 0)] if folder.name == "a" else [(1, 0)]
    found = Report("model", Frame(32, window), list(cells), heads, {}).as_json() | changed
    folder.mkdir()
    (folder / "fidelity.json").write_text(json.dumps(found))
    return folder


def test_runs_stand_in_one_table(tmp_path: Path) -> None:
    keys, blocks, longer = (
        cell("keys", 0.01, 0.98),
        cell("blocks", 0.6, 0.8),
        cell("keys", 0.03, 0.9, length=1024),
    )
    first, second = written(tmp_path / "a", longer, keys), written(tmp_path / "b", blocks)
    report = merge([first, second])
    assert report.cells == [keys, blocks, longer], "by task, length and KL"
    assert report.retrieval_heads == [(0, 1), (1, 0)]
    assert report.predictions["mass"] == pytest.approx(-1)
    assert report.predictions["retrieval_mass"] is None


def test_of_a_cell_in_two_runs_that_of_more_passages_stands(tmp_path: Path) -> None:
    few, many = cell("keys", 0.01, 0.98), cell("keys", 0.02, 0.98, passages=6)
    folders = [written(tmp_path / "a", few), written(tmp_path / "b", many)]
    assert merge(folders).cells == merge(folders[::-1]).cells == [many]
    again = written(tmp_path / "c", replace(few, kl=0.5))
    assert merge([folders[0], again]).cells == [few], "of equal ones the first"


def test_results_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    own = cell("keys", 0.01, 0.98)
    folder = written(tmp_path / "a", own)
    given = json.loads((folder / "fidelity.json").read_text())
    for later in ("estimated_mass", "lost_hits", "flip_margin"):
        del given["cells"][0][later]
    (folder / "fidelity.json").write_text(json.dumps(given))
    assert merge([folder]).cells == [replace(own, lost_hits=[])]


def test_what_cannot_stand_in_one_table_is_named(tmp_path: Path) -> None:
    first = written(tmp_path / "a", cell("keys", 0.01, 0.98))
    wider = written(tmp_path / "b", cell("keys", 0.01, 0.98), window=128)
    with pytest.raises(InvalidRequest, match=r"window of 128.*name runs of one model, sinks and window"):
        merge([first, wider])
    other = written(tmp_path / "c", cell("keys", 0.01, 0.98), model="another")
    with pytest.raises(InvalidRequest, match="another: 32 sinks"):
        merge([first, other])
    for text in ("{", "[]", '{"cells": []}'):
        (first / "fidelity.json").write_text(text)
        with pytest.raises(InvalidRequest, match="no result of `runtime eval fidelity`"):
            merge([first])
    with pytest.raises(InvalidRequest, match="no result"):
        merge([tmp_path])


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folders = [
        written(tmp_path / "a", cell("keys", 0.01, 0.98)),
        written(tmp_path / "b", cell("blocks", 0.6, 0.8)),
    ]
    with pytest.raises(SystemExit) as left:
        main(["eval", "fidelity-report", *map(str, folders), "--output", str(tmp_path / "all")])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "keys" in printed
    assert "mean mass -1.00" in printed
    assert merge([tmp_path / "all"]).cells == merge(folders).cells
    assert "| copy | 512 | keys |" in (tmp_path / "all" / "fidelity.md").read_text()
    assert (tmp_path / "all" / "fidelity.png").read_bytes().startswith(b"\x89PNG")
