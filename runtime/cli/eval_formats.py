"""`runtime eval formats`: formats of stored keys and values side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import (
    DOCUMENT,
    Document,
    Lengths,
    OneText,
    Samples,
    Seed,
    parse_lengths,
    takes_run_options,
)
from moorage.runtime.cli.eval_progress import progress_of
from moorage.runtime.cli.eval_source import SourceOptions, parse_names
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.evals.haystack import Haystack, text_haystack
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.retrieval_tasks import RETRIEVAL_TASKS, retrieval_task
from moorage.runtime.evals.ruler import FREE_TASKS, ruler_tasks
from moorage.runtime.evals.runner import Summary, plan, run
from moorage.runtime.evals.tasks import Suite, Task

if TYPE_CHECKING:
    from moorage.runtime.evals.local_targets import LocalConfig
    from moorage.runtime.evals.variants import Variant

_TASKS = ("perplexity", *RETRIEVAL_TASKS, *FREE_TASKS)
_DEFAULT_TASKS = "perplexity,passkey,needle-4,kv-retrieval"


@dataclass(frozen=True, slots=True)
class FormatOptions(SourceOptions):
    """What is laid side by side, and where results go. Fields become options by `takes_run_options`."""

    formats: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Of long_context.kv_type; the first is what the others are measured against.",
            show_default="all but FP32",
        ),
    ] = None
    preset: Annotated[
        str, typer.Option(metavar="NAME,…", help="Presets, each with every format; full attends every key.")
    ] = "full"
    quantizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `runtime calibrate` wrote, for the formats that can use it."),
    ] = None
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:SECTION.KEY=VALUE,…",
            help="Settings of your own, as another row. May be given several times.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep every finished sample there, go on where a run was broken off, write table and picture.",
        ),
    ] = None
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None

    def variants(self) -> list[Variant]:
        """All that is laid side by side, the exact format first."""
        from moorage.runtime.evals.formats.choices import FORMATS, format_variants
        from moorage.runtime.evals.variants import parse_variant

        names = FORMATS if self.formats is None else parse_names(self.formats)
        more = [parse_variant(text) for text in self.variant or ()]
        return format_variants(names, parse_names(self.preset), self.quantizer, more)


@eval_app.command(
    name="formats",
    epilog=examples(
        "runtime eval formats --model MODEL_DIR --quantizer quantizer.safetensors --output formats",
        "runtime eval formats --model MODEL_DIR --formats FP16,NUQ3 --lengths 32K --tasks passkey,niah_multikey_2",
        "runtime eval formats --model MODEL_DIR --formats FP16,NUQ2 --preset full,moorage --tasks perplexity "
        "--variant no-sinks:long_context.kv_type=NUQ2,memory.preset=full,memory.n_fp16_sinks=0",
    ),
)
@takes_run_options
def formats_command(
    options: FormatOptions,
    tasks: Annotated[str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(_TASKS)}.")] = _DEFAULT_TASKS,
    lengths: Lengths = "2K,8K,32K",
    samples: Samples = 10,
    seed: Seed = 0,
    one_text: OneText = False,
    document: Document = DOCUMENT,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="The text of the perplexity: a file, or a folder of texts.",
            show_default="the shipped Python reference",
        ),
    ] = DOCUMENT,
    window: Annotated[str, typer.Option(metavar="N", help="Tokens of a window of the perplexity.")] = "2K",
    windows: Annotated[int, typer.Option(min=1, help="Windows of the perplexity.")] = 8,
) -> None:
    """Lay formats of stored keys and values side by side.

    For each: bytes of a token, perplexity, and the facts that it still retrieves. In prefill too a token attends
    the blocks before its own as the format stores them.
    """
    asked = parse_names(tasks)
    unknown = [name for name in asked if name not in _TASKS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} should be of {', '.join(_TASKS)}", param_hint="--tasks")
    from moorage.runtime.cli.eval_formats_table import Found, publish
    from moorage.runtime.evals.formats.choices import stored
    from moorage.runtime.evals.formats.standings import standings

    source, variants = options.source(), options.variants()
    stores = {variant.name: stored(source, variant) for variant in variants}
    read = retrieved = None
    if "perplexity" in asked:
        task = Perplexity(TokenText.of(data), (parse_tokens(window),), windows)
        read = _measured(Suite("perplexity", (task,)), source, variants, options.output)
    named = [name for name in asked if name != "perplexity"]
    if named:
        haystack, sizes = text_haystack(document), parse_lengths(lengths)
        suite = Suite("retrieval", _retrieval(named, haystack, sizes, samples, seed, one_text), seed)
        retrieved = _measured(suite, source, variants, options.output)
    model = source.load().model.path.name
    remarks = [line for summary in (read, retrieved) if summary is not None for line in summary.remarks]
    publish(Found(model, standings(stores, read, retrieved), remarks), options.output, options.json_file)


def _retrieval(
    names: Sequence[str],
    haystack: Haystack,
    lengths: tuple[int, ...],
    samples: int,
    seed: int,
    one_text: bool,
) -> tuple[Task, ...]:
    found: list[Task] = []
    for name in names:
        if name in RETRIEVAL_TASKS:
            found.append(retrieval_task(name, haystack, lengths, samples, seed, one_text))
        else:
            found += ruler_tasks([name], haystack, lengths, samples, seed, {})
    return tuple(found)


def _measured(suite: Suite, source: LocalConfig, variants: list[Variant], output: Path | None) -> Summary:
    from moorage.runtime.evals.local_targets import LocalTargets

    room = max(place.length or 0 for task in suite.tasks for place in task.places())
    with closing(LocalTargets(source, variants, room)) as targets:
        directory = None if output is None else output / suite.name
        with progress_of(suite, [key for key, _ in plan(suite, targets)]) as notify:
            return run(suite, targets, directory, notify)
