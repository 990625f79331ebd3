"""Kinds of configuration values, each with the check that says what would be right."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag

from moorage.runtime.addresses import check_address
from moorage.runtime.units import parse_bytes, parse_tokens


class Section(BaseModel):
    """A frozen section that refuses unknown keys; every field's description is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _available(available: tuple[str, ...], refused: dict[str, str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str) and value in refused:
            raise ValueError(f"{refused[value]}; use {' or '.join(available)}")
        return value

    return BeforeValidator(check)


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


def _preselect(value: Any) -> Any:
    if isinstance(value, bool):
        return "prompt" if value else "off"
    return value


def _cpu_list(value: Any) -> Any:
    cpus: list[int] = []
    try:
        for part in str(value).split(","):
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    except ValueError:
        cpus = []
    if not cpus or min(cpus) < 0:
        raise ValueError("should be CPU numbers and ranges, such as 0-15 or 0,2,4-7")
    return tuple(cpus)


PreselectChoice = BeforeValidator(_preselect)
Count = Annotated[int, Strict(), Field(ge=1)]
CountOrZero = Annotated[int, Strict(), Field(ge=0)]
Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=1)]
TokensOrAuto = Annotated[
    Annotated[Tokens, Tag("tokens")] | Annotated[Literal["auto"], Tag("auto")],
    # Told apart beforehand, so that a refusal speaks of one of them alone.
    Discriminator(lambda value: "auto" if value == "auto" else "tokens"),
]
TokensOrZero = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
HostPort = Annotated[str, BeforeValidator(check_address)]
CpuList = Annotated[tuple[int, ...], BeforeValidator(_cpu_list)]
RayAddress = Annotated[str, BeforeValidator(_ray_address)]

_LATER = "is not available in this version"
OnlyKvTypes = _available(("FP16", "FP32"), {name: f"{name} {_LATER}" for name in ("Q4_0", "Q8_0")})
OnlySelectModes = _available(
    ("SHARED", "SEPARATE", "PERHEAD"), {"INDIVIDUAL": "INDIVIDUAL is called PERHEAD here"}
)
