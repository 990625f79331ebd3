"""Headers of safetensors files, read without torch: whole ones, and every way in which one can be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moorage.workers.errors import InvalidModel
from moorage.workers.safetensors_header import read_header

ONE = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
TWO = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}


def write(file: Path, header: object, num_bytes: int = 20) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return file


def test_a_header_tells_name_type_shape_and_place(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(5, np.float32)}
    save_file(tensors, file, metadata={"format": "np"})
    content = file.read_bytes()
    for header in read_header(file):
        expected = tensors[header.name]
        assert (header.file, header.shape, header.num_bytes) == (file, expected.shape, expected.nbytes)
        assert content[header.begin :][: header.num_bytes] == expected.tobytes()


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "m", {"__metadata__": {"format": "pt"}}, 0)) == []


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"not json", "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        (b"[1]", "not a JSON object"),
        ({"a": {**ONE, "data_offsets": [0, 10]}, "b": TWO}, "takes 12 bytes, not 10"),
        ({"a": {**ONE, "shape": [2, 4]}, "b": TWO}, "takes 16 bytes, not 12"),
        ({"a": {**ONE, "shape": [2, -3]}, "b": TWO}, "tensor a has no dtype, shape and data_offsets"),
        ({"a": {**ONE, "shape": "x"}, "b": TWO}, "tensor a has no dtype"),
        ({"a": {**ONE, "data_offsets": [0]}, "b": TWO}, "tensor a has no dtype"),
        ({"a": {**ONE, "data_offsets": [0, True]}}, "tensor a has no dtype"),
        ({"a": 3, "b": TWO}, "tensor a has no dtype"),
        ({"a": {**ONE, "data_offsets": [12, 24]}, "b": {**TWO, "data_offsets": [8, 16]}}, "does not begin"),
        ({"b": TWO}, "tensor b does not begin where the header ends"),
        ({"a": ONE, "b": {**TWO, "data_offsets": [8, 16]}}, "tensor b does not begin where a ends"),
        ({"a": ONE}, "bytes but should have"),
        ({"a": ONE, "b": TWO, "c": {**TWO, "data_offsets": [20, 28]}}, "bytes but should have"),
    ],
)
def test_a_broken_header_is_refused_in_one_line(tmp_path: Path, header: object, words: str) -> None:
    file = write(tmp_path / "model.safetensors", header)
    with pytest.raises(InvalidModel, match=re.escape(words)) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: not a complete safetensors file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"abc", (2**63).to_bytes(8, "little"), (50).to_bytes(8, "little") + b"{}"]
)
def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InvalidModel, match="do not hold the header that they announce"):
        read_header(file)


def test_a_pointer_of_git_lfs_is_told_as_one(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(InvalidModel, match="run git lfs pull"):
        read_header(file)


@pytest.mark.parametrize("dtype", ["C64", "F4", "BOOL"])
def test_a_type_that_no_weights_have_is_refused(tmp_path: Path, dtype: str) -> None:
    file = write(tmp_path / "model.safetensors", {"a": {**ONE, "dtype": dtype}})
    with pytest.raises(InvalidModel, match=f"tensor a has type {dtype}; use the checkpoint with plain float"):
        read_header(file)


def test_what_is_refused_here_is_no_file_that_the_library_takes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Random damage to a header: whatever safetensors itself opens with the same tensors is accepted here too."""
    file = tmp_path / "model.safetensors"
    save_file({f"t{i}": np.zeros((i + 1, 3), np.float32) for i in range(4)}, file)
    whole = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little")
    taken = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(end)] = rng.integers(32, 127)
        file.write_bytes(damaged)
        ours = _outcome(lambda: [(h.name, h.shape) for h in read_header(file)])
        theirs = _outcome(lambda: _by_library(file))
        if theirs is not None and ours is not None:
            assert sorted(ours) == sorted(theirs)
            taken += 1
        assert ours is None or theirs is not None, "a file that the library refuses"
    assert taken


def _by_library(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    with safe_open(file, framework="numpy") as tensors:
        return [(name, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()]  # noqa: SIM118


def _outcome(read: Any) -> Any:
    try:
        return read()
    except (InvalidModel, SafetensorError):
        return None
