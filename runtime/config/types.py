"""Kinds of configuration values, each with the check that says what would be right."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag

from moorage.runtime.config.addresses import check_address
from moorage.runtime.config.units import parse_bytes, parse_seconds, parse_tokens

_MOST_PATH_BYTES, _MOST_NAME_BYTES = 4095, 255
_MOST_CPUS = 8192


class Section(BaseModel):
    """A frozen section that refuses unknown keys; every field's description is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _ray_address(value: Any) -> Any:
    if isinstance(value, str) and value in ("local", "auto"):
        return value
    try:
        address = check_address(value)
    except ValueError as error:
        raise ValueError("should be local, auto or HOST:PORT of a running Ray cluster") from error
    if address.endswith(":0"):
        raise ValueError("should be local, auto or HOST:PORT of a running Ray cluster; port 0 is none")
    return address


def _http_address(value: Any) -> Any:
    """YAML 1.1 reads `off` as false."""
    if value is False or value in ("off", "auto"):
        return value or "off"
    try:
        return check_address(value)
    except ValueError:
        raise ValueError(
            "should be HOST:PORT without http://, such as 127.0.0.1:8000, or off, or auto"
        ) from None


def _number(value: Any) -> Any:
    """`1e6` is text to YAML 1.1, and true is no number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("should be a finite number, such as 0.5")
    return number


def _path(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("is empty; give the directory of a model, as in `path: models/my-model`")
    if "\0" in text:
        raise ValueError("has a NUL character, which no path can have; remove it")
    try:
        name = os.fsencode(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(
            "begins with ~ and a name that is no user of this host; write the path out"
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError("has a character that no path can have; remove it") from error
    if len(name) > _MOST_PATH_BYTES or any(len(part) > _MOST_NAME_BYTES for part in name.split(b"/")):
        raise ValueError(
            f"is longer than a path can be ({_MOST_PATH_BYTES} bytes, {_MOST_NAME_BYTES} for each name); shorten it"
        )
    return value


def _plain_text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has a character that can't be printed; use letters, digits and dashes")
    return value


def _collector(value: str) -> str:
    scheme, found, address = value.rpartition("://")
    if found and scheme not in ("http", "https"):
        raise ValueError("should be HOST:PORT, or that after http:// or https://")
    check_address(address)
    return value


def _cpu_list(value: Any) -> Any:
    cpus: list[int] = []
    try:
        parts = list(map(str, value)) if isinstance(value, list | tuple) else str(value).split(",")
        for part in parts:
            first, _, last = part.partition("-")
            if int(last or first) >= _MOST_CPUS:
                raise ValueError
            cpus += range(int(first), int(last or first) + 1)
    except ValueError:
        cpus = []
    if not cpus or min(cpus) < 0:
        raise ValueError(f"should be CPU numbers below {_MOST_CPUS} and ranges, such as 0-15 or 0,2,4-7")
    return tuple(cpus)


_MOST_TOKENS = 2**40
Count = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
Threads = Annotated[int, Strict(), Field(ge=1, le=1024)]
Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, Strict(), AfterValidator(_plain_text)]
DirectoryPath = Annotated[Path, BeforeValidator(_path)]
Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=1, le=_MOST_TOKENS)]
TokensOrAuto = Annotated[
    Annotated[Tokens, Tag("tokens")] | Annotated[Literal["auto"], Tag("auto")],
    # Told apart beforehand, so that a refusal speaks of one of them alone.
    Discriminator(lambda value: "auto" if value == "auto" else "tokens"),
]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, le=2**60)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0, le=1e9)]
FilePath = Annotated[Path, BeforeValidator(_path)]
FileOrNone = Annotated[
    Annotated[FilePath, Tag("file")] | Annotated[Literal["none"], Tag("none")],
    Discriminator(lambda value: "none" if value == "none" else "file"),
]
HostPort = Annotated[str, BeforeValidator(check_address)]
HttpAddress = Annotated[str, BeforeValidator(_http_address)]
Collector = Annotated[Text, AfterValidator(_collector)]
CpuList = Annotated[tuple[int, ...], BeforeValidator(_cpu_list)]
RayAddress = Annotated[str, BeforeValidator(_ray_address)]
