"""Small files that stand for huge values, and files that are not what they should be: one line each, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.yaml_reading import MAX_BYTES, MAX_NODES, parse_value
from moorage.workers.errors import InvalidConfig


def laughs(levels: int) -> str:
    """Each level has nine times the values of the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (laughs(9), f"f:5: more than {MAX_NODES} values, aliases written out"),
        ("[" + "1," * 400_000 + "]", f"f:1: more than {MAX_NODES} values"),
        ("[" + ",".join(f"&a{i} 1" for i in range(90_000)) + "]", f"f:1: more than {MAX_NODES} values"),
        ("a: &a [*a]", "f:1: *a stands inside &a itself; write it out"),
        ("a: &a {b: *a}", "f:1: *a stands inside &a itself"),
        ("&a a: &b {? *b : 1}", "f:1: *b stands inside &b itself"),
        ("a: *b", "f:1: not YAML (found undefined alias)"),
        ("a: " + "[" * 100_000, "f:1: nested more than 32 deep"),
        ("a: " + "{a: " * 1_000 + "1" + "}" * 1_000, "f:1: nested more than 32 deep"),
        ("".join(" " * i + "a:\n" for i in range(1_000)), "f:33: nested more than 32 deep"),
        ("#" * (MAX_BYTES + 1), "f: is larger than 1 MiB"),
        ("a: 1\nb: {c: 2, c: 3}", "f:2: b.c is given twice; keep one of the two"),
        ("a: [{b: 1, b: 1}]", "f:1: a.b is given twice"),
        ("a: 1\na: 2", "f:2: a is given twice"),
        ("a: 2026-13-45", "f:1: not YAML ('2026-13-45' is no timestamp)"),
        ("a: !!int ''", "f:1: not YAML ('' is no int)"),
        ("a: " + "9" * 5_000, "f:1: not YAML (99999999999999999999... is too long a number)"),
        ("a: 0x" + "f" * 100_000, "is too long a number"),
        ("a: 1" + ":59" * 300_000, "is too long a number"),
        ("a: 1." + "1" * 100_000, "is too long a number"),
        ("a: !!bool x", "f:1: not YAML ('x' is no bool)"),
        ("a: !!python/object/apply:os.system [ls]", "f:1: not YAML (could not determine a constructor"),
        ("? [a, b]\n: 1", "f:1: not YAML (found unhashable key)"),
        ('a: "\\ud800"', "f:1: not YAML (found invalid Unicode character escape code)"),
    ],
)
def test_one_line_and_nothing_built(text: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_value(text, "f")
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 250


def test_aliases_and_merge_keys_of_a_sane_size_are_taken() -> None:
    assert parse_value("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "f") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


def test_a_cluster_file_is_read_within_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    for text, says in (
        (laughs(9), "aliases written out"),
        ("model: {path: m}\n" + "#" * MAX_BYTES, "is larger than 1 MiB; give the path of a cluster file"),
        ("model: {path: m}\n~: 1\n", ":2: got ~ as a key"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=r"cluster\.yaml") as caught:
            load_cluster_config(path)
        assert says in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_path_that_no_system_takes(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"give the path of a cluster file") as caught:
        load_cluster_config(name)
    assert "\n" not in str(caught.value)


def test_flags_and_variables_too(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: {path: m}\n")
    deep = "memory.rope_scaling=" + "[" * 500
    with pytest.raises(InvalidConfig, match="nested more than 32 deep") as caught:
        load_cluster_config(path, [deep], {})
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidConfig, match=r"environment MOORAGE_MEMORY__BASE:.*nested more than"):
        load_cluster_config(path, (), {"MOORAGE_MEMORY__BASE": "[" * 500})
