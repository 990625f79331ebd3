"""The blocks of a session in a file, with their anchors and codes, as they lie in the arena.

A safetensors file: for each layer `layers.N.blocks`, `.anchors` and `.codes`, bytes by block. What is stored in few
bits is as small in the file, and a session that comes back is the same to the last bit. `layers.N.centres` is there
where the store keeps these. Where blocks are packed, `layers.N.sinks` has the pages of the first tokens.

Bytes pass between the file and the arena in pieces that fit the processor's cache, by several threads. A piece that
is read is hashed, and then written to the arena's file: memory that is mapped would be taken page by page, with a
fault for each. The checksum is the hash of the header and of the hashes of all pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
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
from moorage.workers.kv.store import KvStore
from moorage.workers.safetensors_header import read_header

_PIECE_BYTES = 1 << 20
"""Small enough that its hash finds it in the cache of the core that copied it. One page may be larger."""
_MOST_THREADS = 8
_MOST_PARTS = 1024
"""Parts of memory that the system reads or writes in one call (IOV_MAX)."""
Bytes = NDArray[np.uint8]


class _Piece(NamedTuple):
    """A part of the file, and the parts of the arena that have the same bytes."""

    begin: int
    parts: list[memoryview]
    offsets: list[int]
    """Offsets of the parts, in the arena's file."""


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
            move = partial(_written, descriptor)
            checksum = _moved(move, header, _pieces(arena, table, len(header)))
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
            move = partial(_read, descriptor, arena.fd, threading.local())
            found = _moved(move, header, _pieces(arena, table, len(header)))
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
        if arena.layout.keeps_centres:
            yield f"layers.{layer}.centres", arena.centres[layer], table.pages
        if arena.layout.is_packed:
            yield f"layers.{layer}.sinks", arena.stored[layer], table.raw.sink_pages


def _pieces(arena: Arena, table: BlockTable, begin: int) -> Iterator[_Piece]:
    """All tensors in pieces; the first tensor begins at `begin` in the file."""
    first_address = arena.stored[0].ctypes.data  # The blocks stand first in the arena's file.
    for _, memory, pages in _tensors(arena, table):
        size, offset = memory.shape[1], memory.ctypes.data - first_address
        if not size:
            continue
        count = max(1, _PIECE_BYTES // size)
        for at in range(0, len(pages), count):
            some = pages[at : at + count]
            runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)
            parts = [memory[int(run[0]) : int(run[-1]) + 1].reshape(-1).data for run in runs]
            yield _Piece(begin, parts, [offset + int(run[0]) * size for run in runs])
            begin += len(some) * size


def _moved(move: Callable[[_Piece], bytes], header: bytes, pieces: Iterator[_Piece]) -> str:
    """Moves all pieces between file and arena; returns the checksum. Raises OSError where the system refuses."""
    num_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as threads:
        return hashlib.sha256(header + b"".join(threads.map(move, pieces))).hexdigest()


def _written(descriptor: int, piece: _Piece) -> bytes:
    """Writes one piece to a file; returns the hash of its bytes."""
    digest, at, left = hashlib.sha256(), piece.begin, piece.parts
    while left:
        count = os.pwritev(descriptor, left[:_MOST_PARTS], at)
        at, left = at + count, _after(left, count)
    for part in piece.parts:
        digest.update(part)
    return digest.digest()


def _read(descriptor: int, arena_fd: int, own: threading.local, piece: _Piece) -> bytes:
    """Reads one piece of a file into the arena; returns the hash of its bytes. `own` keeps the thread's buffer."""
    num_bytes = sum(map(len, piece.parts))
    if len(getattr(own, "buffer", b"")) < num_bytes:
        own.buffer = bytearray(num_bytes)
    content, filled = memoryview(own.buffer)[:num_bytes], 0
    while filled < num_bytes:
        count = os.preadv(descriptor, [content[filled:]], piece.begin + filled)
        if not count:
            raise OSError("it ends too early")
        filled += count
    at = 0
    for part, offset in zip(piece.parts, piece.offsets, strict=True):
        left = content[at : at + len(part)]
        at += len(part)
        while left:
            count = os.pwrite(arena_fd, left, offset)
            left, offset = left[count:], offset + count
    return hashlib.sha256(content).digest()


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `parts` after their first `count` bytes."""
    for place, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[place + 1 :]]
        count -= len(part)
    return []
