"""`runtime eval`: the group of commands that evaluations register with."""

from __future__ import annotations

from moorage.runtime.cli.app import app
from moorage.runtime.cli.metavars import App

eval_app = App(
    no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None
)
app.add_typer(eval_app, name="eval", help="Measure models and presets on tasks with known answers.")


@eval_app.callback()
def _tasks() -> None: ...
