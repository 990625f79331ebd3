"""`runtime cache`: the kernels that a first start has compiled for this machine's processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.metavars import App
from moorage.runtime.config.units import format_bytes
from moorage.workers.counting import counted

cache_app = App(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(cache_app, name="cache", help="Show or remove the kernels compiled on this machine.")


@cache_app.command(epilog=examples("runtime cache show"))
def show() -> None:
    """Say how many compiled kernels there are, and in which directories."""
    from moorage.kernels.compiled import compiled_files

    files = compiled_files()
    print(_summary(files))
    for folder in sorted({file.parent for file in files}):
        print(f"  {folder}")


@cache_app.command(epilog=examples("runtime cache clear"))
def clear() -> None:
    """Remove the compiled kernels, for example before uninstalling; the next start compiles them again."""
    from moorage.kernels.compiled import compiled_files, remove_compiled

    summary = _summary(compiled_files())
    remove_compiled()
    print(f"removed: {summary}")


def _summary(files: Sequence[Path]) -> str:
    size = sum(file.stat().st_size for file in files)
    return f"{counted(len(files), 'file')} of compiled kernels, {format_bytes(size)}"
