"""The blocks of a session in a file, with their anchors and codes, as they lie in the arena.

A safetensors file: for each layer `layers.N.blocks`, `.anchors` and `.codes`, bytes by block. What is stored in few
bits is as small in the file, and a session that comes back is the same to the last bit. Where blocks are packed,
`layers.N.sinks` has the pages of the first tokens. A checksum covers the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import InvalidModel, InvalidRequest, Unavailable
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.block_table import BlockTable
from moorage.workers.kv.messages import Int32
from moorage.workers.kv.store import KvStore
from moorage.workers.safetensors_header import read_header

_PIECE_BYTES = 32 << 20
"""Copied at once, so that a long session takes no second time its memory."""
Bytes = NDArray[np.uint8]


def save_session(store: KvStore, session_id: int, file: Path) -> str:
    """`save_blocks` of a session. Other threads may use the store, but not write to this session."""
    return save_blocks(store.arena, store.shard.session(session_id).table, file)


def load_session(store: KvStore, session_id: int, file: Path, checksum: str) -> None:
    """`load_blocks` of a session. Other threads may use the store, but not this session."""
    load_blocks(store.arena, store.shard.session(session_id).table, file, checksum)


def save_blocks(arena: Arena, table: BlockTable, file: Path) -> str:
    """Writes the blocks of a session, in order, to a new file of mode 0600; returns its checksum.

    Nobody may write to its pages meanwhile. Raises Unavailable when the system refuses the file.
    """
    header = json.dumps(_header(arena, table), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = blake2b(digest_size=32)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            _put(stream, digest, len(header).to_bytes(8, "little") + header)
            for _, memory, pages in _tensors(arena, table):
                for part in _pieces(memory, pages):
                    _put(stream, digest, memory[part].tobytes())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise Unavailable(
            f"{file}: can't be written ({error.strerror}); see that the disk has room"
        ) from None
    return digest.hexdigest()


def load_blocks(arena: Arena, table: BlockTable, file: Path, checksum: str) -> None:
    """Reads a file of `save_blocks` into the pages of a session.

    Raises InvalidRequest for a file that is not what was saved. The pages then hold anything; nobody may read them
    before, nor after an error.
    """
    try:
        found = {one.name: one for one in read_header(file)}
        content = np.memmap(file, np.uint8, "r")
    except (InvalidModel, OSError, ValueError) as error:
        raise InvalidRequest(f"{file.name}: is damaged ({error}); delete the saved session") from None
    digest, at = blake2b(digest_size=32), int.from_bytes(content[:8].tobytes(), "little") + 8
    digest.update(content[:at].data)
    for name, memory, pages in _tensors(arena, table):
        tensor, shape = found.get(name), (len(pages), memory.shape[1])
        if tensor is None or tensor.shape != shape or tensor.begin != at:
            held = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise InvalidRequest(f"{file.name}: {name}: {held}, expected {shape}; delete the saved session")
        for part in _pieces(memory, pages):
            piece = content[at : at + part.size * memory.shape[1]]
            digest.update(piece.data)
            memory[part] = piece.reshape(len(part), -1)
            at += piece.size
    if digest.hexdigest() != checksum:
        raise InvalidRequest(
            f"{file.name}: checksum: the file is not what was saved; delete the saved session"
        )


def _header(arena: Arena, table: BlockTable) -> dict[str, object]:
    tensors: dict[str, object] = {"__metadata__": {"format": "moorage session", "version": "1"}}
    end = 0
    for name, memory, pages in _tensors(arena, table):
        shape = [len(pages), memory.shape[1]]
        begin, end = end, end + len(pages) * memory.shape[1]
        tensors[name] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    return tensors


def _tensors(arena: Arena, table: BlockTable) -> Iterator[tuple[str, Bytes, Int32]]:
    """(name, bytes [pages, size], the session's pages) of each, in the order of the file."""
    for layer in range(arena.layout.num_layers):
        anchors = arena.anchors[layer].reshape(arena.num_pages, -1).view(np.uint8)
        yield f"layers.{layer}.blocks", arena.stored[layer], table.pages
        yield f"layers.{layer}.anchors", anchors, table.pages
        yield f"layers.{layer}.codes", arena.codes[layer], table.pages
        if arena.layout.is_packed:
            yield f"layers.{layer}.sinks", arena.stored[layer], table.raw.sink_pages


def _pieces(memory: Bytes, pages: Int32) -> Iterator[Int32]:
    count = max(1, _PIECE_BYTES // max(1, memory.shape[1]))
    return (pages[at : at + count] for at in range(0, len(pages), count))


def _put(stream: BinaryIO, digest: blake2b, content: bytes) -> None:
    digest.update(content)
    stream.write(content)
