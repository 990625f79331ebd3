"""Files of API keys, and who is let in by them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moorage.runtime.api.access.keys import KeyFile, Keys, key_of
from moorage.workers.errors import InvalidConfig, InvalidRequest, NotFound, Unauthenticated


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_a_key_stands_for_its_tenant_and_the_file_holds_its_hash_alone(file: KeyFile) -> None:
    first, second = file.add("first"), file.add("second")
    keys = Keys(file.path)
    assert (keys.tenant_of(first), keys.tenant_of(second)) == ("first", "second")
    text = file.path.read_text()
    assert first not in text
    assert first.removeprefix("mk-") not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [key.name for key in file.read()] == ["first", "second"]


@pytest.mark.parametrize("wrong", [None, "", "mk-", "mk-wrong", "ü" * 9, "x" * 100_000])
def test_whoever_has_no_key_is_refused(file: KeyFile, wrong: str | None) -> None:
    key = file.add("one")
    keys = Keys(file.path)
    with pytest.raises(Unauthenticated):
        keys.tenant_of(wrong)
    for near in (key[:-1], key + "x", key.upper()):
        with pytest.raises(Unauthenticated):
            keys.tenant_of(near)


def test_a_server_follows_its_file(file: KeyFile) -> None:
    first = file.add("first")
    keys = Keys(file.path)
    second = file.add("second")
    assert keys.tenant_of(second) == "second"
    file.remove("first")
    with pytest.raises(Unauthenticated):
        keys.tenant_of(first)
    file.path.write_text("{")
    with pytest.raises(Unauthenticated):
        keys.tenant_of(second)


def test_without_a_file_everyone_is_let_in() -> None:
    assert Keys().tenant_of(None) == ""


def test_names_are_checked(file: KeyFile) -> None:
    file.add("one")
    for name, words in (("one", "has a key already"), ("", "1 to 64"), ("ü", "ASCII"), ("a" * 65, "1 to 64")):
        with pytest.raises(InvalidRequest, match=words):
            file.add(name)
    with pytest.raises(NotFound, match="there are: one"):
        file.remove("two")


@pytest.mark.parametrize("text", ["", "[]", '{"keys": 1}', '{"keys": [{"name": "a"}]}', "\ud800"])
def test_what_is_no_file_of_keys_is_refused(file: KeyFile, text: str) -> None:
    file.path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidConfig, match="is no file of API keys"):
        Keys(file.path)


def test_a_key_comes_in_either_header() -> None:
    assert key_of("Bearer a", None) == "a"
    assert key_of("bearer  a", "b") == "a"
    assert key_of(None, "b") == "b"
    assert key_of("Basic eHg=", "b") == "b"
    assert key_of(None, None) is None
