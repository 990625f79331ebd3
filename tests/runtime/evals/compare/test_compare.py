"""The comparison on an embedded model: what attends everything answers as full attention does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.cli import main
from moorage.runtime.packaged import DEPLOY

MODEL = DEPLOY / "models" / "moorage-ref"
LEAST = "memory.preset=ktransformers,long_context.block_size=32,long_context.anchor_type=BLOCK_MEAN"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["eval", "compare", "--model", str(MODEL), *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_command_ranks_choices_over_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--lengths 320 --samples 2 --sinks 32 --window 64 --budgets 64 --preset full --generated 16"
    variants = [f"{name}:{LEAST},memory.topk={blocks}" for name, blocks in (("all", 64), ("none", 0))]
    given = [word for variant in variants for word in ("--variant", variant)]
    tasks = "continue,generate,passkey,records"
    assert run(*flags.split(), "--tasks", tasks, *given, "--output", str(tmp_path)) == 0, (
        capsys.readouterr().err
    )
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "compare.json").read_text())
    full, *others = report["ranking"]
    assert [one["choice"] for one in (full, *others)] == ["full", "all", "none"]
    every, none = others
    assert full["kl"] == 0
    assert every["kl"] == pytest.approx(0, abs=1e-5)
    assert (every["agreement"], every["score"]) == (1, full["score"])
    assert none["kl"] > 0.1
    assert none["kl_interval"][0] < none["kl"] < none["kl_interval"][1]
    assert none["perplexity_ratio"] > 1.01 > every["perplexity_ratio"]
    found = {(cell["task"], cell["choice"]): cell for cell in report["cells"]}
    assert len(found) == 4 * 3
    # A key of the middle of the text lies neither in the sinks nor in the window.
    assert (found["passkey", "all"]["score"], found["passkey", "none"]["score"]) == (1, 0)
    assert found["passkey", "none"]["full_score"] == 1
    assert found["generate", "none"]["drift"][0] > found["generate", "all"]["drift"][0]
    assert found["continue", "none"]["perplexity"] > found["continue", "full"]["perplexity"]
    assert found["generate", "full"]["kl_interval"] == [0, 0]
    page = (tmp_path / "compare.md").read_text()
    assert page.count("\n| ") == 3 + 12 + 3 + 3  # rows and the heads of three tables
    assert "ranking: moorage-ref: 32 sinks and a window of 64" in printed.out
    assert "passkey 320 sample 1: none" in printed.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tasks copy,sing", "'sing': should be of copy, continue, generate"),
        ("--lengths 100", "'100': at least 256 each"),
        ("--budgets 0", "'0' should be whole numbers of at least 1"),
    ],
)
def test_wrong_use_is_named(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags.split()) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
