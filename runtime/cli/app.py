"""The command line `runtime`, also called `moorage`: the app that commands register with, and its errors.

Exit codes: 0 done, 1 it failed (one line `error: …` on stderr), 2 the command line itself is wrong.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.failures import failure_line, missing_server_line
from moorage.runtime.cli.metavars import App
from moorage.runtime.cli.output import print_error
from moorage.workers.errors import MoorageError

COMMANDS = {
    "launch": "moorage.runtime.cli.launch",
    "status": "moorage.runtime.cli.status",
    "top": "moorage.runtime.cli.top",
    "stop": "moorage.runtime.cli.stop",
    "generate": "moorage.runtime.cli.generate",
    "chat": "moorage.runtime.cli.chat",
    "session": "moorage.runtime.cli.session",
    "score": "moorage.runtime.cli.score",
    "tokenize": "moorage.runtime.cli.tokenize",
    "detokenize": "moorage.runtime.cli.tokenize",
    "size": "moorage.runtime.cli.size",
    "config": "moorage.runtime.cli.config",
    "presets": "moorage.runtime.cli.presets",
    "import-config": "moorage.runtime.cli.import_config",
    "calibrate": "moorage.runtime.cli.calibrate",
    "eval": "moorage.runtime.cli.eval_tasks",
    "inspect": "moorage.runtime.cli.eval_recall",
    "bench": "moorage.runtime.cli.bench",
    "demo": "moorage.runtime.cli.demo",
    "cache": "moorage.runtime.cli.cache",
    "key": "moorage.runtime.cli.key",
}
"""Command name -> the module that registers it with `app`; the order is that of `runtime --help`."""

PROGRAMS = ("runtime", "moorage")
"""The console scripts of this one program."""
_INTERRUPTED = 130
"""The exit code of shells, and Typer's, for a program that Ctrl-C ended."""
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's base of every fault of a command line; Typer exports only some of the classes below it."""

app = App(
    name="runtime",
    help="Serve very long prompts with the KV cache in CPU memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def program_name() -> str:
    """The name that this program was called by; `runtime` when it was neither console script."""
    called = Path(sys.argv[0])
    name = "moorage" if called.name == "__main__.py" else called.name
    return name if name in PROGRAMS else PROGRAMS[0]


def examples(*lines: str) -> str:
    """The epilog of a command's help, with one example to a line, each under the name that was called."""
    called = program_name()
    shown = (re.sub(r"\bruntime(?= [a-z])", called, line) for line in lines)
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in shown)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"moorage {metadata.version('moorage')}")
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
    program = program_name()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read once by the C core, when grpc is imported
    try:
        _load_commands(_completed_words(program, os.environ) or arguments)
        code = app(args=arguments, prog_name=program, standalone_mode=False)
    except MoorageError as error:
        print_error(error)
        sys.exit(1)
    except _USAGE_ERROR as error:
        _print_usage_error(error)
        sys.exit(2)
    except typer.Abort:
        print_error("the input ended before an answer; nothing was done")
        sys.exit(1)
    except ModuleNotFoundError as error:
        print_error(missing_server_line(error, arguments) or failure_line(error, arguments))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  # the process boundary; the file has the traceback
        print_error(failure_line(error, arguments))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _print_usage_error(error: Exception) -> None:
    """Usage and the way to the help, then the fault, as Typer words them; `error:` as in every other message."""
    shown = io.StringIO()
    error.show(shown)  # type: ignore[attr-defined]
    print(
        re.sub("^Error: ", "error: ", shown.getvalue(), count=1, flags=re.MULTILINE), end="", file=sys.stderr
    )


def _completed_words(program: str, environment: Mapping[str, str]) -> list[str]:
    """The words of the command line that a shell wants completed; empty when it wants none."""
    if f"_{program.upper()}_COMPLETE" not in environment:
        return []
    words = environment.get("_TYPER_COMPLETE_ARGS") or environment.get("COMP_WORDS", "")
    return words.split()[1:]


def _load_commands(arguments: Sequence[str]) -> None:
    """Import the module of the named command, or of all of them for help and for an unknown name."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    modules = [COMMANDS[named]] if named in COMMANDS else list(COMMANDS.values())
    for module in modules:
        import_module(module)
