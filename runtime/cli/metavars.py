"""Typer applications whose help names a value as people do: N, X, TEXT, FILE or DIR, instead of a Python type."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ParameterInfo

METAVARS = {int: "N", float: "X", str: "TEXT"}
_TYPE_OF_AN_ARGUMENT = "display_type_rich"
"""Typer's method for the type that its help shows behind the name of an argument."""
F = TypeVar("F", bound=Callable[..., Any])


class NamedValuesCommand(TyperCommand):
    """A command whose help shows arguments by their name alone."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                setattr(parameter, _TYPE_OF_AN_ARGUMENT, lambda ctx: None)  # noqa: ARG005  # Typer names it


class App(typer.Typer):
    """Typer, but each option and argument without a `metavar` of its own gets the one of its type."""

    def command(self, *args: Any, **settings: Any) -> Callable[[F], F]:
        """Registers a function as a command, as Typer does."""
        settings.setdefault("cls", NamedValuesCommand)
        register = super().command(*args, **settings)

        def registered(function: F) -> F:
            name_values(function)
            return register(function)

        return registered


def name_values(function: Callable[..., Any]) -> None:
    """Gives a metavar to each of the function's Typer parameters that has none.

    Annotations that are strings are evaluated for good: Typer must read the objects that were changed here.
    """
    function.__annotations__ = get_type_hints(function, include_extras=True)
    for hint in function.__annotations__.values():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, ParameterInfo) and info.metavar is None:
                info.metavar = metavar_of(hint.__origin__, info)


def metavar_of(value_type: Any, info: ParameterInfo) -> str | None:
    """N, X, TEXT, FILE, DIR, or the choices; None for a flag. `X | None` and `list[X]` count as X."""
    kinds = [kind for kind in get_args(value_type) if kind is not type(None)]
    if get_origin(value_type) is Literal:
        return "|".join(map(str, kinds))
    if kinds:
        return metavar_of(kinds[0], info)
    if isinstance(value_type, type) and issubclass(value_type, Enum):
        return "|".join(str(choice.value) for choice in value_type)
    if value_type is Path:
        return "FILE" if info.file_okay else "DIR"
    return METAVARS.get(value_type)
