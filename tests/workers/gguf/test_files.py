"""Which files a path stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.files import gguf_files


def made(directory: Path, *names: str) -> list[Path]:
    for name in names:
        (directory / name).write_bytes(b"GGUF")
    return [directory / name for name in names]


def test_one_file_by_its_name_its_content_or_its_folder(tmp_path: Path) -> None:
    (file,) = made(tmp_path, "model-Q4_K_M.gguf")
    assert gguf_files(file) == gguf_files(tmp_path) == (file,)
    (other,) = made(tmp_path, "blob")
    assert gguf_files(other) == (other,)


def test_any_part_names_all(tmp_path: Path) -> None:
    parts = made(tmp_path, *(f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)))
    for path in (*parts, tmp_path):
        assert gguf_files(path) == tuple(parts)
    parts[1].unlink()
    with pytest.raises(
        InvalidModel, match=r"big-00002-of-00003.gguf: missing, though big-00001-of-00003.gguf is"
    ):
        gguf_files(tmp_path)


@pytest.mark.parametrize("name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"])
def test_parts_that_are_counted_wrongly(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidModel, match="its name counts parts from 1 to at most 1000"):
        gguf_files(made(tmp_path, name)[0])


def test_one_model_of_a_folder_must_be_named(tmp_path: Path) -> None:
    made(tmp_path, "a-Q4_0.gguf", "a-Q8_0.gguf")
    with pytest.raises(
        InvalidModel, match=r"holds several GGUF models \(a-Q4_0.gguf, a-Q8_0.gguf, …\); give the path"
    ):
        gguf_files(tmp_path)


def test_files_of_other_things_are_passed_over(tmp_path: Path) -> None:
    file, *_ = made(tmp_path, "gemma-Q4_0.gguf", "mmproj-gemma-F16.gguf", "imatrix.gguf")
    assert gguf_files(tmp_path) == (file,)


def test_safetensors_go_first(tmp_path: Path) -> None:
    made(tmp_path, "a.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_files(tmp_path) == ()


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "nowhere", "nowhere.gguf"])
def test_what_is_no_file_is_left_to_the_caller(path: str) -> None:
    assert gguf_files(Path(path)) == ()
