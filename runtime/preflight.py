"""What can be checked before Ray or a weight is loaded, so that a mistake is told within a second."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from moorage.runtime.config import ClusterConfig
from moorage.runtime.presets import check_positions
from moorage.runtime.session_limit import SessionLimit, session_limit
from moorage.workers.errors import InvalidConfig, InvalidModel
from moorage.workers.hf_config import read_model_spec

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20


def check_host(config: ClusterConfig) -> SessionLimit:
    """Raises InvalidConfig or InvalidModel, in one line, for a model, memory or port that can't serve.

    Returns what sessions are limited to, with the warnings that users should see.
    """
    directory = Path(config.model.path)
    spec = read_model_spec(directory)
    check_positions(config, spec)
    limit = session_limit(config, spec)
    for file in sorted(directory.glob("*.safetensors")):
        _check_complete(file)
    if config.ray.address == "local":
        _check_dram(config.kv_store.dram)
    _check_port(config.server.grpc)
    return limit


def _check_dram(dram_bytes: int) -> None:
    memory = psutil.virtual_memory()
    if dram_bytes > memory.available:
        raise InvalidConfig(
            f"kv_store.dram: {_gib(dram_bytes)} is more than this host has free ({_gib(memory.available)} of "
            f"{_gib(memory.total)}); lower it, or free memory"
        )


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        raise InvalidConfig(
            f"server.grpc: {address} can't be bound ({error.strerror}); free it or choose another port"
        ) from None


def _check_complete(file: Path) -> None:
    """Compares the file's size with what its own header announces."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(header_bytes, _MAX_HEADER_BYTES)))
        needed = _LENGTH_BYTES + header_bytes + max(_ends(header), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InvalidModel(f"{file}: is not a readable safetensors file; download it again") from None
    if size != needed:
        raise InvalidModel(f"{file}: has {size} bytes but should have {needed}; download it again")


def _ends(header: dict[str, dict[str, list[int]]]) -> Iterator[int]:
    return (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
