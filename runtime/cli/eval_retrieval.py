"""`runtime eval needle`, `kv-retrieval`, `records` and `ruler`: retrieval from texts that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import (
    DOCUMENT,
    Depths,
    Document,
    Lengths,
    OneText,
    RunOptions,
    Samples,
    Seed,
    parse_depths,
    parse_lengths,
    takes_run_options,
)
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.key_values import Form, KeyValues
from moorage.runtime.evals.needle import Form as NeedleForm
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.records import NUM_RECORDS, records_task
from moorage.runtime.evals.ruler import FREE_TASKS, ruler_tasks
from moorage.runtime.evals.tasks import Suite


@eval_app.command(
    epilog=examples(
        "runtime eval needle --lengths 1K,4K,16K --depths 0,0.25,0.5,0.75,1 --samples 4 --output out",
        "runtime eval needle --needles 4 --lengths 8K --samples 20",
        "runtime eval needle --model LWM-Text-Chat-1M --form lwm --lengths 32K,128K,512K,1M --depths 11 --samples 2 "
        "--preset full,kvquant --output heatmap",
        "runtime eval needle --config deploy/reference.yaml --document essays/ --lengths 2K --preset moorage,full",
    )
)
@takes_run_options
def needle(
    run: RunOptions,
    lengths: Lengths = "2K,8K,32K",
    samples: Samples = 10,
    seed: Seed = 0,
    document: Document = DOCUMENT,
    depths: Depths = None,
    needles: Annotated[int, typer.Option(min=1, help="Needles in each text, of which one is asked for.")] = 1,
    form: Annotated[
        NeedleForm,
        typer.Option(help="The words of the prompt: RULER's, or those of the test of LWM's models."),
    ] = NeedleForm.RULER,
    one_text: OneText = False,
) -> None:
    """Ask for a number hidden in a text, by depth and length.

    It is alone or among others like it. With --depths and --output a heatmap of depth by length is drawn too, one
    for each preset and variant.
    """
    name = "needle" if needles == 1 else f"needle-{needles}"
    places = parse_depths(depths)
    haystack, sizes = text_haystack(document), parse_lengths(lengths)
    task = Needle(haystack, sizes, samples, seed, places, needles, name, form, one_text)
    with run.targets(max(task.lengths)) as targets:
        publish(measure(Suite(name, (task,), seed), targets, run), run)


@eval_app.command(
    name="kv-retrieval",
    epilog=examples(
        "runtime eval kv-retrieval --lengths 2K,8K --samples 20",
        "runtime eval kv-retrieval --pairs 40 --lengths 2K --form hex",
        "runtime eval kv-retrieval --form uuid --lengths 128K --depths 0,0.5,1",
    ),
)
@takes_run_options
def kv_retrieval(
    run: RunOptions,
    lengths: Lengths = "2K,8K,32K",
    samples: Samples = 20,
    seed: Seed = 0,
    depths: Depths = None,
    form: Annotated[
        Form, typer.Option(help="Keys and values: eight hexadecimal digits, or UUIDs.")
    ] = Form.HEX,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs in each prompt; as many as the length holds if absent.")
    ] = None,
    one_text: OneText = False,
) -> None:
    """Ask for the value of one key among many in a JSON object."""
    task = KeyValues(parse_lengths(lengths), samples, seed, parse_depths(depths), form, pairs, one_text)
    with run.targets(max(task.lengths)) as targets:
        publish(measure(Suite(task.name, (task,), seed), targets, run), run)


@eval_app.command(
    epilog=examples(
        "runtime eval records --lengths 4K,8K --records 16",
        "runtime eval records --config deploy/reference.yaml --lengths 2K --records 4 --preset moorage,full",
    )
)
@takes_run_options
def records(
    run: RunOptions,
    lengths: Lengths = "4K,8K",
    samples: Samples = 10,
    seed: Seed = 0,
    document: Document = DOCUMENT,
    count: Annotated[
        int,
        typer.Option("--records", min=1, help="Numbered records in each text, all of which are asked for."),
    ] = NUM_RECORDS,
) -> None:
    """Ask for every record that a text holds.

    The accuracy of a sample is the share of its records whose code stands in the answer.
    """
    task = records_task(text_haystack(document), parse_lengths(lengths), samples, seed, count)
    with run.targets(max(task.lengths)) as targets:
        publish(measure(Suite(task.name, (task,), seed), targets, run), run)


@eval_app.command(
    epilog=examples(
        "runtime eval ruler --lengths 4K,16K --samples 10 --output out",
        "runtime eval ruler --tasks niah_multikey_2,vt --lengths 32K --preset full,inf-llm",
        "runtime eval ruler --tasks qa_1 --qa-file qa_1=squad/dev-v2.0.json --lengths 8K",
    )
)
@takes_run_options
def ruler(
    run: RunOptions,
    tasks: Annotated[
        str,
        typer.Option(metavar="NAME,NAME,…", help="Which tasks.", show_default="all that need no download"),
    ] = ",".join(FREE_TASKS),
    lengths: Lengths = "4K,16K",
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and length.")] = 10,
    seed: Seed = 0,
    document: Document = DOCUMENT,
    qa_file: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=FILE", help="Data of qa_1 (SQuAD's JSON) or qa_2 (HotpotQA's JSON)."),
    ] = None,
) -> None:
    """Run RULER's tasks on texts made here.

    They are needles of several kinds, variable chains, common and frequent words, and questions. The accuracy
    of a sample is the share of its answers that stand in the output, as RULER counts.
    """
    named = [text.partition("=") for text in qa_file or ()]
    if not all(equals for _, equals, _ in named):
        raise typer.BadParameter("should be TASK=FILE, as in qa_1=dev-v2.0.json", param_hint="--qa-file")
    files = {name: Path(path) for name, _, path in named}
    counts = parse_lengths(lengths)
    chosen = ruler_tasks(tasks.split(","), text_haystack(document), counts, samples, seed, files)
    with run.targets(max(counts)) as targets:
        publish(measure(Suite("ruler", chosen, seed), targets, run), run)
