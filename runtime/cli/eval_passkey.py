"""`runtime eval passkey`, and what its misses are due to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from moorage.client import Client
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import (
    DOCUMENT,
    Depths,
    Document,
    Lengths,
    RunOptions,
    Samples,
    Seed,
    parse_depths,
    parse_lengths,
    takes_run_options,
)
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.cli.output import print_table
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.haystack import garbage_haystack, text_haystack
from moorage.runtime.evals.misses import Miss, Oracle, explain_misses
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite


@eval_app.command(
    epilog=examples(
        "runtime eval passkey --lengths 2K,8K,32K",
        "runtime eval passkey --config deploy/local.yaml --preset full,inf-llm --lengths 2K,8K --output out",
        "runtime eval passkey --lengths 32K --depths 0,0.25,0.5,0.75,1 --json passkey.json",
        "runtime eval passkey --lengths 1M --samples 10 --one-text",
        "runtime eval passkey --style lmdeploy --lengths 160K --samples 5",
        "runtime eval passkey --explain-misses --oracle-address all-keys=127.0.0.1:50052",
    )
)
@takes_run_options
def passkey(
    run: RunOptions,
    lengths: Lengths = "2K,8K,32K",
    samples: Samples = 20,
    seed: Seed = 0,
    style: Annotated[
        Style,
        typer.Option(
            help="Hide keys in a real text, one repeated sentence, as LMDeploy's or ChunkLlama's test, or in a real "
            "text in ten wordings of no published test."
        ),
    ] = Style.TEXT,
    document: Document = DOCUMENT,
    depths: Depths = None,
    one_text: Annotated[
        bool,
        typer.Option(
            "--one-text",
            help="Hide all keys of a length in one text, the deepest first, so that a server prefills what lies "
            "before a key only once.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain-misses", help="Ask the oracles every prompt that was missed.")
    ] = False,
    oracle_address: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]HOST:PORT", help="A server to ask; best one attending all keys."),
    ] = None,
    oracle_preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A preset to ask for at the same place.")
    ] = None,
) -> None:
    """Ask for pass keys hidden in long texts.

    An oracle that attends all keys shows the cause of a miss: found by it, the selection of blocks missed the key;
    not found, the prompt is hard for the model as well.
    """
    if explain and not (oracle_address or oracle_preset):
        raise typer.BadParameter(
            "give --oracle-address or --oracle-preset too", param_hint="--explain-misses"
        )
    haystack = text_haystack(document) if style.in_text else garbage_haystack()
    task = Passkey(haystack, style, parse_lengths(lengths), samples, seed, parse_depths(depths), one_text)
    room = max(task.lengths)
    with run.targets(room) as targets:
        summary = measure(Suite("passkey", (task,), seed), targets, run)
    if not explain:
        publish(summary, run, {"style": style.value})
        return
    with _oracles(run, oracle_address or (), oracle_preset or (), room) as oracles:
        misses = explain_misses(task, summary.records, oracles)
    publish(summary, run, {"style": style.value, "misses": [miss.as_json() for miss in misses]})
    if misses and str(run.json_file) != "-":
        _print_misses(misses)


@contextmanager
def _oracles(
    run: RunOptions, addresses: Sequence[str], presets: Sequence[str], room: int
) -> Iterator[list[Oracle]]:
    with ExitStack() as stack:
        oracles = []
        for label, _, where in (text.rpartition("=") for text in addresses):
            targets = ServerTargets(stack.enter_context(Client(where)))
            oracles.append(Oracle(label or where, targets))
        for name in presets:
            own = RunOptions(run.address, run.config, run.model, run.overrides, preset=name)
            oracles.append(Oracle(name, stack.enter_context(own.targets(room))))
        yield oracles


def _print_misses(misses: Sequence[Miss]) -> None:
    labels = tuple(misses[0].found_by)
    cells = [
        (
            miss.record.key.preset,
            format_tokens(miss.record.key.place.length or 0),
            f"{miss.record.key.place.depth:.2f}",
            miss.record.outcome.answers[0],
            miss.record.outcome.output.strip(),
            *("found" if miss.found_by[label] else "missed" for label in labels),
        )
        for miss in misses
    ]
    print_table(
        ("preset", "length", "depth", "key", "answer", *labels),
        cells,
        title="misses, and the same prompt asked elsewhere",
    )
