"""The `runtime` command line: the app that commands register with, and its behaviour on errors.

Exit codes: 0 done, 1 it failed (one line `error: …` on stderr), 2 the command line itself is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated

import typer

from moorage.runtime.cli.output import print_error
from moorage.workers.errors import MoorageError

COMMANDS = {
    "launch": "moorage.runtime.cli.launch",
    "status": "moorage.runtime.cli.status",
    "stop": "moorage.runtime.cli.stop",
    "generate": "moorage.runtime.cli.generate",
    "chat": "moorage.runtime.cli.chat",
    "score": "moorage.runtime.cli.score",
    "tokenize": "moorage.runtime.cli.tokenize",
    "detokenize": "moorage.runtime.cli.tokenize",
    "size": "moorage.runtime.cli.size",
    "config": "moorage.runtime.cli.config",
    "presets": "moorage.runtime.cli.presets",
    "import-config": "moorage.runtime.cli.import_config",
    "eval": "moorage.runtime.cli.eval_tasks",
    "inspect": "moorage.runtime.cli.eval_recall",
    "bench": "moorage.runtime.cli.bench",
    "demo": "moorage.runtime.cli.demo",
}
"""Command name -> the module that registers it with `app`; the order is that of `runtime --help`."""

app = typer.Typer(
    name="runtime",
    help="Serve very long prompts with the KV cache in CPU memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def examples(*lines: str) -> str:
    """The epilog of a command's help, with one example to a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"runtime {metadata.version('moorage')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code; `argv` defaults to the process's own arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _load_commands(arguments)
    try:
        app(args=arguments, prog_name="runtime")
    except MoorageError as error:
        print_error(error)
        sys.exit(1)


def _load_commands(arguments: Sequence[str]) -> None:
    """Import the module of the named command, or of all of them for help and for an unknown name."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    modules = [COMMANDS[named]] if named in COMMANDS else list(COMMANDS.values())
    for module in modules:
        import_module(module)
