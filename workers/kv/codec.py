"""How typed records become bytes and arrays, and records again: compiled once for each type from its annotations.

Numbers, flags and enums of a record, and the shapes of its arrays, make one fixed piece of bytes. The arrays travel
beside it. Nothing is pickled, so what comes in can only be a record of the expected type.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TakeArray = Callable[[str, tuple[int, ...]], Array]
"""(type code, shape) -> the next array."""
_SCALARS = {int: "q", float: "d", bool: "?"}
_ARRAY = struct.Struct("<cb6i")
"""Type code, number of dimensions, dimensions."""
_CODECS: dict[Any, Codec] = {}
_NO_ARRAY = bytes(_ARRAY.size)


class Codec:
    """Of one type. `pack` turns a value into numbers and arrays, and `unpack` takes them in the same order."""

    format: str
    """Of the numbers, as `struct` has it."""

    @property
    def num_bytes(self) -> int:
        """Of what `encode` returns; of a list, 0."""
        return _layout(self.format).size

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        """Appends the numbers and arrays of `value`."""
        raise NotImplementedError

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        """The value of the next numbers, and of the arrays that `take` gives."""
        raise NotImplementedError

    def encode(self, value: Any, arrays: list[Array]) -> bytes:
        """The bytes of `value`, whose arrays are appended to `arrays`."""
        numbers: list[Any] = []
        self.pack(value, numbers, arrays)
        return _layout(self.format).pack(*numbers)

    def decode(self, body: bytes, take: TakeArray) -> Any:
        """The inverse of `encode`. Raises struct.error, ValueError or IndexError for the bytes of another type."""
        return self.unpack(iter(_layout(self.format).unpack(body)), take)


class _Nothing(Codec):
    format = ""

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        del value, numbers, arrays

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> None:
        del numbers, take


class _Scalar(Codec):
    def __init__(self, kind: type) -> None:
        self.format = _SCALARS[kind]

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        del arrays
        numbers.append(value)

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        del take
        return next(numbers)


class _Enum(Codec):
    format = "B"

    def __init__(self, kind: type[Enum]) -> None:
        self._members = tuple(kind)
        self._places = {member: place for place, member in enumerate(self._members)}

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        del arrays
        numbers.append(self._places[value])

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        del take
        return self._members[next(numbers)]


class _Array(Codec):
    format = f"{_ARRAY.size}s"

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        if value is None:
            numbers.append(_NO_ARRAY)
        else:
            numbers.append(_described(value.dtype.char, value.shape))
            arrays.append(value)

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        described = next(numbers)
        return None if described == _NO_ARRAY else take(*_shape(described))


class _Record(Codec):
    """A NamedTuple or a dataclass, field by field."""

    def __init__(self, kind: Any, names: Sequence[str], codecs: Sequence[Codec]) -> None:
        self.format = "".join(codec.format for codec in codecs)
        self._make, self._values = kind, _getter(names)
        self._codecs = [None if isinstance(codec, _Scalar) else codec for codec in codecs]

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        for part, codec in zip(self._values(value), self._codecs, strict=True):
            if codec is None:
                numbers.append(part)
            else:
                codec.pack(part, numbers, arrays)

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        return self._make(
            *[next(numbers) if codec is None else codec.unpack(numbers, take) for codec in self._codecs]
        )


class _Optional(Codec):
    """A flag, then the record; zeros stand for one that is not there."""

    def __init__(self, inner: Codec) -> None:
        self._inner, self.format = inner, "?" + inner.format
        layout = _layout(inner.format)
        self._zeros = layout.unpack(bytes(layout.size))

    def pack(self, value: Any, numbers: list[Any], arrays: list[Array]) -> None:
        numbers.append(value is not None)
        if value is None:
            numbers.extend(self._zeros)
        else:
            self._inner.pack(value, numbers, arrays)

    def unpack(self, numbers: Iterator[Any], take: TakeArray) -> Any:
        if next(numbers):
            return self._inner.unpack(numbers, take)
        for _ in self._zeros:
            next(numbers)
        return None


class _Several(Codec):
    """A list of one type, as a whole message or as the only field of one: its length tells how many there are."""

    format = ""

    def __init__(
        self, inner: Codec, make: Callable[[list[Any]], Any] = list, parts: Callable[[Any], Any] = list
    ) -> None:
        """`make` turns the list into the message, `parts` the message into the list."""
        self.inner, self._make, self._parts = inner, make, parts

    def encode(self, value: Any, arrays: list[Array]) -> bytes:
        """See Codec."""
        return b"".join([self.inner.encode(part, arrays) for part in self._parts(value)])

    def decode(self, body: bytes, take: TakeArray) -> Any:
        """See Codec."""
        found = _layout(self.inner.format).iter_unpack(body)
        return self._make([self.inner.unpack(iter(numbers), take) for numbers in found])


def codec_of(kind: Any) -> Codec:
    """The codec of a type: None, int, float, bool, an enum, arrays, records of these, each of these or None, a list.

    Raises TypeError for any other.
    """
    codec = _CODECS.get(kind)
    if codec is None:
        codec = _CODECS[kind] = _compiled(kind)
    return codec


def _compiled(kind: Any) -> Codec:
    if kind is type(None):
        return _Nothing()
    if kind in _SCALARS:
        return _Scalar(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is np.ndarray:
        return _Array()
    if origin in (Union, types.UnionType):
        return _either([part for part in parts if part is not type(None)])
    if origin is list:
        return _Several(codec_of(parts[0]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _Enum(kind)
    if is_dataclass(kind):
        return _record(kind, [field.name for field in fields(kind)])
    if hasattr(kind, "_fields"):
        return _record(kind, kind._fields)
    raise TypeError(f"{kind} can't cross between processes; use numbers, enums, arrays and records of these")


def _either(kinds: list[Any]) -> Codec:
    """Of arrays of several types, or of one kind that may be None."""
    codecs = [codec_of(kind) for kind in kinds]
    if all(isinstance(codec, _Array) for codec in codecs):
        return codecs[0]
    if len(codecs) > 1:
        raise TypeError(f"{kinds} can't cross between processes as one field; use one type")
    return _Optional(codecs[0])


def _record(kind: Any, names: Sequence[str]) -> Codec:
    hints = get_type_hints(kind)
    codecs = [codec_of(hints[name]) for name in names]
    if len(codecs) == 1 and isinstance(codecs[0], _Several):
        return _Several(codecs[0].inner, kind, attrgetter(names[0]))
    return _Record(kind, names, codecs)


def _getter(names: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
    """The values of a record's fields."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: [getattr(value, name) for name in names]


@cache
def _layout(numbers: str) -> struct.Struct:
    return struct.Struct("<" + numbers)


@lru_cache(maxsize=4096)
def _described(code: str, shape: tuple[int, ...]) -> bytes:
    """An array's type and shape; at most six dimensions."""
    return _ARRAY.pack(code.encode(), len(shape), *shape, *(0,) * (6 - len(shape)))


@lru_cache(maxsize=4096)
def _shape(described: bytes) -> tuple[str, tuple[int, ...]]:
    """The inverse of `_described`. Raises ValueError for what is no plain array."""
    code, count, *sizes = _ARRAY.unpack(described)
    if code not in b"fdiIlLqQHhBb?" or not 0 <= count <= len(sizes) or min(sizes) < 0:
        raise ValueError(f"array of type {code!r} with {count} dimensions {sizes}")
    return code.decode(), tuple(sizes[:count])
