"""The blocks of a session in a file, with their anchors and codes, as they lie in the arena.

A safetensors file: for each layer `layers.N.blocks`, `.anchors` and `.codes`, bytes by block. What is stored in few
bits is as small in the file, and a session that comes back is the same to the last bit. Where blocks are packed,
`layers.N.sinks` has the pages of the first tokens.

Bytes pass between the file and the arena without a copy between them, in pieces, by several threads. The checksum is
the hash of the header and of the hashes of all pieces, each made while the piece is in the processor's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import InvalidModel, InvalidRequest, Unavailable
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.block_table import BlockTable
from moorage.workers.kv.messages import Int32
from moorage.workers.kv.shared_memory import HUGE_BYTES
from moorage.workers.kv.store import KvStore
from moorage.workers.safetensors_header import read_header

_PIECE_BYTES = 1 << 20
"""Small enough that its hash finds it in the cache of the core that copied it."""
_MOST_THREADS = 8
_MOST_PARTS = 1024
"""Parts of memory that the system reads or writes in one call (IOV_MAX)."""
Bytes = NDArray[np.uint8]
Transfer = Callable[[int, list[memoryview], int], int]
"""`os.preadv` or `os.pwritev`."""


class _Piece(NamedTuple):
    """A part of the file, and the parts of the arena that have the same bytes."""

    begin: int
    parts: list[memoryview]


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
    header = len(header).to_bytes(8, "little") + header
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, header, 0)
            checksum = _transferred(os.pwritev, descriptor, header, _pieces(arena, table, len(header)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(
            f"{file}: can't be written ({error.strerror}); see that the disk has room"
        ) from None
    return checksum


def load_blocks(arena: Arena, table: BlockTable, file: Path, checksum: str) -> None:
    """Reads a file of `save_blocks` into the pages of a session.

    Raises InvalidRequest for a file that is not what was saved. The pages then hold anything; nobody may read them
    before, nor after an error.
    """
    try:
        header = _checked_header(arena, table, file)
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            _ask_huge(arena, table)
            found = _transferred(os.preadv, descriptor, header, _pieces(arena, table, len(header)))
        finally:
            os.close(descriptor)
    except (InvalidModel, OSError) as error:
        raise InvalidRequest(f"{file.name}: is damaged ({error}); delete the saved session") from None
    if found != checksum:
        raise InvalidRequest(
            f"{file.name}: checksum: the file is not what was saved; delete the saved session"
        )


def _checked_header(arena: Arena, table: BlockTable, file: Path) -> bytes:
    """The first bytes of a file, up to the tensors. Raises InvalidRequest unless these fit the session."""
    found = {one.name: one for one in read_header(file)}
    with file.open("rb") as stream:
        header = stream.read(8)
        header += stream.read(int.from_bytes(header, "little"))
    at = len(header)
    for name, memory, pages in _tensors(arena, table):
        tensor, shape = found.get(name), (len(pages), memory.shape[1])
        if tensor is None or tensor.shape != shape or tensor.begin != at:
            held = "no such tensor" if tensor is None else f"shape {tensor.shape}"
            raise InvalidRequest(f"{file.name}: {name}: {held}, expected {shape}; delete the saved session")
        at += len(pages) * memory.shape[1]
    return header


def _header(arena: Arena, table: BlockTable) -> dict[str, object]:
    tensors: dict[str, object] = {"__metadata__": {"format": "moorage session", "version": "2"}}
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


def _ask_huge(arena: Arena, table: BlockTable) -> None:
    """Has huge pages for what is about to be read, as a prefill has for what it writes."""
    if len(table.pages) * arena.layout.block_bytes >= HUGE_BYTES:
        for layer in range(arena.layout.num_layers):
            arena.ask_huge(layer, table.pages)


def _pieces(arena: Arena, table: BlockTable, begin: int) -> Iterator[_Piece]:
    """All tensors in pieces; the first tensor begins at `begin` in the file."""
    for _, memory, pages in _tensors(arena, table):
        size = memory.shape[1]
        if not size:
            continue
        count = max(1, _PIECE_BYTES // size)
        for at in range(0, len(pages), count):
            some = pages[at : at + count]
            yield _Piece(begin, _parts(memory, some))
            begin += len(some) * size


def _parts(memory: Bytes, pages: Int32) -> list[memoryview]:
    """The bytes of `pages`; those of pages that lie one after the other are one part."""
    runs = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
    return [memory[int(run[0]) : int(run[-1]) + 1].reshape(-1).data for run in runs]


def _transferred(transfer: Transfer, descriptor: int, header: bytes, pieces: Iterator[_Piece]) -> str:
    """Moves all pieces between file and arena; returns the checksum. Raises OSError where the system refuses."""
    num_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as threads:
        digests = threads.map(partial(_moved, transfer, descriptor), pieces)
        return hashlib.sha256(header + b"".join(digests)).hexdigest()


def _moved(transfer: Transfer, descriptor: int, piece: _Piece) -> bytes:
    """Moves one piece; returns the hash of its bytes."""
    digest, at = hashlib.sha256(), piece.begin
    left = piece.parts
    while left:
        count = transfer(descriptor, left[:_MOST_PARTS], at)
        if not count:
            raise OSError("it ends too early")
        at += count
        left = _after(left, count)
    for part in piece.parts:
        digest.update(part)
    return digest.digest()


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `parts` after their first `count` bytes."""
    for place, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[place + 1 :]]
        count -= len(part)
    return []
