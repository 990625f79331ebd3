"""How a cluster file becomes a checked configuration.

One rule of precedence: flag over environment over file over memory preset over default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from moorage.runtime.config.checks import complaints
from moorage.runtime.config.errors import one_line
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import Source, read_source
from moorage.runtime.config.types import Section
from moorage.workers.errors import InvalidConfig


def load_cluster_config(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> ClusterConfig:
    """Validates `path`, under `MOORAGE_SECTION__KEY` variables and `section.key=value` flags.

    A relative path in the file is relative to the file. Raises InvalidConfig with one line that names
    where the value was given, the key, and the fix.
    """
    return build_config(read_source(path, overrides, environ))


def build_config(source: Source) -> ClusterConfig:
    """The validated configuration of merged values. Raises InvalidConfig as `load_cluster_config` does."""
    try:
        config = ClusterConfig.model_validate(source.values)
    except ValidationError as error:
        raise InvalidConfig(one_line(error, source, ClusterConfig)) from error
    for section, key, why in complaints(config):
        raise InvalidConfig(f"{source.where((section, key))}: {section}.{key}: {why}")
    with_paths = ("model", "kv_store", "server", "sessions")
    anchored = {name: _anchored(getattr(config, name), name, source) for name in with_paths}
    return config.model_copy(update=anchored)


def _anchored(section: Section, name: str, source: Source) -> Section:
    """The section with every path in it made absolute."""
    paths = {key: value for key, value in section if isinstance(value, Path)}
    for key, path in paths.items():
        from_file = source.where((name, key)).startswith(str(source.path))
        base = source.path.parent if from_file else Path()
        paths[key] = (base / path.expanduser()).resolve()
    return section.model_copy(update=paths)
