"""What tells one model from another, without reading all of its weights."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from moorage.workers.kv.formats.quantizer_file import QUANTIZER_MARK

_HEAD_BYTES = 1 << 20
"""Bytes of each file of weights that count: its header, and the first tensors."""
_WEIGHTS = (".safetensors", ".gguf")


def model_fingerprint(model: Path, *how: str) -> str:
    """A hash of config.json, and of name, size and first bytes of each file of weights.

    `how` says in which types the weights are computed with, since keys and values depend on it. A file of
    quantizers that lies beside the weights does not count.
    """
    digest = blake2b("\0".join(how).encode(), digest_size=16)
    if model.is_dir():
        files = sorted(
            file for file in model.iterdir() if file.suffix in _WEIGHTS or file.name == "config.json"
        )
    else:
        files = [model]
    for file in files:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        if QUANTIZER_MARK in head:
            continue
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + head)
    return digest.hexdigest()
