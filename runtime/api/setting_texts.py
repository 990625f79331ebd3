"""Settings of a request as its record has them: by key, with values in YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping

from moorage.workers.errors import InvalidRequest


def setting_texts(memory: object) -> dict[str, str]:
    """The settings with their values in YAML, of which JSON is a part. A text stays as it is.

    Raises InvalidRequest for what is no mapping, and for a value that JSON has no form for.
    """
    if not isinstance(memory, Mapping):
        raise InvalidRequest("memory: must be a mapping of settings, such as {'topk': 64}")
    found = {}
    for key, value in memory.items():
        try:
            found[str(key)] = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError):
            raise InvalidRequest(
                f"memory: {key}: {str(value)[:40]!r} can't be sent; check its type"
            ) from None
    return found
