"""Where configuration values come from: a YAML file with line numbers, the environment, and `--set` flags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moorage.runtime.config.yaml_reading import compose, construct, parse_value, read_text
from moorage.workers.errors import InvalidConfig
from moorage.workers.gguf.files import SUFFIX as GGUF_SUFFIX
from moorage.workers.gguf.files import gguf_files
from moorage.workers.hf_directory import check_directory

PREFIX = "MOORAGE_"
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_MOST_SHOWN = 100
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Files that people give for a model; its directory, a GGUF file or a cluster file is what can be launched."""
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

    def put_environment(self, environ: Mapping[str, str]) -> None:
        """Sets the values of `MOORAGE_SECTION__KEY` variables. Raises InvalidConfig with the variable."""
        for name, value in sorted(environ.items()):
            if name.startswith(PREFIX) and "__" in name:
                section, key = name.removeprefix(PREFIX).lower().split("__", 1)
                origin = f"environment {name[:_MOST_SHOWN]}"
                self.put(section, key, _scalar(value, origin), origin)

    def put_overrides(self, overrides: Iterable[str]) -> None:
        """Sets the values of `section.key=value` flags. Raises InvalidConfig with the flag."""
        for override in overrides:
            origin = f"--set {_clipped(override)}"
            name, equals, value = override.partition("=")
            section, dot, key = name.strip().partition(".")
            if not (equals and dot and key):
                raise InvalidConfig(f"{origin}: should be section.key=value, as in memory.preset=full")
            self.put(section, key, _scalar(value, origin), origin)


def read_source(path: str | Path, overrides: Iterable[str], environ: Mapping[str, str]) -> Source:
    """The file's values, with the environment's above them and the `section.key=value` flags above all.

    A model directory or GGUF file in its place is a file with nothing but model.path. Raises InvalidConfig
    with file and line, variable or flag, and InvalidModel for a file of weights.
    """
    given = Path(path)
    if given.suffix.lower() in _WEIGHTS:
        check_directory(given)
    source = _model(given) if is_model(given) else _read_file(given)
    source.put_environment(environ)
    source.put_overrides(overrides)
    return source


def is_model(path: Path) -> bool:
    """Whether a path is that of a model and not of a cluster file."""
    return os.path.isdir(path) or path.suffix.lower() == GGUF_SUFFIX


def _model(path: Path) -> Source:
    if not ((path / "config.json").is_file() or gguf_files(path)):
        if path.suffix.lower() == GGUF_SUFFIX:
            raise InvalidConfig(f"{path}: no such file; give the path of a model or of a cluster file")
        raise InvalidConfig(
            f"{path}: is a directory without config.json; give the path of a model directory or of a cluster file"
        )
    source = Source(path, {})
    source.put("model", "path", str(path.resolve()), str(path))
    return source


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _scalar(text: str, origin: str) -> object:
    try:
        return parse_value(text, origin)
    except InvalidConfig as error:
        if "not YAML" not in str(error):
            raise
        raise InvalidConfig(f"{origin}: the value is not YAML; put it in quotes") from error


def _read_file(path: Path) -> Source:
    root = compose(read_text(path, "the path of a cluster file or of a model directory"), str(path))
    source = Source(path, {})
    if root is None:
        raise InvalidConfig(f"{path}:1: the file is empty; the least it needs is `model: {{path: DIR}}`")
    if not isinstance(root, yaml.MappingNode):
        raise InvalidConfig(
            f"{path}:1: not a mapping of sections; it should begin like `model: {{path: DIR}}`"
        )
    _record_lines(source, root, ())
    # a section with all its keys commented out reads as None
    source.values = {key: {} if part is None else part for key, part in construct(root, str(path)).items()}
    return source


def _record_lines(source: Source, node: yaml.MappingNode, above: tuple[str, ...]) -> None:
    for key_node, value_node in node.value:
        origin = f"{source.path}:{key_node.start_mark.line + 1}"
        if key_node.tag not in _KEY_TAGS:
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a mapping or list"
            raise InvalidConfig(
                f"{origin}: got {shown[:40] or 'nothing'} as a key; keys are words such as chunk_size"
            )
        keys = (*above, str(key_node.value))
        source.origin[keys] = origin
        if isinstance(value_node, yaml.MappingNode):
            _record_lines(source, value_node, keys)
