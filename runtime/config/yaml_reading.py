"""YAML within limits: bytes, depth and expanded size are counted on the event stream, before anything is built.

A small file can stand for a huge value: aliases of aliases grow exponentially, and deep nesting exhausts the stack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from moorage.workers.errors import InvalidConfig

MAX_BYTES = 1 << 20
"""Largest file that is read."""
MAX_DEPTH = 32
"""Deepest nesting of mappings and lists."""
MAX_NODES = 20_000
"""Most keys, values and list items, with every alias counted as all that it stands for."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MOST_DIGITS = 60
_BAD_VALUES = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """The safe loader; a scalar that its own tag can't hold, such as the date 2026-13-45, is an error of YAML."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            problem = f"{node.value[:20]}... is too long a number"
            raise ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except _BAD_VALUES as error:
            shown = str(node.value)[:40]
            problem = f"{shown!r} is no {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


@dataclass(slots=True)
class _Open:
    """A mapping or list that has begun."""

    anchor: str | None
    num_nodes: int = 1


@dataclass(slots=True)
class _Counter:
    """Depth and expanded size of the document so far."""

    origin: str
    stack: list[_Open] = field(default_factory=lambda: [_Open(None)])
    sizes: dict[str, int] = field(default_factory=dict)
    """Expanded size of each anchor that is complete."""

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.stack.append(_Open(event.anchor))
            if len(self.stack) - 1 > MAX_DEPTH:
                raise self._error(event, f"nested more than {MAX_DEPTH} deep; a configuration needs 3")
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self.stack.pop()
            self._add(event, closed.num_nodes, closed.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event, 1, event.anchor)

    def _alias(self, event: yaml.AliasEvent) -> None:
        if any(parent.anchor == event.anchor for parent in self.stack):
            raise self._error(event, f"*{event.anchor} stands inside &{event.anchor} itself; write it out")
        # An alias without an anchor is refused by the composer, with its own words.
        self._add(event, self.sizes.get(event.anchor or "", 1), None)

    def _add(self, event: yaml.Event, num_nodes: int, anchor: str | None) -> None:
        self.stack[-1].num_nodes += num_nodes
        if sum(parent.num_nodes for parent in self.stack) > MAX_NODES:
            raise self._error(event, f"more than {MAX_NODES} values, aliases written out; remove some")
        if anchor is not None:
            self.sizes[anchor] = num_nodes

    def _error(self, event: yaml.Event, problem: str) -> InvalidConfig:
        return InvalidConfig(f"{self.origin}:{_line(event.start_mark)}: {problem}")


def read_text(path: Path, instead: str) -> str:
    """The text of a file of at most MAX_BYTES. `instead` is what should have been given.

    Raises InvalidConfig with the path for a file that is missing, too large, not UTF-8 or not to be read.
    """
    shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:197]}..."
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidConfig(f"{shown}: is larger than {MAX_BYTES >> 20} MiB; give {instead}")
        return data.decode()
    except FileNotFoundError as error:
        raise InvalidConfig(f"{shown}: no such file or directory; give {instead}") from error
    except IsADirectoryError as error:
        raise InvalidConfig(f"{shown}: is a directory; give {instead}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{shown}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise InvalidConfig(f"{shown}: can't be read ({error.strerror}); give {instead}") from error
    except ValueError as error:
        raise InvalidConfig(f"{shown!r}: is no path ({error}); give {instead}") from error


def compose(text: str, origin: str) -> yaml.Node | None:
    """The node tree of a text within the limits; None when it is empty.

    Raises InvalidConfig with `origin` and line for a text that is not YAML, exceeds a limit or gives a key twice.
    """
    if len(text) > MAX_BYTES:
        raise InvalidConfig(f"{origin}: is larger than {MAX_BYTES >> 20} MiB; give less")
    try:
        counter = _Counter(origin)
        for event in yaml.parse(text, Loader=_Loader):
            counter.take(event)
        root = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError) as error:
        raise not_yaml(origin, error) from error
    if root is not None:
        _refuse_duplicates(root, origin, (), set())
    return root


def construct(root: yaml.Node, origin: str) -> Any:
    """The plain value of a node tree. Raises InvalidConfig with line for a value that its tag can't hold."""
    loader = _Loader("")
    try:
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise not_yaml(origin, error) from error
    finally:
        loader.dispose()


def parse_value(text: str, origin: str) -> Any:
    """The value of a whole text, None when it is empty. Raises InvalidConfig as `compose` and `construct` do."""
    root = compose(text, origin)
    return None if root is None else construct(root, origin)


def not_yaml(origin: str, error: Exception) -> InvalidConfig:
    """One line with the place of an error."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    line = _line(getattr(error, "problem_mark", None))
    return InvalidConfig(f"{origin}:{line}: not YAML ({' '.join(str(problem).split())}); correct this line")


def _line(mark: Any) -> int:
    return mark.line + 1 if mark is not None else 1


def _refuse_duplicates(node: yaml.Node, origin: str, above: tuple[str, ...], seen: set[int]) -> None:
    """Refuses a mapping that gives a key twice, of which YAML would silently keep the last."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if not isinstance(node, yaml.MappingNode):
        for item in node.value:
            _refuse_duplicates(item, origin, above, seen)
        return
    given: set[str] = set()
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
        if name in given and name not in ("?", "<<"):
            path = ".".join((*above, name))[:80]
            raise InvalidConfig(
                f"{origin}:{_line(key.start_mark)}: {path} is given twice; keep one of the two"
            )
        given.add(name)
        _refuse_duplicates(value, origin, (*above, name), seen)
