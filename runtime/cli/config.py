"""`runtime config`: check a cluster file, or print the reference of all keys."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
import yaml

from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_note, print_text
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.reference import (
    KeyReference,
    explained,
    json_schema,
    reference,
    resolved,
    section_words,
)
from moorage.runtime.config.resolve import resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.preflight import check_host
from moorage.workers.hf_config import read_model_spec

_RULE = (
    "Precedence: --set section.key=value, then the environment (MOORAGE_SECTION__KEY), then the file, "
    "then the preset, then the default."
)
_FOR_RESEARCH = " (for research)"


@app.command(
    epilog=examples(
        "runtime config deploy/local.yaml",
        "runtime config cluster.yaml --set memory.preset=inf-llm --json",
        "runtime config --example local",
        "runtime config --explain",
        "runtime config --explain memory long_context.chunk_size",
        "runtime config --explain scheduler cluster.yaml",
    )
)
def config(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="The cluster file to check; with --explain also sections, or keys such as memory.topk.",
            show_default=False,
        ),
    ] = None,
    example: o.Example = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
    ] = None,
    file_only: Annotated[
        bool,
        typer.Option(
            "--file-only",
            help="Check the file alone, and not its model, this host's memory, devices and port, or its Ray cluster.",
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Print the reference of all keys, or of the sections named, with the defaults of the preset that "
            "the file or --set memory.preset=NAME names.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --explain the JSON schema.")
    ] = False,
) -> None:
    """Check a cluster file and all that its launch needs, and print it with every default filled in."""
    if explain:
        _explain(names or [], overrides or [], as_json)
        return
    if len(names or ()) > 1:
        raise typer.BadParameter(
            "give one cluster file or model directory, or --explain for the reference", param_hint="FILE"
        )
    file = o.cluster_file(Path(names[0]) if names else None, example)
    loaded = load_cluster_config(file, overrides or ())
    if file_only:
        values = resolved(loaded, resolve_settings(loaded))
    else:
        limit = check_host(loaded, print_note)
        values = resolved(loaded, resolve_settings(loaded, read_model_spec(loaded.model.path)))
        values["long_context"]["max_seq_len"] = limit.max_seq_len
        for warning in limit.warnings:
            print_note(f"warning: {warning}")
    if as_json:
        print_json(values)
    else:
        print(yaml.safe_dump(values, sort_keys=False), end="")


def _explain(names: list[str], overrides: list[str], as_json: bool) -> None:
    if as_json:
        print_json(json_schema())
        return
    asked = [name for name in names if _is_explained(name)]
    files = [name for name in names if name not in asked]
    if len(files) > 1:
        raise typer.BadParameter(
            f"{' and '.join(files[:2])} are no sections or keys; give one file at most", param_hint="FILE"
        )
    if files and not Path(files[0]).exists():
        raise typer.BadParameter(
            f"{files[0]} is neither a section, a key nor a file; sections: {', '.join(ClusterConfig.model_fields)}",
            param_hint="FILE",
        )
    loaded = load_cluster_config(files[0], overrides) if files else explained(overrides)
    rows = [row for row in reference(loaded) if not asked or _covers(asked, row)]
    for (section, research), group in groupby(rows, key=lambda row: (row.section, row.research)):
        print_text(f"{section}{_FOR_RESEARCH if research else ''}: {section_words(section)}")
        print()
        for row in group:
            given = "" if row.given is None else f"; given: {row.given}"
            print_text(f"{row.key} = {row.default}{given}", indent="  ")
            print_text(row.description, indent="      ")
        print()
    print_text(_RULE)


def _is_explained(name: str) -> bool:
    section, _, key = name.partition(".")
    return any(row.section == section and key in ("", row.key) for row in reference())


def _covers(asked: list[str], row: KeyReference) -> bool:
    return row.section in asked or f"{row.section}.{row.key}" in asked
