"""How typed records become bytes and arrays, and records again: compiled once for each type from its annotations.

Numbers, flags and enums of a record, and the shapes of its arrays, make one fixed piece of bytes. The arrays travel
beside it. Nothing is pickled, so what comes in can only be a record of the expected type. As dataclasses do, it
writes one expression of Python for each type: a decode step encodes a record for each layer.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TakeArray = Callable[[str, tuple[int, ...]], Array]
"""(type code, shape) -> the next array."""
_SCALARS = {int: "q", float: "d", bool: "?"}
_ARRAY = struct.Struct("<cb6i")
"""Type code, number of dimensions, dimensions."""
_NO_ARRAY = bytes(_ARRAY.size)
MOST_ENUMS = 256
"""Members of a tuple of enums."""


class Codec(Protocol):
    """Encodes and decodes values of one type."""

    def encode(self, value: Any, arrays: list[Array]) -> bytes:
        """The bytes of `value`, whose arrays are appended to `arrays`."""

    def decode(self, body: bytes, take: TakeArray) -> Any:
        """The inverse of `encode`. Raises struct.error, ValueError or IndexError for the bytes of another type."""


class RecordCodec:
    """The codec of a type whose values always take as many bytes."""

    def __init__(self, kind: Any) -> None:
        """Raises TypeError for a type that can't travel."""
        source = _Source()
        packed, unpacked = source.of(kind, "value")
        self._layout = struct.Struct("<" + source.format)
        names = {
            **source.names,
            "pack": self._layout.pack,
            "described": _described,
            "take_array": _take_array,
        }
        arguments = ", ".join(packed)
        self.encode: Callable[[Any, list[Array]], bytes] = eval(
            f"lambda value, arrays: pack({arguments})", names
        )
        self._unpacked = eval(f"lambda numbers, take: {unpacked}", names)
        self.num_bytes = self._layout.size

    def decode(self, body: bytes, take: TakeArray) -> Any:
        """See Codec."""
        return self._unpacked(self._layout.unpack(body), take)


class ListCodec:
    """The codec of a list, a whole message or the only field of one: its length tells how many elements there are."""

    def __init__(self, kind: Any, make: Callable[[list[Any]], Any], only: str) -> None:
        """`make` turns the list into the message, whose attribute `only` it is; the message itself if empty."""
        self._one, self._make, self._only = RecordCodec(kind), make, only

    def encode(self, value: Any, arrays: list[Array]) -> bytes:
        """See Codec."""
        parts = getattr(value, self._only) if self._only else value
        return b"".join([self._one.encode(part, arrays) for part in parts])

    def decode(self, body: bytes, take: TakeArray) -> Any:
        """See Codec."""
        size = self._one.num_bytes
        starts = range(0, len(body), size)
        return self._make([self._one.decode(body[start : start + size], take) for start in starts])


