"""`runtime key`: making, listing and removing API keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moorage.runtime.api.access.keys import Keys
from moorage.runtime.cli.key import key_app


@pytest.fixture(autouse=True)
def _own_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path))


def test_a_key_is_printed_once_and_let_in_until_it_is_removed(tmp_path: Path) -> None:
    cli = CliRunner()
    made = cli.invoke(key_app, ["add", "laptop"])
    key = made.stdout.strip()
    assert key.startswith("mk-")
    keys = Keys(tmp_path / "keys.json")
    assert keys.tenant_of(key) == "laptop"
    assert "server.keys" in made.stderr
    listed = cli.invoke(key_app, ["list", "--json"]).stdout
    assert [one["name"] for one in json.loads(listed)] == ["laptop"]
    assert key not in listed
    assert cli.invoke(key_app, ["remove", "laptop"]).exit_code == 0
    assert json.loads(cli.invoke(key_app, ["list", "--json"]).stdout) == []


def test_another_file_may_hold_them(tmp_path: Path) -> None:
    file = tmp_path / "other" / "team.json"
    key = CliRunner().invoke(key_app, ["add", "team", "--file", str(file)]).stdout.strip()
    assert Keys(file).tenant_of(key) == "team"
