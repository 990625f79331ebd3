"""`runtime eval`: tasks with known answers, run against a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from moorage.client import Client
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.evals.haystack import DEFAULT_DOCUMENT, Haystack, garbage_haystack, text_haystack
from moorage.runtime.evals.passkey import ANSWER_TOKENS, make_samples
from moorage.runtime.evals.trials import (
    Miss,
    Oracle,
    Row,
    ServerCoder,
    Trial,
    explain_misses,
    row_of,
    run_trials,
)
from moorage.runtime.units import format_tokens, parse_tokens

eval_app = typer.Typer(
    no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None
)
app.add_typer(eval_app, name="eval", help="Measure accuracy on tasks with known answers.")


class Style(StrEnum):
    """What the facts are hidden in."""

    TEXT = "text"
    GARBAGE = "garbage"


@eval_app.callback()
def _tasks() -> None: ...


@eval_app.command(
    epilog=examples(
        "runtime eval passkey --address 127.0.0.1:50051 --lengths 2K,8K,32K",
        "runtime eval passkey --address 127.0.0.1:50051 --lengths 32K --depths 0,0.25,0.5,0.75,1 --json passkey.json",
        "runtime eval passkey --address 127.0.0.1:50051 --explain-misses --oracle-address all-keys=127.0.0.1:50052",
    )
)
def passkey(
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")] = "127.0.0.1:50051",
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Tokens of prompt and answer; K is 1024 and M is 1024².")
    ] = "2K,8K,32K",
    samples: Annotated[
        int, typer.Option(min=1, help="Prompts of each length, or of each length and depth.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same prompts.")] = 0,
    style: Annotated[
        Style, typer.Option(help="Hide the keys in a real text or in one repeated sentence.")
    ] = Style.TEXT,
    document: Annotated[
        Path,
        typer.Option(
            help="The text: a file, or a folder of .txt, .md and .rst files.",
            show_default="the shipped Python reference",
        ),
    ] = DEFAULT_DOCUMENT,
    depths: Annotated[
        str | None,
        typer.Option(metavar="X,X,…", help="Places of the key, 0 to 1; spread over the text when absent."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Another preset than the server's own.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain-misses", help="Ask the oracles every prompt that was missed.")
    ] = False,
    oracle_address: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]HOST:PORT", help="A server to ask; best one attending all keys."),
    ] = None,
    oracle_preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A preset to ask for at the same address.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None,
) -> None:
    """Ask for pass keys hidden in long texts.

    An oracle that attends all keys tells what a miss is due to: found by it, the choice of blocks missed the key;
    not found, the prompt is hard for the model as well.
    """
    places = _depths(depths)
    lengths_tokens = _lengths(lengths)
    oracles = _oracles(address, oracle_address or (), oracle_preset or ())
    if explain and not oracles:
        raise typer.BadParameter(
            "give --oracle-address or --oracle-preset too", param_hint="--explain-misses"
        )
    haystack = garbage_haystack() if style is Style.GARBAGE else text_haystack(document)
    with Client(address) as client:
        model = client.models()[0]
        groups = [
            (depth, _measure(client, haystack, length, samples, seed, depth, preset))
            for length in lengths_tokens
            for depth in places
        ]
    rows = [row_of(trials, depth) for depth, trials in groups]
    misses = explain_misses([trial for _, trials in groups for trial in trials], oracles) if explain else []
    report = _report(model.name, preset or model.preset, style, seed, rows, misses if explain else None)
    if json_file is not None and str(json_file) == "-":
        print_json(report)
        return
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _print(report, rows, misses)


def _measure(
    client: Client,
    haystack: Haystack,
    length: int,
    num_samples: int,
    seed: int,
    depth: float | None,
    preset: str | None,
) -> list[Trial]:
    coder = ServerCoder(client)
    samples = make_samples(
        haystack, coder, length - ANSWER_TOKENS, num_samples, seed, depth=depth, prefix_ids=coder.prefix()
    )
    trials = []
    for trial in run_trials(client, samples, length, preset):
        trials.append(trial)
        verdict = "found" if trial.correct else f"missed {trial.sample.answer}, got {trial.output.strip()!r}"
        print_note(
            f"{format_tokens(length)} {len(trials)}/{num_samples} depth {trial.sample.depth:.2f}: "
            f"{verdict}, {trial.seconds:.1f} s"
        )
    return trials


def _report(
    model: str, preset: str, style: Style, seed: int, rows: Sequence[Row], misses: Sequence[Miss] | None
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "task": "passkey",
        "model": model,
        "preset": preset,
        "style": style.value,
        "seed": seed,
        "rows": [row.as_json() for row in rows],
        "mean": fmean(row.accuracy for row in rows),
    }
    return report if misses is None else report | {"misses": [miss.as_json() for miss in misses]}


def _print(report: dict[str, Any], rows: Sequence[Row], misses: Sequence[Miss]) -> None:
    columns = ("length", "depth", "accuracy", "samples", "seconds each", "budget tokens", "recall")
    cells = [
        (
            format_tokens(row.length),
            "spread" if row.depth is None else f"{row.depth:g}",
            f"{row.accuracy:.1%}",
            str(row.samples),
            f"{row.seconds:.2f}",
            f"{row.budget_tokens} ({row.budget_tokens / row.length:.1%})" if row.budget_tokens else "all",
            "-" if row.recall is None else f"{row.recall:.3f}",
        )
        for row in rows
    ]
    title = f"passkey in {report['style']}: {report['model']}, preset {report['preset']}"
    print_table(columns, cells, title=title, right=columns[2:], notes=[f"mean accuracy {report['mean']:.1%}"])
    if misses:
        _print_misses(misses)


def _print_misses(misses: Sequence[Miss]) -> None:
    labels = tuple(misses[0].found_by)
    cells = [
        (
            format_tokens(miss.trial.length),
            f"{miss.trial.sample.depth:.2f}",
            miss.trial.sample.answer,
            miss.trial.output.strip(),
            *("found" if miss.found_by[label] else "missed" for label in labels),
        )
        for miss in misses
    ]
    print_table(
        ("length", "depth", "key", "answer", *labels),
        cells,
        title="misses, and the same prompt asked elsewhere",
    )


def _lengths(text: str) -> list[int]:
    try:
        return [parse_tokens(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}, separated by commas", param_hint="--lengths") from None


def _depths(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        places = [float(part) for part in text.split(",")]
    except ValueError:
        places = [-1.0]
    if not all(0.0 <= place <= 1.0 for place in places):
        raise typer.BadParameter(
            f"{text!r} should be numbers from 0 to 1, separated by commas", param_hint="--depths"
        )
    return list(places)


def _oracles(address: str, addresses: Sequence[str], presets: Sequence[str]) -> list[Oracle]:
    named = [text.rpartition("=") for text in addresses]
    others = [Oracle(label or where, where) for label, _, where in named]
    return others + [Oracle(name, address, name) for name in presets]
