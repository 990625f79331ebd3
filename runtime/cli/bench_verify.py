"""`runtime bench verify`: verified drafts beside full attention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import write_json
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import JsonFile, bench_app, parse_counts
from moorage.runtime.cli.output import print_note, print_table

Row = dict[str, float | int | str | None]
_THREADS = min(2, len(os.sched_getaffinity(0)))


@bench_app.command(
    epilog=examples(
        "runtime bench verify --model MODEL_DIR",
        "runtime bench verify --model FILE.gguf --lengths 32K --documents 4 --verify 4,8",
    )
)
def verify(
    model: Annotated[
        Path, typer.Option(metavar="FILE|DIR", help="A GGUF file or a model directory.", exists=True)
    ],
    lengths: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of the prompts.")] = "4K,8K,16K,32K",
    documents: Annotated[int, typer.Option(min=1, help="Prompts of each length.")] = 13,
    first: Annotated[
        int,
        typer.Option(
            "--first-document",
            min=1,
            help="Number of the first document, where an earlier run had those before it.",
        ),
    ] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="Generated tokens of each answer.")] = 64,
    preset: Annotated[str, typer.Option(metavar="NAME", help="The preset that drafts.")] = "moorage",
    drafts: Annotated[
        str, typer.Option("--verify", metavar="N,N,…", help="Tokens of a draft, each measured.")
    ] = "4,8",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the drafting preset.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = _THREADS,
    json_file: JsonFile = None,
) -> None:
    """Verify the drafts of a selection, and say whether the tokens are those of full attention."""
    from moorage.runtime.bench.verifying import Reader, run_verification
    from moorage.runtime.evals.local_targets import LocalConfig

    contexts, each = parse_counts(lengths), parse_counts(drafts)
    longest = max(contexts) + tokens
    overrides = ("gpu_workers.device=cpu", f"gpu_workers.num_threads={threads}", f"memory.preset={preset}")
    config = LocalConfig(
        None, model, (*overrides, f"long_context.max_seq_len={longest}", *(settings or ()))
    ).load()
    reader = Reader(config, longest, threads)
    own = reader.memory
    choices = {f"{preset}, unverified": own.replace(verify=0)}
    choices |= {f"{preset}, verify {count}": own.replace(verify=count) for count in each}
    rows: list[Row] = []
    numbers = range(first - 1, first - 1 + documents)
    try:
        for number, found in enumerate(run_verification(reader, contexts, numbers, tokens, choices)):
            rows = [comparison.as_json() for comparison in found]
            if json_file is not None:
                report = {"machine": describe_machine(), "tokens": tokens, "rows": rows}
                write_json(json_file, report)
            print_note(f"document {number + 1} of {documents}")
    finally:
        reader.close()
    columns = ("context", "choice", "equal answers", "accepted", "full ms", "ms", "speed-up")
    title = f"{model.name}: {tokens} greedy tokens"
    print_table(columns, [_cells(row) for row in rows], title=title, right=columns, notes=_notes(rows))


def _notes(rows: list[Row]) -> list[str]:
    """Where nothing was drafted, so that equal answers say nothing of the selection."""
    contexts = sorted({int(row["context"] or 0) for row in rows})
    drafted = {row["context"] for row in rows if row["acceptance"] is not None}
    idle = ", ".join(f"{context:,}" for context in contexts if context not in drafted)
    return (
        [
            f"no draft at {idle} tokens: contexts of at most memory.dense_until tokens attend all keys; "
            "--set memory.dense_until=0 selects at every length"
        ]
        if idle
        else []
    )


def _cells(row: Row) -> tuple[str, ...]:
    share = row["acceptance"]
    return (
        f"{row['context']:,}",
        str(row["choice"]),
        f"{row['equal']} of {row['prompts']}",
        "-" if share is None else f"{share:.1%}",
        f"{1000 * float(row['full_token_s'] or 0):.1f}",
        f"{1000 * float(row['token_s'] or 0):.1f}",
        f"{row['speed_up']:.2f}",
    )
