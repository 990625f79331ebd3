"""Moorage serves very long prompts with models whose KV cache lies in CPU memory.

`moorage.client` is the client; the commands are `moorage` and `runtime`, two names of one program. `moorage.pipeline`
runs a model in this process.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moorage.runtime.offline import Pipeline, pipeline

__all__ = ["Pipeline", "pipeline"]

__version__ = "0.1.0"

# An editable installation finds source folders that have no `__init__.py` by an entry of sys.path, which Python
# looks for on the path of the package above them. The list is empty in any other installation.
__path__ += [entry for entry in sys.path if entry.startswith("__editable__.moorage-")]


def __getattr__(name: str) -> object:
    """Loads what runs a model when it is asked for; the client needs none of it."""
    if name in __all__:
        from moorage.runtime import offline

        return getattr(offline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
