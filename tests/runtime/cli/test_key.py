"""`runtime key`: making, listing and removing API keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moorage.runtime.api.access.keys import Keys
from moorage.runtime.cli.key import key_app


def tenant_of(keys: Keys, key: str) -> str | None:
    record = keys.record_of(key)
    return None if record is None else record.name


@pytest.fixture(autouse=True)
def _own_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path))


def test_a_key_is_printed_once_and_let_in_until_it_is_removed(tmp_path: Path) -> None:
    cli = CliRunner()
    made = cli.invoke(key_app, ["add", "laptop"])
    key = made.stdout.strip()
    assert key.startswith("mk-")
    keys = Keys(tmp_path / "keys.json")
    assert tenant_of(keys, key) == "laptop"
    assert "server.keys" in made.stderr
    listed = cli.invoke(key_app, ["list", "--json"]).stdout
    assert [one["name"] for one in json.loads(listed)] == ["laptop"]
    assert key not in listed
    assert cli.invoke(key_app, ["remove", "laptop"]).exit_code == 0
    assert json.loads(cli.invoke(key_app, ["list", "--json"]).stdout) == []


def test_another_file_may_hold_them(tmp_path: Path) -> None:
    file = tmp_path / "other" / "team.json"
    key = CliRunner().invoke(key_app, ["add", "team", "--file", str(file)]).stdout.strip()
    assert tenant_of(Keys(file), key) == "team"


def test_limits_are_given_shown_and_changed() -> None:
    cli = CliRunner()
    given = ["--max-parallel-requests", "2", "--tokens-per-minute", "100K", "--max-kv-bytes", "4GiB"]
    assert cli.invoke(key_app, ["add", "guest", *given]).exit_code == 0
    assert "guest  2 requests  102,400 tokens/min  4.00 GiB of KV" in cli.invoke(key_app, ["list"]).stdout
    assert cli.invoke(key_app, ["limit", "guest", "--tokens-per-minute", "5"]).exit_code == 0
    (shown,) = json.loads(cli.invoke(key_app, ["list", "--json"]).stdout)
    assert shown["limits"] == {"max_parallel_requests": None, "tokens_per_minute": 5, "max_kv_bytes": None}
    for wrong in (["--tokens-per-minute", "few"], ["--max-kv-bytes", "0"], ["--max-parallel-requests", "0"]):
        assert cli.invoke(key_app, ["limit", "guest", *wrong]).exit_code == 2
