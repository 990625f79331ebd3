"""What is not a model directory is named for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.planning.known_models import find_model
from moorage.workers.errors import InvalidModel
from moorage.workers.hf_config import read_model_spec


def refusal(path: Path | str) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_model_spec(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_called_gguf_must_be_it(tmp_path: Path) -> None:
    by_name, by_content = tmp_path / "model-q4.gguf", tmp_path / "model.bin"
    by_name.write_bytes(b"")
    by_content.write_bytes(b"GGUF\x03\x00\x00\x00")
    for path in (by_name, by_content, tmp_path):
        assert "not a complete GGUF file (" in refusal(path)
        with pytest.raises(InvalidModel, match="not a complete GGUF file"):
            find_model(str(path))


def test_a_file_is_not_a_directory_and_its_own_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    assert "is a file and not a model directory; give the directory that" in refusal(weights)
    (tmp_path / "config.json").write_text("{}")
    assert refusal(weights).endswith(f"give {tmp_path}")


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "y/" * 3000])
def test_paths_that_no_system_takes(path: str) -> None:
    message = refusal(path)
    assert "set model.path to a Hugging Face directory" in message
    assert len(message) < 300
