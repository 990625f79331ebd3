"""`runtime presets`: the memory presets and their axes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_table, print_text
from moorage.runtime.config.names import PRESET_SETTINGS, shown_key
from moorage.runtime.config.presets import PRESETS, Preset, check_preset_name
from moorage.runtime.config.schema import MemorySection

_RULE = (
    "Axes set in the cluster file stand above its preset's. A request may name another preset and set single axes "
    "(--memory topk=64). Then the store (block_size, anchors, kv_type), a local_windows_len that the file gives, "
    "pretraining_length, rebase_every and recall_every stay the cluster's, and every other axis is that preset's. "
    "The usage record says where the cluster differs from the preset (preset_differs). Where a model was trained on "
    "few tokens, dense_until, the window and the blocks selected stay within its trained length."
)
_NONE = {shown_key(each.name): each.declared.none for each in PRESET_SETTINGS}
"""What an axis without a value stands for."""


@app.command(
    epilog=examples(
        "runtime presets",
        "runtime presets inf-llm",
        "runtime presets --json",
        "runtime config --explain memory --set memory.preset=inf-llm",
    )
)
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show every axis of this preset.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the memory presets and what sets each apart, or every axis of one."""
    shown = list(PRESETS.values()) if name is None else [_preset(name)]
    if as_json:
        print_json({"presets": [_as_json(preset) for preset in shown]})
    elif name is None:
        _print_all(shown)
    else:
        print_text(f"{shown[0].name}: {shown[0].source}")
        print()
        print_table(
            ("axis", "value"), [(axis, _shown(axis, value)) for axis, value in shown[0].axes().items()]
        )


def _preset(name: str) -> Preset:
    try:
        return PRESETS[check_preset_name(name)]
    except ValueError as error:
        raise typer.BadParameter(f"{name!r}: {error}", param_hint="NAME") from error


def _print_all(shown: list[Preset]) -> None:
    for preset in shown:
        default = " (the default)" if preset.name == MemorySection().preset else ""
        print_text(f"{preset.name}{default}")
        print_text(preset.source, indent="    ")
        own = {shown_key(name): value for name, value in preset.differs.items()}
        print_text(_listed(own) or "every axis as listed below", indent="    ")
    print()
    print_text("Every other axis of a preset:")
    print_text(_listed(Preset("", "").axes()), indent="    ")
    print()
    print_text("`runtime config --explain memory long_context` says what each axis does.")
    print_text(_RULE)


def _listed(axes: dict[str, Any]) -> str:
    return ", ".join(f"{axis}={_shown(axis, value)}" for axis, value in axes.items())


def _as_json(preset: Preset) -> dict[str, Any]:
    axes = {axis: _value(value) for axis, value in preset.axes().items()}
    return {"name": preset.name, "source": preset.source, **axes}


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _shown(axis: str, value: Any) -> str:
    if value is None:
        return _NONE[axis]
    return str(value).lower() if isinstance(value, bool) else str(_value(value))
