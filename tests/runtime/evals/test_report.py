"""Tables, pictures and the page of finished runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moorage.runtime.cli import main
from moorage.runtime.evals.pictures import Point, as_svg, draw, save_png
from moorage.runtime.evals.report import find_runs, render
from moorage.workers.errors import InvalidRequest
from tests.reading_engine import ReadingEngine
from tests.toy_server import ToyServer, toy_server

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server(engine=ReadingEngine()) as running:
        yield running


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["eval", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture(scope="module")
def folder(server: ToyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pass-key runs, one by depth with two presets, and one of perplexity."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--address", server.address, "--samples", "2"]
    flags = ["--style", "garbage", "--lengths", "256,1K"]
    assert (
        run(
            "passkey",
            *common,
            *flags,
            "--preset",
            "full,keen",
            "--depths",
            "0,1",
            "--output",
            str(folder / "a"),
        )
        == 0
    )
    assert run("passkey", *common, *flags, "--output", str(folder / "b")) == 0
    text = folder / "text.txt"
    text.write_text("a <b> & c. " * 100)
    perplexity = ["--data", str(text), "--lengths", "100,200", "--output", str(folder / "c")]
    assert run("perplexity", *common, *perplexity) == 0
    return folder


class Page(HTMLParser):
    """Collects what a page would load, and its open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [
            value or ""
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith("#")
        ]


def test_runs_leave_a_table_and_a_picture(folder: Path) -> None:
    for name, picture in (("a", "passkey.png"), ("b", "passkey.png"), ("c", "perplexity.png")):
        assert (folder / name / picture).read_bytes().startswith(b"\x89PNG")
    table = (folder / "a" / "summary.md").read_text()
    assert table.startswith("## passkey: toy, full, keen\n\n| preset | length | depth | accuracy |")
    assert "| keen | 1K | 0 | 100.0% | 2 |" in table
    assert "| full | 1K | 0 | 0.0% | 2 |" in table
    assert "- mean accuracy 100.0% (keen)" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| loss | perplexity |" in (folder / "c" / "summary.md").read_text()


def test_the_page_stands_alone_and_lays_runs_side_by_side(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("report", str(folder), "--output", str(page)) == 0
    html = page.read_text()
    parsed = Page()
    parsed.feed(html)
    assert parsed.loads == []
    assert "http" not in re.sub(
        r"xmlns(:\w+)?=\"[^\"]*\"|<metadata>.*?</metadata>|<!DOCTYPE svg.*?>", "", html, flags=re.DOTALL
    )
    assert parsed.counts["svg"] == 3
    # "full" was measured in both pass-key runs, so their directories tell them apart.
    assert all(f"<th>{label}</th>" in html for label in ("full (a)", "keen", "full (b)", "full"))
    assert "recall 0.500" in html
    assert "unknown" in html


def test_what_models_say_can_not_break_the_page(folder: Path) -> None:
    runs = find_runs([folder / "b"])
    path = folder / "b" / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**line, "score": 0, "output": "<script>x</script>"}) + "\n" for line in lines)
    )
    html = render(runs)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_directories_without_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", str(tmp_path / "missing")) == 1
    assert "no finished run in it" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(InvalidRequest, match="is not what an evaluation wrote"):
        find_runs([tmp_path])


def points(lengths: list[int], depths: list[float | None], metric: str = "accuracy") -> list[Point]:
    return [
        Point("task", label, length, depth, metric, 0.5)
        for label in ("a", "b")
        for length in lengths
        for depth in depths
    ]


def test_pictures_are_drawn_where_they_say_more(tmp_path: Path) -> None:
    (heatmap,) = draw(points([1024, 2048], [0.0, 0.5, 1.0]), "title")
    assert [axis.get_title() for axis in heatmap.axes[:2]] == ["a", "b"]
    assert [label.get_text() for label in heatmap.axes[0].get_xticklabels()] == ["1K", "2K"]
    assert [label.get_text() for label in heatmap.axes[0].get_yticklabels()] == ["0%", "50%", "100%"]
    (curves,) = draw(points([1024, 2048], [None], "loss"), "title")
    assert len(curves.axes[0].get_lines()) == 2
    assert "nats" in curves.axes[0].get_ylabel()
    assert draw(points([1024], [None]), "title") == []
    assert draw([], "title") == []
    assert len(draw(points([1024, 2048], [None, 0.0, 1.0]), "title")) == 2
    save_png(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert as_svg(curves).startswith("<svg")
    assert as_svg(curves) == as_svg(curves)


def test_a_heatmap_may_have_holes() -> None:
    holed = [
        point for point in points([1024, 2048], [0.0, 1.0]) if (point.length, point.depth) != (1024, 1.0)
    ]
    (figure,) = draw(holed, "title")
    assert len(figure.axes[0].texts) == 3
