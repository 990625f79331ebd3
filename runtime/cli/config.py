"""`runtime config`: check a cluster file, or print the reference of all keys."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
import yaml

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.config import load_cluster_config
from moorage.runtime.config_explain import json_schema, reference, resolved, section_words
from moorage.runtime.preflight import check_host
from moorage.runtime.presets import resolve_preset

_RULE = (
    "Precedence: --set section.key=value, then the environment (MOORAGE_SECTION__KEY), then the file, "
    "then the preset, then the default."
)


@app.command(
    epilog=examples(
        "runtime config deploy/local.yaml",
        "runtime config --explain",
        "runtime config cluster.yaml --set memory.preset=inf-llm --json",
    )
)
def config(
    file: Annotated[
        Path | None, typer.Argument(help="The cluster file to check.", show_default=False)
    ] = None,
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
    explain: Annotated[bool, typer.Option("--explain", help="Print the reference of all keys.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --explain the JSON schema.")
    ] = False,
) -> None:
    """Check a cluster file and print it with every default filled in."""
    if explain:
        _explain(as_json)
        return
    if file is None:
        raise typer.BadParameter("give a cluster file, or --explain for the reference", param_hint="FILE")
    loaded = load_cluster_config(file, overrides or ())
    values = resolved(loaded, dataclasses.asdict(resolve_preset(loaded)))
    if not file_only:
        limit = check_host(loaded, print_note)
        values["long_context"]["max_seq_len"] = limit.max_seq_len
        for warning in limit.warnings:
            print_note(f"warning: {warning}")
    if as_json:
        print_json(values)
    else:
        print(yaml.safe_dump(values, sort_keys=False), end="")


def _explain(as_json: bool) -> None:
    if as_json:
        print_json(json_schema())
        return
    for section, rows in groupby(reference(), key=lambda row: row.section):
        print_table(
            ("key", "default", "meaning"),
            [(row.key, row.default, row.description) for row in rows],
            title=f"{section}: {section_words(section)}",
        )
        print()
    print(_RULE)
