"""Verified drafts beside full attention: the table, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.bench.verifying import Reader, run_verification
from moorage.runtime.cli import main
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.packaged import DEPLOY

REF = DEPLOY / "models" / "moorage-ref"


def test_every_length_and_choice_has_a_row_and_verified_answers_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verify.json"
    words = [
        "bench",
        "verify",
        "--model",
        str(REF),
        "--lengths",
        "500,900",
        "--documents",
        "2",
        "--tokens",
        "9",
    ]
    small = ["memory.topk=2", "memory.n_init=32", "long_context.local_windows_len=64", "memory.dense_until=0"]
    sets = [word for setting in small for word in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--verify", "2,3", "--threads", "1", *sets, "--json", str(file)])
    assert ended.value.code == 0
    rows = json.loads(file.read_text())["rows"]
    choices = ["moorage, unverified", "moorage, verify 2", "moorage, verify 3"]
    assert [(row["context"], row["choice"]) for row in rows] == [
        (n, name) for n in (500, 900) for name in choices
    ]
    for row in rows:
        assert row["prompts"] == 2
        assert row["speed_up"] > 0
        if row["choice"] != choices[0]:
            assert row["equal"] == 2
            assert 0 <= row["acceptance"] <= 1
    printed = capsys.readouterr().out
    assert "equal answers" in printed
    assert "no draft" not in printed


def test_contexts_that_attend_all_keys_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"bench verify --model {REF} --lengths 200 --documents 1 --tokens 3 --verify 2 --threads 1"
    small = "--set memory.topk=2 --set memory.n_init=32 --set long_context.local_windows_len=64"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), *small.split()])
    assert ended.value.code == 0
    assert "no draft at 200 tokens: contexts of at most memory.dense_until" in capsys.readouterr().out


def test_a_run_goes_on_with_the_documents_that_another_left() -> None:
    config = LocalConfig(None, REF, ("memory.preset=full", "long_context.max_seq_len=264")).load()
    reader = Reader(config, 264, 1)
    try:
        whole = [*run_verification(reader, (256,), range(2), 4, {"full again": reader.full})][-1][0]
        later = [*run_verification(reader, (256,), range(1, 2), 4, {"full again": reader.full})][-1][0]
    finally:
        reader.close()
    assert [len(whole.full), len(later.full)] == [2, 1]
    assert later.full[0].tokens == whole.full[1].tokens != whole.full[0].tokens
