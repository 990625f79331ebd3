"""Checks that a path is a model directory in the Hugging Face layout, and says what to do where it is none."""

from __future__ import annotations

from pathlib import Path

from moorage.workers.errors import InvalidModel

_INSTEAD = "set model.path to a Hugging Face directory or a GGUF file"


def check_directory(directory: Path) -> None:
    """Raises InvalidModel when `directory` is missing, is a file, or has no config.json."""
    try:
        if directory.is_file():
            raise InvalidModel(f"{directory}: {_of_file(directory)}")
        if not directory.is_dir():
            raise InvalidModel(f"{directory}: no such model directory; {_INSTEAD}")
        if not (directory / "config.json").is_file():
            raise InvalidModel(f"{directory / 'config.json'}: missing; {_INSTEAD}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidModel(f"{str(directory)[:100]}: can't be read ({reason}); {_INSTEAD}") from None


def _of_file(file: Path) -> str:
    beside = (file.parent / "config.json").is_file()
    instead = str(file.parent) if beside else "the directory that holds config.json"
    return f"is a file and not a model directory; give {instead}"
