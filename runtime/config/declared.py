"""Sections of the cluster file made from the declarations of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, Field, Strict, create_model

from moorage.runtime.config.names import READ_AS, REFUSED, keys_of_section, keys_of_setting
from moorage.runtime.config.types import Number, Section
from moorage.runtime.config.units import one_of, parse_bytes, parse_tokens
from moorage.workers.spec.setting import Limits, Setting

_MOST = {"": 2**31 - 1, "tokens": 2**40, "bytes": 2**60}
_READERS = {"tokens": BeforeValidator(parse_tokens), "bytes": BeforeValidator(parse_bytes)}


class DeclaredSection(Section):
    """A section with the keys of its settings; None is left to the preset."""

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any: ...


Kind = TypeVar("Kind", bound=DeclaredSection)


def with_settings(section: str) -> Callable[[type[Kind]], type[Kind]]:
    """Gives a section a field for every key that names a setting there."""

    def extended(kind: type[Kind]) -> type[Kind]:
        fields: dict[str, Any] = {key: _field(section, key, each) for key, each in keys_of_section(section)}
        return create_model(
            kind.__name__, __base__=kind, __module__=kind.__module__, __doc__=kind.__doc__, **fields
        )

    return extended


def _field(section: str, key: str, setting: Setting) -> tuple[Any, Any]:
    declared, shown = setting.declared, keys_of_setting(setting.name)[0]
    words = declared.description
    if shown != f"{section}.{key}":
        words = f"The same as {shown}: {words[0].lower()}{words[1:]}"
    annotation, optional = _without_none(setting.kind)
    annotation = _limited(setting, annotation)
    if optional or declared.of_preset:
        annotation |= None
    default = None if declared.of_preset else setting.default
    return annotation, Field(
        default, description=words, json_schema_extra={"research": True} if declared.research else None
    )


def _without_none(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) is not UnionType:
        return kind, False
    first, *others = [each for each in get_args(kind) if each is not NoneType]
    assert not others
    return first, True


def _limited(setting: Setting, kind: Any) -> Any:
    """The type of a value in the file, with its limits and its reading."""
    limits, unit = setting.declared.limits, setting.declared.limits.unit
    if unit:
        number = Annotated[int, _READERS[unit], _bounds(limits, 1, _MOST[unit])]
        return Annotated[number, _words(setting.name, ())] if setting.name in READ_AS else number
    if kind is int:
        return Annotated[int, Strict(), _bounds(limits, 1, _MOST[unit])]
    if kind is float:
        return Annotated[Number, _bounds(limits)]
    if setting.name in READ_AS or setting.name in REFUSED:
        return Annotated[kind, _words(setting.name, kind)]
    return kind


def _bounds(limits: Limits, least: float | None = None, most: float | None = None) -> Any:
    if limits.above is None:
        least = least if limits.least is None else limits.least
    return Field(ge=least, gt=limits.above, le=most if limits.most is None else limits.most)


def _words(name: str, kind: Iterable[str]) -> BeforeValidator:
    """Reads the words of other systems, or says what they are called here."""
    read_as, refused = READ_AS.get(name, {}), REFUSED.get(name, {})

    def read(value: Any) -> Any:
        if isinstance(value, bool):
            return read_as.get(value, value)
        if isinstance(value, str) and value in refused:
            raise ValueError(f"{refused[value]}; use {one_of(tuple(kind))}")
        return value

    return BeforeValidator(read)
