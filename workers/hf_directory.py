"""Checks that a path is a model directory in the Hugging Face layout, and says what to do where it is none."""

from __future__ import annotations

from pathlib import Path

from moorage.workers.errors import InvalidModel

_GGUF_MAGIC = b"GGUF"
NO_GGUF = (
    "a GGUF file, which is not supported yet; convert it to a Hugging Face directory with config.json and "
    "safetensors, and give that"
)


def check_directory(directory: Path) -> None:
    """Raises InvalidModel when `directory` is missing, is a file, or has no config.json."""
    try:
        if directory.is_file():
            raise InvalidModel(f"{directory}: {_of_file(directory)}")
        if not directory.is_dir():
            raise InvalidModel(
                f"{directory}: no such model directory; set model.path to a Hugging Face directory"
            )
        if not (directory / "config.json").is_file():
            raise InvalidModel(f"{directory / 'config.json'}: missing; {_without_config(directory)}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidModel(
            f"{str(directory)[:100]}: can't be read ({reason}); set model.path to a Hugging Face directory"
        ) from None


def is_gguf(file: Path) -> bool:
    """Whether a file is in the GGUF format of llama.cpp, by its first bytes or its name."""
    if file.suffix.lower() == ".gguf":
        return True
    with file.open("rb") as stream:
        return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC


def _of_file(file: Path) -> str:
    if is_gguf(file):
        return f"is {NO_GGUF}"
    beside = (file.parent / "config.json").is_file()
    instead = str(file.parent) if beside else "the directory that holds config.json"
    return f"is a file and not a model directory; give {instead}"


def _without_config(directory: Path) -> str:
    if any(directory.glob("*.gguf")):
        return f"the directory holds {NO_GGUF}"
    return "set model.path to a directory in the Hugging Face layout"
