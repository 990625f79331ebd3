"""Which files make up the GGUF model at a path: one file, the parts of a split one, or those of a folder."""

from __future__ import annotations

import re
from pathlib import Path

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.limits import MOST_FILES
from moorage.workers.gguf.reading import MAGIC

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_OTHER_FILES = ("mmproj", "imatrix")
"""How the names of GGUF files begin that hold no language model."""


def gguf_files(path: Path) -> tuple[Path, ...]:
    """The files of the GGUF model at `path`, in order; none where there is no GGUF model.

    `path` is a file, any part of a split one, or a folder with one model and without safetensors. Raises InvalidModel
    where a part is missing, or a folder holds several models.
    """
    try:
        if path.is_file():
            return _parts(path) if is_gguf(path) else ()
        if not path.is_dir() or any(path.glob("model*.safetensors*")):
            return ()
        found = sorted(file for file in path.glob("*.gguf") if not file.name.lower().startswith(_OTHER_FILES))
    except (OSError, ValueError):
        return ()  # The caller says what is wrong with such a path.
    models: dict[str, Path] = {}
    for file in found:
        part = _PART.fullmatch(file.name)
        models.setdefault(part["model"] if part else file.name, file)
    if len(models) > 1:
        names = ", ".join(file.name for file in list(models.values())[:3])
        raise InvalidModel(
            f"{path}: holds several GGUF models ({names}, …); give the path of the one to serve"
        )
    return _parts(found[0]) if found else ()


def is_gguf(file: Path) -> bool:
    """Whether a file is in the GGUF format, by its name or its first bytes."""
    if file.suffix.lower() == SUFFIX:
        return True
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _parts(file: Path) -> tuple[Path, ...]:
    part = _PART.fullmatch(file.name)
    if part is None:
        return (file,)
    count = int(part["count"])
    if not 1 <= int(part["number"]) <= count <= MOST_FILES:
        raise InvalidModel(
            f"{file}: its name counts parts from 1 to at most {MOST_FILES}; give the file its own name"
        )
    parts = tuple(
        file.with_name(f"{part['model']}-{i:05d}-of-{part['count']}{file.suffix}")
        for i in range(1, count + 1)
    )
    for each in parts:
        if not each.is_file():
            raise InvalidModel(
                f"{each}: missing, though {file.name} is a part of the same model; download it again"
            )
    return parts
