"""Files of API keys, and who is let in by them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from moorage.runtime.api.access.keys import KeyFile, Keys, key_of
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.workers.errors import InvalidConfig, InvalidRequest, NotFound, Unauthenticated


def tenant_of(keys: Keys, key: str) -> str | None:
    record = keys.record_of(key)
    return None if record is None else record.name


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_a_key_stands_for_its_tenant_and_the_file_holds_its_hash_alone(file: KeyFile) -> None:
    first, second = file.add("first"), file.add("second")
    keys = Keys(file.path)
    assert [tenant_of(keys, key) for key in (first, second)] == ["first", "second"]
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
        keys.record_of(wrong)
    for near in (key[:-1], key + "x", key.upper()):
        with pytest.raises(Unauthenticated):
            keys.record_of(near)


def test_a_server_follows_its_file(file: KeyFile) -> None:
    first = file.add("first")
    keys = Keys(file.path)
    second = file.add("second")
    assert tenant_of(keys, second) == "second"
    file.remove("first")
    with pytest.raises(Unauthenticated):
        keys.record_of(first)
    file.path.write_text("{")
    with pytest.raises(Unauthenticated):
        keys.record_of(second)


def test_a_key_has_the_limits_that_the_file_says_last(file: KeyFile) -> None:
    limits = TenantLimits(2, 1000, 1 << 30)
    key, free = file.add("limited", limits), file.add("free")
    keys = Keys(file.path)

    def limits_of(key: str) -> TenantLimits | None:
        record = keys.record_of(key)
        return None if record is None else record.limits

    assert limits_of(key) == limits
    assert limits_of(free) == NO_LIMITS
    file.limit("limited", TenantLimits(tokens_per_minute=5))
    assert limits_of(key) == TenantLimits(None, 5, None)
    assert [
        set(entry) - {"name", "sha256", "created"} for entry in json.loads(file.path.read_text())["keys"]
    ] == [
        {"tokens_per_minute"},
        set(),
    ]
    with pytest.raises(NotFound, match="there are: limited, free"):
        file.limit("nobody", limits)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_a_limit_in_the_file_is_a_number_over_0(file: KeyFile, value: object) -> None:
    entry = {"name": "a", "sha256": "0" * 64, "created": "2026-01-01", "max_parallel_requests": value}
    file.path.write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(InvalidConfig, match="max_parallel_requests must be a whole number over 0"):
        file.read()


def test_without_a_file_everyone_is_let_in() -> None:
    assert Keys().record_of(None) is None


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
