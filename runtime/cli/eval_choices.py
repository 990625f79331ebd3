"""Options of comparisons with full attention: the model, and the choices of memory that are laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.runtime.cli.eval_options import parse_lengths
from moorage.runtime.cli.eval_source import SourceOptions, parse_names

if TYPE_CHECKING:
    from moorage.runtime.evals.fidelity.choices import Frame
    from moorage.runtime.evals.variants import Variant

LEAST_LENGTH = 256
PRESETS = "full,moorage,ktransformers,inf-llm"


@dataclass(frozen=True, slots=True)
class ChoiceOptions(SourceOptions):
    """Fields become options of a command that takes them by `takes_run_options`."""

    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "--presets",
            metavar="NAME,…",
            help="Presets, by their selection and store; positions stay those of the configuration.",
        ),
    ] = PRESETS
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:SECTION.KEY=VALUE,…",
            help="Settings of your own, beside the presets; one that names no memory.topk or memory.topk_keys "
            "is measured at each budget. May be given several times. Without any: QUEST bounds of 32 tokens, one "
            "selection for each KV head.",
        ),
    ] = None
    budgets: Annotated[
        str, typer.Option(metavar="N,N,…", help="Tokens selected beside sinks and window.")
    ] = "1024"
    sinks: Annotated[int, typer.Option(min=0, help="First tokens that every choice attends.")] = 64
    window: Annotated[int, typer.Option(min=1, help="Last tokens that every choice attends.")] = 512
    own_prefill: Annotated[
        bool,
        typer.Option(
            "--own-prefill",
            help="Let each choice prefill as it is configured, and not exactly; full stays exact.",
        ),
    ] = False

    def presets(self) -> list[str]:
        """The presets asked for, each once."""
        return parse_names(self.preset)

    def variants(self) -> list[Variant]:
        """The variants that were given, or the one that is measured without any."""
        from moorage.runtime.evals.fidelity.choices import PER_KV_HEAD
        from moorage.runtime.evals.variants import check_names, parse_variant

        found = [parse_variant(given) for given in self.variant] if self.variant else [PER_KV_HEAD]
        check_names(found)
        return found

    def sizes(self) -> list[int]:
        """The budgets, each once."""
        try:
            found = [int(part) for part in self.budgets.split(",")]
        except ValueError:
            found = [0]
        if min(found) < 1:
            raise typer.BadParameter(
                f"{self.budgets!r} should be whole numbers of at least 1, separated by commas",
                param_hint="--budgets",
            )
        return list(dict.fromkeys(found))

    def frame(self) -> Frame:
        """What all choices share."""
        from moorage.runtime.evals.fidelity.choices import Frame

        return Frame(self.sinks, self.window, self.own_prefill)


def parse_tasks(text: str, known: tuple[str, ...]) -> list[str]:
    """Names of tasks, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r}: should be of {', '.join(known)}", param_hint="--tasks")
    return names


def parse_documents(text: str) -> tuple[int, ...]:
    """Lengths of documents that leave something to select."""
    lengths = parse_lengths(text)
    if min(lengths) < LEAST_LENGTH:
        raise typer.BadParameter(f"{text!r}: at least {LEAST_LENGTH} each", param_hint="--lengths")
    return lengths


def shown(value: float | None, form: str) -> str:
    """A number of a table, or a dash."""
    return "-" if value is None else format(value, form)


def markdown_table(columns: list[str], rows: list[list[str]], num_left: int) -> list[str]:
    """Lines of a Markdown table, its first `num_left` columns at the left."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if place < num_left else "---:" for place in range(len(columns))) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
