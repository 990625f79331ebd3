"""Writes the committed stubs anew: `python proto/generate.py`. Needs grpcio-tools.

The sources are compiled under the virtual path `moorage/proto`, so that the stubs import each other by the
names they have once installed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def generate(target: Path) -> list[Path]:
    """Compiles this folder's .proto files into `target`. Raises RuntimeError if protoc fails."""
    from grpc_tools import protoc

    sources = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-Imoorage/proto={FOLDER}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *(f"moorage/proto/{source}" for source in sources),
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed; its messages are above")
        made = sorted(path for path in Path(scratch, "moorage", "proto").rglob("*") if path.is_file())
        names = [path.relative_to(Path(scratch, "moorage", "proto")) for path in made]
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(scratch, "moorage", "proto", name), target / name)
    return [target / name for name in names]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path.relative_to(FOLDER)}\n" for path in generate(FOLDER)))
