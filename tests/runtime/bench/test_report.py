"""The JSON form of a report, and what the comparison with an earlier one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.bench.report import Report, Row, compare, format_seconds
from moorage.workers.errors import InvalidRequest


def test_a_row_as_json_has_what_it_has_and_nothing_else() -> None:
    row = Row("gather", 0.5, None, 2, 10**9, 0.9, {"memcpy": 0.9})
    assert row.as_json() == {
        "name": "gather",
        "median_s": 0.5,
        "threads": 2,
        "bytes": 10**9,
        "gb_per_s": 2.0,
        "ratio_to_limit": 0.9,
        "ratio_to": {"memcpy": 0.9},
    }
    assert Row("decode", 0.01, 4096).as_json() == {
        "name": "decode",
        "median_s": 0.01,
        "context_tokens": 4096,
        "ratio_to": {},
    }


def test_comparison_says_what_fell_and_ignores_what_is_new_or_gone(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    before = Report(
        {}, [Row("a", 1.0, 1, 1, ratio_to={"x": 4.0, "gone": 1.0}), Row("b", 1.0, ratio_to_limit=0.8)]
    )
    before.write_ratios(file)
    assert "median_s" not in file.read_text()
    now = [
        Row("a", 9.0, 1, 1, ratio_to={"x": 2.9, "new": 1.0}),
        Row("a", 1.0, 1, 2, ratio_to={"x": 0.1}),
        Row("b", 9.0, ratio_to_limit=0.7),
    ]
    falls, count = compare(now, file, 0.25)
    assert count == 2
    assert [(fall.key, fall.what, fall.before, fall.now) for fall in falls] == [(("a", 1, 1), "x", 4.0, 2.9)]
    assert compare(now, file, 0.3)[0] == []


def test_comparison_without_a_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--keep"):
        compare([], tmp_path / "none.json", 0.1)


def test_report_writes_valid_json(tmp_path: Path) -> None:
    report = Report({"cores": 2})
    report.add([Row("a", 1e-6)], ["n"])
    report.add([], ["n"])
    report.write(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["name"] == "a"
    assert report.notes == ["n"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (5e-5, "50 µs"), (3e-9, "3 ns"), (0.0, "0 ns")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
