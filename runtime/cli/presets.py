"""`runtime presets`: the memory presets and their axes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_table
from moorage.runtime.presets import PRESETS

_RULE = (
    "Axes set in the cluster file stand above its preset's. A request may name another preset; then the store\n"
    "(block_size, anchors, kv_type), local_windows_len, pretraining_length, rebase_every and recall_every stay the\n"
    "cluster's, and every other axis is that preset's."
)
_UNSET = {"topk": "all", "dca_chunk": "3/4 trained", "session_len": "each its own"}
"""What an axis without a value stands for, where it is not the checkpoint's own."""


@app.command(
    epilog=examples(
        "runtime presets",
        "runtime presets --json",
    )
)
def presets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the memory presets with the value of every axis."""
    rows = {
        name: {axis: _value(value) for axis, value in preset.axes().items()}
        for name, preset in PRESETS.items()
    }
    if as_json:
        print_json(
            {
                "presets": [
                    {"name": name, "source": PRESETS[name].source, **axes} for name, axes in rows.items()
                ]
            }
        )
        return
    axes = next(iter(rows.values()))
    print_table(
        ("axis", *rows),
        [(axis, *(_shown(axis, values[axis]) for values in rows.values())) for axis in axes],
        notes=[*(f"{name}: {preset.source}" for name, preset in PRESETS.items()), "", _RULE],
    )


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _shown(axis: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(axis, "as the model")
    return str(value).lower() if isinstance(value, bool) else str(value)
