"""`runtime bench peers`: one model in llama.cpp, transformers and Moorage."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import write_json
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import JsonFile, bench_app, parse_counts
from moorage.runtime.cli.output import print_note

_THREADS = min(2, len(os.sched_getaffinity(0)))


@bench_app.command(
    epilog=examples(
        "runtime bench peers --model SmolLM2-135M-Instruct.Q4_1.gguf",
        "runtime bench peers --model MODEL_DIR --gguf FILE.gguf --lengths 2K,8K --rounds 1",
        "runtime bench peers --model MODEL_DIR --lengths 128K --weights float",
    )
)
def peers(
    model: Annotated[
        Path, typer.Option(metavar="FILE|DIR", help="A GGUF file or a model directory.", exists=True)
    ],
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The same model for llama.cpp, where --model is a directory.", exists=True
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of the prompts.")] = "2K,8K,32K",
    prefill_context: Annotated[
        str,
        typer.Option(metavar="N", help="Longest prompt that is prefilled; beyond it the past is made up."),
    ] = "32K",
    transformers_context: Annotated[
        str, typer.Option(metavar="N", help="Longest context of transformers.")
    ] = "32K",
    weights: Annotated[
        str,
        typer.Option(metavar="NAME,…", help="Values of model.weights, each measured in Moorage."),
    ] = "float,int4",
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Preset that Moorage also generates under, beside full.")
    ] = "moorage",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of Moorage.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = _THREADS,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved runs; a prompt of more than 30 s runs once.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Generated tokens of each run and preset.")] = 16,
    compare_answers: Annotated[
        bool,
        typer.Option(
            "--compare-answers", help="Also compare the greedy answers to 20 questions, in float32."
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure one model in llama.cpp, transformers and Moorage: prefill, decode and memory by length."""
    from moorage.runtime.bench.peers.figures import PeerReport
    from moorage.runtime.bench.peers.prompts import QUESTIONS
    from moorage.runtime.bench.peers.run import (
        WARM_PROMPT,
        PeerPlan,
        PeerRun,
        answer_specs,
        check_lengths,
        peer_specs,
    )
    from moorage.runtime.bench.peers.text import PeerText

    plan = PeerPlan(
        model=model,
        gguf=gguf,
        lengths=tuple(sorted(parse_counts(lengths))),
        prefill_context=parse_counts(prefill_context)[0],
        transformers_context=parse_counts(transformers_context)[0],
        threads=threads,
        rounds=rounds,
        steps=steps,
        weights=tuple(weights.split(",")),
        preset=preset,
        overrides=tuple(settings or ()),
    )
    check_lengths(plan)
    specs, notes = peer_specs(plan)
    report = PeerReport(describe_machine(), model.name, threads, notes=notes)
    text = PeerText(model)
    if compare_answers:
        with (
            TemporaryDirectory() as folder,
            PeerRun(plan, answer_specs(plan, Path(folder)), print_note) as run,
        ):
            report.agreements += run.agreements(text.questions(QUESTIONS))
    with PeerRun(plan, specs, print_note) as run:
        run.warm_up(text.document(WARM_PROMPT))
        for length in plan.lengths:
            report.rows += run.measure(length, text.document(length))
    report.print()
    if json_file is not None:
        write_json(json_file, report.as_json())
