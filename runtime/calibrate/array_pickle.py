"""Reads pickles that hold arrays, numbers, texts, lists, tuples and dictionaries. Nothing that a pickle names is run.

A pickle is a program: it may call whatever it names. Here each name that arrays need stands for a function of
this module, which makes an `Array` from bytes. Any other name, and any instruction that arrays don't need, ends
the reading.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import InvalidRequest

_MOST_BYTES = 1 << 30
_TYPES = {"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8", "b1": "|b1"}
_INSTRUCTION_NAMES = (
    "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_LIST EMPTY_TUPLE EMPTY_DICT LIST DICT TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS "
    "MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_INSTRUCTIONS = frozenset(_INSTRUCTION_NAMES.split())
_FAULTS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # of torch's reader of storages, and of too deep a structure
    struct.error,
    TypeError,
    ValueError,
)


class Array:
    """An array of a pickle, or one that is still to be filled."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[Any] | None = None) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        """Fills it as numpy's arrays are filled: (version, shape, type, by columns, bytes)."""
        _, shape, dtype, by_columns, raw = state
        self.values = _shaped(raw, dtype, shape, "F" if by_columns else "C")


def read_arrays(file: Path) -> Any:
    """What the pickle `file` holds, arrays as `Array`. Raises InvalidRequest for any other file."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise _refused(file, f"it has more than {_MOST_BYTES >> 30} GiB")
        data = file.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{file}: can't be read ({error.strerror or error}); check the path") from None
    try:
        _check_instructions(data)
        return _Unpickler(io.BytesIO(data)).load()
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise _refused(file, reason) from None


def _check_instructions(data: bytes) -> None:
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
        if "PUT" in instruction.name and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError("it numbers more objects than it has")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name that arrays need."""
        wanted = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if wanted not in _NAMES:
            raise pickle.UnpicklingError(f"it names {wanted[:80]!r}")
        return _Named(_NAMES[wanted])


class _Named:
    """A function that a pickle may call, and can't change."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def __setstate__(self, state: Any) -> Never:
        raise pickle.UnpicklingError("it changes a function")


class _Type:
    """The type of an array's elements."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _TYPES:
            raise pickle.UnpicklingError(f"it has elements of type {str(name)[:20]!r}")
        self.dtype = np.dtype(_TYPES[name])

    def __setstate__(self, state: Any) -> None:
        """Says again what the name has said; only the order of bytes is news."""
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(f"its elements have the byte order {str(state[1])[:20]!r}")


class _Storage:
    """The elements of a tensor."""

    __slots__ = ("values",)

    def __init__(self, raw: bytes) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch calls storages with a type old, and pickles them to this day
            storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            if not isinstance(storage, torch.TypedStorage):
                raise pickle.UnpicklingError("it has a tensor without elements")
            self.values = torch.tensor(storage, dtype=storage.dtype).numpy()

    def __setstate__(self, state: Any) -> Never:
        raise pickle.UnpicklingError("it changes a tensor")


def _tensor(storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Array:
    """A tensor whose elements follow one another."""
    following = [prod(size[axis + 1 :]) for axis in range(len(size))]
    if any(n > 1 and step != wanted for n, step, wanted in zip(size, stride, following, strict=True)):
        raise pickle.UnpicklingError("it has a tensor whose elements do not follow one another")
    if min((offset, *size), default=0) < 0 or offset + prod(size) > len(storage.values):
        raise pickle.UnpicklingError("it has a tensor larger than its storage")
    return Array(storage.values[offset : offset + prod(size)].reshape(tuple(size)))


def _shaped(raw: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not (isinstance(dtype, _Type) and isinstance(raw, bytes | bytearray) and order in ("C", "F")):
        raise pickle.UnpicklingError("it has an array that is not made of numbers")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order=order)


def _number(dtype: Any, raw: Any) -> float:
    return float(_shaped(raw, dtype, (), "C"))


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes a text")
    return text.encode("latin1")


def _refused(file: Path, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{file}: refused, since {reason}; a file of quantizers holds arrays and numbers alone, and nothing of it "
        "was run"
    )


_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": lambda *_: Array(),
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": lambda *_: Array(),
    "numpy.core.multiarray.scalar": _number,
    "numpy.core.numeric._frombuffer": lambda *given: Array(_shaped(*given)),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _Storage,
    "collections.OrderedDict": dict,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": lambda: b"",
}
