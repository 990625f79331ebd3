"""Parses the header of a GGUF file, with a check of every count and length before anything is done with it.

A file has: the magic "GGUF", the version, the numbers of tensors and of keys; then the keys with their values; then
name, shape, type and offset of each tensor; then, from the next multiple of the alignment, the tensors' bytes. All
numbers are little-endian.
"""

from __future__ import annotations

import struct
from array import array
from itertools import pairwise
from math import prod
from typing import Any, BinaryIO, Final

from moorage.workers.gguf.limits import (
    MOST_ALIGNMENT,
    MOST_DEPTH,
    MOST_DIMENSIONS,
    MOST_ELEMENTS,
    MOST_HEADER_BYTES,
    MOST_KEYS,
    MOST_NAME_BYTES,
    MOST_STRING_BYTES,
    MOST_TENSOR_ELEMENTS,
    MOST_TENSORS,
)
from moorage.workers.gguf.types import TYPES, BlockType

MAGIC: Final = b"GGUF"
_LFS_POINTER: Final = b"vers"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Format of each type of number, by the letters that `struct` and `array` have for it."""
_DEFAULT_ALIGNMENT = 32


class Damaged(ValueError):
    """A header that can't be that of a GGUF file. The message says what is wrong, without the file."""


class Reader:
    """Takes values from the start of a file, and no more than MOST_HEADER_BYTES."""

    def __init__(self, stream: BinaryIO, file_bytes: int) -> None:
        self._stream, self._end = stream, min(file_bytes, MOST_HEADER_BYTES)
        self._is_capped = file_bytes > MOST_HEADER_BYTES
        self.position = 0

    def take(self, num_bytes: int, what: str) -> bytes:
        """The next bytes. Raises Damaged when the file, or the most that a header may have, ends before."""
        if num_bytes > self._end - self.position:
            end = (
                f"exceeds {MOST_HEADER_BYTES >> 20} MiB of header"
                if self._is_capped
                else "ends beyond the file"
            )
            raise Damaged(f"{what} {end}")
        data = self._stream.read(num_bytes)
        if len(data) != num_bytes:
            raise Damaged(f"{what} ends beyond the file")
        self.position += num_bytes
        return data

    def number(self, letter: str, what: str) -> Any:
        """A number of the type that `struct` calls `letter`."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def count(self, most: int, what: str, letter: str = "Q") -> int:
        """A number from 0 to `most`."""
        value = int(self.number(letter, what))
        if value > most:
            raise Damaged(f"{what} is {value}, more than {most}")
        return value

    def text(self, most: int, what: str) -> str:
        """A string in UTF-8; what is not UTF-8 is replaced."""
        return self.take(self.count(most, f"the length of {what}"), what).decode("utf-8", "replace")


def parse_header(stream: BinaryIO, file_bytes: int) -> dict[str, Any]:
    """Version, values by key, and tensors with their places in the file. Raises Damaged."""
    reader = Reader(stream, file_bytes)
    magic = reader.take(len(MAGIC), "the magic number")
    if magic == _LFS_POINTER:
        raise Damaged("it is a pointer of Git LFS, and git lfs pull brings the file")
    if magic != MAGIC:
        raise Damaged("it does not begin with GGUF")
    version = _version(reader)
    num_tensors = reader.count(MOST_TENSORS, "the number of tensors")
    num_keys = reader.count(MOST_KEYS, "the number of keys")
    values = _values(reader, num_keys)
    found = [_tensor(reader, index) for index in range(num_tensors)]
    alignment = _alignment(values)
    data = -(-reader.position // alignment) * alignment
    return {"version": version, "values": values, "tensors": _placed(found, data, alignment, file_bytes)}


def _version(reader: Reader) -> int:
    version = int(reader.number("I", "the version"))
    if version in _VERSIONS:
        return version
    if version & 0xFFFF == 0:
        raise Damaged("its numbers are big-endian, which is not supported")
    raise Damaged(f"its version {version} is not supported; versions {_VERSIONS[0]} and {_VERSIONS[1]} are")


def _values(reader: Reader, num_keys: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for index in range(num_keys):
        key = reader.text(MOST_NAME_BYTES, f"key {index + 1}")
        if key in values:
            raise Damaged(f"key {key!r} stands in it twice")
        kind = int(reader.number("I", f"the type of {key!r}"))
        values[key] = _value(reader, kind, f"the value of {key!r}", MOST_DEPTH)
    return values


def _value(reader: Reader, kind: int, what: str, depth: int) -> Any:
    if kind == _STRING:
        return reader.text(MOST_STRING_BYTES, what)
    if kind == _ARRAY:
        return _array(reader, what, depth)
    if kind not in _NUMBERS:
        raise Damaged(f"{what} has the unknown type {kind}")
    value = reader.number(_NUMBERS[kind], what)
    return bool(value) if kind == _BOOL else value


def _array(reader: Reader, what: str, depth: int) -> list[Any]:
    if depth == 0:
        raise Damaged(f"{what} has arrays in arrays, more than {MOST_DEPTH} deep")
    kind = int(reader.number("I", f"the type in {what}"))
    length = reader.count(MOST_ELEMENTS, f"the length of {what}")
    if kind not in _NUMBERS:
        return [_value(reader, kind, what, depth - 1) for _ in range(length)]
    numbers = array(_NUMBERS[kind])
    numbers.frombytes(reader.take(length * numbers.itemsize, what))
    return [bool(number) for number in numbers] if kind == _BOOL else numbers.tolist()


def _tensor(reader: Reader, index: int) -> dict[str, Any]:
    """A tensor as its entry describes it, the place counted from the first tensor's."""
    name = reader.text(MOST_NAME_BYTES, f"the name of tensor {index + 1}")
    what = f"tensor {name!r}"
    num_dimensions = reader.count(MOST_DIMENSIONS, f"the number of dimensions of {what}", "I")
    shape = [reader.count(MOST_TENSOR_ELEMENTS, f"a dimension of {what}") for _ in range(num_dimensions)]
    number, offset = (
        int(reader.number("I", f"the type of {what}")),
        int(reader.number("Q", f"the offset of {what}")),
    )
    block = TYPES.get(number)
    if block is None:
        raise Damaged(f"{what} has the unknown type {number}")
    return {
        "name": name,
        "type": block.name,
        # The first dimension of a file is the innermost one.
        "shape": shape[::-1],
        "begin": offset,
        "num_bytes": _num_bytes(what, shape, block),
    }


