"""`runtime import-config`: another system's configuration as a cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.config.importers import import_config


@app.command(
    "import-config",
    epilog=examples(
        "runtime import-config ~/.ktransformers/config.yaml > cluster.yaml",
        "runtime import-config mistral-inf-llm.yaml --json",
        "runtime import-config serve.py > cluster.yaml",
    ),
)
def import_config_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A ktransformers config.yaml, its keys alone or its command line; an InfLLM YAML; or LMDeploy "
            "engine arguments: YAML, an lmdeploy command line, or Python with a TurbomindEngineConfig(...) call, "
            "which is not run."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, notes included.")] = False,
) -> None:
    """Turn another system's configuration into a cluster file, and say what could not be carried over."""
    found = import_config(file)
    if as_json:
        print_json({"system": found.system, "config": found.sections, "not_carried_over": found.notes})
        return
    print(yaml.safe_dump(found.sections, sort_keys=False), end="")
    for note in found.notes:
        print_note(f"note: {note}")
