"""`runtime eval infinitebench`, `longbench`, `leval` and `scrolls`: published tests from local files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import RunOptions, takes_run_options
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.evals.files import infinitebench as infinitebench_files
from moorage.runtime.evals.files import leval as leval_files
from moorage.runtime.evals.files import longbench as longbench_files
from moorage.runtime.evals.files import scrolls as scrolls_files
from moorage.runtime.evals.files.lines import find_files
from moorage.runtime.evals.files.task import FileTask, Reading, Truncate
from moorage.runtime.evals.tasks import Suite

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA…",
        help="Files named after their tasks, TASK=FILE, or folders of them.",
        show_default=False,
    ),
]
FileSamples = Annotated[
    int | None, typer.Option("--samples", min=1, help="The first so many of each file; all if absent.")
]
TruncateHow = Annotated[
    Truncate,
    typer.Option(help="A prompt that is too long: an error, or its end or both of its ends are kept."),
]
MaxLength = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Most tokens of prompt and answer; all that the model has room for if absent."
    ),
]

MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Most tokens of an answer, where its task would allow more."),
]


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """Options of every command that reads files."""

    samples: FileSamples = None
    truncate: TruncateHow = Truncate.NONE
    max_length: MaxLength = None
    max_new_tokens: MaxNewTokens = None

    def reading(self) -> Reading:
        """How the files are read."""
        try:
            most = parse_tokens(self.max_length) if self.max_length else None
        except ValueError as error:
            raise typer.BadParameter(f"{self.max_length!r} {error}", param_hint="--max-length") from None
        return Reading(self.samples, self.truncate, most, self.max_new_tokens)


@eval_app.command(
    epilog=examples(
        "runtime eval infinitebench data/infinite-bench --truncate middle --output out",
        "runtime eval infinitebench data/kv_retrieval.jsonl data/math_find.jsonl --samples 50",
        "runtime eval infinitebench passkey=my_keys.jsonl --config deploy/local.yaml --max-length 32K",
    )
)
@takes_run_options
def infinitebench(
    data: Data,
    run: RunOptions,
    entries: EntryOptions,
) -> None:
    """Run InfiniteBench's tasks on local files.

    Files are {context, input, answer, options} in JSONL. The tasks: passkey, number_string, kv_retrieval,
    math_find, math_calc, code_run, code_debug, longbook_choice_eng, longbook_qa_eng, longbook_qa_chn,
    longbook_sum_eng and longdialogue_qa_eng.
    """
    _run("infinitebench", data, infinitebench_files.TASKS, infinitebench_files.infinitebench, entries, run)


@eval_app.command(
    epilog=examples(
        "runtime eval longbench data/longbench --truncate middle --max-length 32K --output out",
        "runtime eval longbench data/qasper.jsonl data/lcc.jsonl --samples 20",
        "runtime eval longbench longbench_v2=data.json --truncate middle --chat",
    )
)
@takes_run_options
def longbench(
    data: Data,
    run: RunOptions,
    entries: EntryOptions,
) -> None:
    """Run LongBench's data sets, of both versions, on local files.

    Version 1's files are {context, input, answers, all_classes} in JSONL, named after their data sets; version
    2's is data.json or longbench_v2.jsonl. Each character of a Chinese answer counts as a word.
    """
    _run("longbench", data, longbench_files.TASKS, longbench_files.longbench, entries, run)


@eval_app.command(
    epilog=examples(
        "runtime eval leval data/Closed-ended-tasks --truncate middle --output out",
        "runtime eval leval data/coursera.jsonl --samples 20 --chat",
    )
)
@takes_run_options
def leval(
    data: Data,
    run: RunOptions,
    entries: EntryOptions,
) -> None:
    """Run L-Eval's closed-ended tasks on local files.

    Files are {input, instructions, outputs} in JSONL. The tasks: coursera, quality, tpo,
    topic_retrieval_longchat, gsm100, codeU and sci_fi.
    """
    _run("leval", data, leval_files.TASKS, leval_files.leval, entries, run)


@eval_app.command(
    epilog=examples(
        "runtime eval scrolls data/qasper.jsonl --shots 2 --max-length 16K --truncate suffix",
        "runtime eval scrolls data/scrolls --shots 0 --samples 50 --output out",
    )
)
@takes_run_options
def scrolls(
    data: Data,
    run: RunOptions,
    *,
    shots: Annotated[int, typer.Option(min=0, help="Solved entries before each prompt.")] = 1,
    entries: EntryOptions,
) -> None:
    """Run few-shot tasks of SCROLLS on local files.

    The tasks: narrative_qa, qasper, qmsum and quality. Files are {input, output} or {context, input, answers}
    in JSONL; the first --shots entries are the examples.
    """

    def make(name: str, path: Path, how: Reading) -> FileTask:
        return scrolls_files.scrolls(name, path, how, shots)

    _run("scrolls", data, scrolls_files.TASKS, make, entries, run)


def _run(
    family: str,
    data: list[str],
    known: tuple[str, ...],
    make: Callable[[str, Path, Reading], FileTask],
    entries: EntryOptions,
    run: RunOptions,
) -> None:
    reading = entries.reading()
    tasks = tuple(make(name, path, reading) for name, path in find_files(data, known))
    with run.targets(reading.max_length) as targets:
        publish(measure(Suite(family, tasks), targets, run), run)