def _num_bytes(what: str, shape: list[int], block: BlockType) -> int:
    elements = prod(shape)
    if not shape or not 0 < elements <= MOST_TENSOR_ELEMENTS:
        raise Damaged(f"{what} has the shape {shape[::-1]}")
    if shape[0] % block.elements:
        raise Damaged(
            f"{what} of type {block.name} has rows of {shape[0]}, not of whole blocks of {block.elements}"
        )
    return elements // block.elements * block.num_bytes


def _alignment(values: dict[str, Any]) -> int:
    alignment = values.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if isinstance(alignment, bool) or not is_power or not 8 <= alignment <= MOST_ALIGNMENT:
        shown = repr(alignment)[:40]
        raise Damaged(f"{_ALIGNMENT_KEY} is {shown}, not a power of two from 8 to {MOST_ALIGNMENT}")
    return int(alignment)


def _placed(
    tensors: list[dict[str, Any]], data: int, alignment: int, file_bytes: int
) -> list[dict[str, Any]]:
    """The tensors in the order of their bytes, with places counted from the start of the file."""
    if len({tensor["name"] for tensor in tensors}) != len(tensors):
        raise Damaged("two of its tensors have the same name")
    for tensor in tensors:
        if tensor["begin"] % alignment:
            raise Damaged(f"the offset of tensor {tensor['name']!r} is no multiple of {alignment}")
        tensor["begin"] += data
        end = tensor["begin"] + tensor["num_bytes"]
        if end > file_bytes:
            raise Damaged(f"tensor {tensor['name']!r} ends at byte {end} of {file_bytes}")
    found = sorted(tensors, key=lambda tensor: int(tensor["begin"]))
    for before, after in pairwise(found):
        if before["begin"] + before["num_bytes"] > after["begin"]:
            raise Damaged(f"tensors {before['name']!r} and {after['name']!r} overlap")
    return found
