"""The files that one must read to understand how a request is served stay few and short."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES, MOST_LINES = 30, 5000


def core_files(package: str) -> list[Path]:
    """The files of the table in the section "The core" of a package's README.md."""
    folder = ROOT / package
    section = (folder / "README.md").read_text(encoding="utf-8").split("## The core\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| [")]
    return [(folder / link).resolve() for row in rows for link in re.findall(r"\]\(([^)]+)\)", row)]


def test_the_core_is_few_files_of_few_lines() -> None:
    files = [*core_files("runtime"), *core_files("workers")]
    assert ROOT / "runtime" / "serving" / "step_loop.py" in files
    assert ROOT / "workers" / "gpu" / "engine" / "engine.py" in files
    assert len(files) == len(set(files)) <= MOST_FILES
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= MOST_LINES