@dataclass(slots=True)
class _Source:
    """The expressions that pack and unpack one type."""

    format: str = ""
    count: int = 0
    """Numbers so far."""
    names: dict[str, Any] = field(default_factory=dict)
    """What the expressions refer to."""

    def of(self, kind: Any, value: str) -> tuple[list[str], str]:
        """(arguments of `pack` for what the expression `value` stands for, the expression that makes it again)."""
        if kind is type(None):
            return [], "None"
        if kind in _SCALARS:
            return [value], self._number(_SCALARS[kind])
        if _is_array(kind):
            return [f"described({value}, arrays)"], f"take_array({self._number(f'{_ARRAY.size}s')}, take)"
        if get_origin(kind) in (Union, types.UnionType):
            return self._optional(kind, value)
        if get_origin(kind) is tuple:
            return self._enums(get_args(kind), value)
        if isinstance(kind, type) and issubclass(kind, Enum):
            members = tuple(kind)
            places = self._name({member: place for place, member in enumerate(members)})
            return [f"{places}[{value}]"], f"{self._name(members)}[{self._number('B')}]"
        packed, unpacked = [], []
        for name, hint in _fields(kind):
            part = self.of(hint, f"{value}.{name}")
            packed += part[0]
            unpacked.append(part[1])
        return packed, f"{self._name(kind)}({', '.join(unpacked)})"

    def _enums(self, kinds: tuple[Any, ...], value: str) -> tuple[list[str], str]:
        """A tuple of at most MOST_ENUMS members of one enum: a byte for each, from 1 on, and zeros."""
        if len(kinds) != 2 or kinds[1] is not Ellipsis or not issubclass(kinds[0], Enum):
            raise TypeError(f"tuple of {kinds} can't cross between processes; use an array")
        members = tuple(kinds[0])
        places = self._name({member: place for place, member in enumerate(members, 1)})
        taken = self._number(f"{MOST_ENUMS}s")
        again = f"tuple({self._name((None, *members))}[each] for each in {taken}.rstrip(bytes(1)))"
        return [f"bytes({places}[each] for each in {value})"], again

    def _optional(self, kind: Any, value: str) -> tuple[list[str], str]:
        """A flag, then the record; zeros stand for one that is not there."""
        inner = [part for part in get_args(kind) if part is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"{kind} can't cross between processes as one field; use one type")
        is_there, begin = self._number("?"), len(self.format)
        packed, unpacked = self.of(inner[0], value)
        layout = struct.Struct("<" + self.format[begin:])
        zeros = self._name((False, *layout.unpack(bytes(layout.size))))
        present = ", ".join(["True", *packed])
        return [
            f"*(({present}) if {value} is not None else {zeros})"
        ], f"({unpacked}) if {is_there} else None"

    def _number(self, code: str) -> str:
        self.format += code
        self.count += 1
        return f"numbers[{self.count - 1}]"

    def _name(self, thing: Any) -> str:
        name = f"name{len(self.names)}"
        self.names[name] = thing
        return name


_CODECS: dict[Any, Codec] = {}


def codec_of(kind: Any) -> Codec:
    """The codec of a type: None, a number, an enum, an array, a record of these, one that may be None, a list, a
    tuple of enums.

    Raises TypeError for any other.
    """
    codec = _CODECS.get(kind)
    if codec is None:
        codec = _CODECS[kind] = _compiled(kind)
    return codec


def _compiled(kind: Any) -> Codec:
    if get_origin(kind) is list:
        return ListCodec(get_args(kind)[0], list, "")
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        parts = _fields(kind)
        if len(parts) == 1 and get_origin(parts[0][1]) is list:
            return ListCodec(get_args(parts[0][1])[0], kind, parts[0][0])
    return RecordCodec(kind)


def _is_array(kind: Any) -> bool:
    """Whether it is an array, of one of several types, or None."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return all(_is_array(part) for part in parts)
    return get_origin(kind) is np.ndarray


def _fields(kind: Any) -> list[tuple[str, Any]]:
    """(name, type) of each field of a dataclass or NamedTuple."""
    if not is_dataclass(kind) and not hasattr(kind, "_fields"):
        raise TypeError(
            f"{kind} can't cross between processes; use numbers, enums, arrays and records of these"
        )
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)] if is_dataclass(kind) else kind._fields
    return [(name, hints[name]) for name in names]


def _described(array: Array | None, arrays: list[Array]) -> bytes:
    """An array's type and shape, of at most six dimensions; appends it to `arrays`."""
    if array is None:
        return _NO_ARRAY
    arrays.append(array)
    return _description(array.dtype.char, array.shape)


def _take_array(description: bytes, take: TakeArray) -> Array | None:
    return None if description == _NO_ARRAY else take(*_shape(description))


@lru_cache(maxsize=4096)
def _description(code: str, shape: tuple[int, ...]) -> bytes:
    return _ARRAY.pack(code.encode(), len(shape), *shape, *(0,) * (6 - len(shape)))


@lru_cache(maxsize=4096)
def _shape(description: bytes) -> tuple[str, tuple[int, ...]]:
    """The inverse of `_description`. Raises ValueError for what is no plain array."""
    code, count, *sizes = _ARRAY.unpack(description)
    if code not in b"fdiIlLqQHhBb?" or not 0 <= count <= len(sizes) or min(sizes) < 0:
        raise ValueError(f"array of type {code!r} with {count} dimensions {sizes}")
    return code.decode(), tuple(sizes[:count])
