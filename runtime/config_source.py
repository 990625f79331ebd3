"""Where configuration values come from: a YAML file with line numbers, the environment, and `--set` flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moorage.workers.errors import InvalidConfig

PREFIX = "MOORAGE_"
Tree = dict[str, Any]


@dataclass(slots=True)
class Source:
    """Values merged so far, and where each key was given, for messages."""

    path: Path
    values: Tree
    origin: dict[tuple[str, ...], str] = field(default_factory=dict)

    def where(self, keys: tuple[str, ...]) -> str:
        """The file and line, variable or flag that gave `keys`, or the nearest key above."""
        while keys and keys not in self.origin:
            keys = keys[:-1]
        return self.origin.get(keys, str(self.path))

    def put(self, section: str, key: str, value: object, origin: str) -> None:
        """Sets one value over what stood there."""
        part = self.values.setdefault(section, {})
        if not isinstance(part, dict):
            part = self.values[section] = {}
        part[key] = value
        self.origin[section, key] = origin
        self.origin.setdefault((section,), origin)


def read_source(path: str | Path, overrides: Iterable[str], environ: Mapping[str, str]) -> Source:
    """The file's values, with the environment's above them and the `section.key=value` flags above all.

    Raises InvalidConfig with file and line, variable or flag.
    """
    source = _read_file(Path(path))
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX) and "__" in name:
            section, key = name.removeprefix(PREFIX).lower().split("__", 1)
            source.put(section, key, _scalar(value, f"environment {name}"), f"environment {name}")
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise InvalidConfig(f"--set {override}: should be section.key=value, as in memory.preset=full")
        source.put(section, key, _scalar(value, f"--set {override}"), f"--set {override}")
    return source


def _scalar(text: str, origin: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{origin}: the value is not YAML; put it in quotes") from error


def _read_file(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidConfig(f"{path}: no such file; give the path of a cluster.yaml") from error
    except IsADirectoryError as error:
        raise InvalidConfig(f"{path}: is a directory; give the path of a cluster.yaml") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise InvalidConfig(f"{path}: can't be read ({error.strerror}); check its permissions") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        source = Source(path, {})
        if root is None:
            raise InvalidConfig(f"{path}:1: the file is empty; the least it needs is `model: {{path: DIR}}`")
        if not isinstance(root, yaml.MappingNode):
            raise InvalidConfig(
                f"{path}:1: not a mapping of sections; it should begin like `model: {{path: DIR}}`"
            )
        _record_lines(source, root, ())
        # a section with all its keys commented out reads as None
        source.values = {key: {} if part is None else part for key, part in yaml.safe_load(text).items()}
    except yaml.YAMLError as error:
        raise InvalidConfig(_not_yaml(path, error)) from error
    return source


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{path}:{line}: not YAML ({problem}); correct this line"


def _record_lines(source: Source, node: yaml.MappingNode, above: tuple[str, ...]) -> None:
    for key_node, value_node in node.value:
        keys = (*above, str(key_node.value))
        origin = f"{source.path}:{key_node.start_mark.line + 1}"
        if keys in source.origin:
            raise InvalidConfig(f"{origin}: {'.'.join(keys)} is given twice; keep one of the two")
        source.origin[keys] = origin
        if isinstance(value_node, yaml.MappingNode):
            _record_lines(source, value_node, keys)
