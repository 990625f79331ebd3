"""Options of evaluations that always run in this process: the model, and what its choices start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moorage.runtime.evals.local_targets import LocalConfig


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Fields become options of a command that takes them by `takes_run_options`."""

    model: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE.gguf", help="The model; it runs in this process.")
    ] = None
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A cluster file; its server need not run.")
    ] = None
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
    ] = None

    def source(self) -> LocalConfig:
        """What every choice starts from. Raises BadParameter without a model."""
        if self.model is None and self.config is None:
            raise typer.BadParameter("give one of them", param_hint="--model, --config")
        from moorage.runtime.evals.local_targets import LocalConfig

        return LocalConfig(self.config, self.model, self.overrides or ())


def parse_names(text: str) -> list[str]:
    """Names, separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
