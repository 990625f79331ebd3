"""`runtime eval extrapolation`: tasks and perplexity at multiples of the trained length, choices side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import DOCUMENT, Document, RunOptions, Seed, takes_run_options
from moorage.runtime.cli.eval_perplexity import Last
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.evals.haystack import Haystack, text_haystack
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.retrieval_tasks import RETRIEVAL_TASKS, retrieval_task
from moorage.runtime.evals.targets import Targets
from moorage.runtime.evals.tasks import ByLength, Suite, Task
from moorage.runtime.evals.variants import Variant
from moorage.workers.counting import counted

_EVERY_KEY = (
    "memory.preset=full",
    "memory.topk=null",
    "memory.topk_keys=null",
    "memory.exc_block_size=null",
    "long_context.second_select_num=null",
)
"""Overrides that take back a file's selection of blocks."""


def schemes(trained: int) -> list[Variant]:
    """Ways to go beyond the trained length: four over every key, and clamped with the file's selection of blocks."""
    length = f"memory.pretraining_length={trained}"
    linear = "memory.rope_scaling={rope_type: linear, factor: {scale}}"
    rope = (*_EVERY_KEY, "memory.positions=rope")
    return [
        Variant("rope", None, rope),
        Variant("linear", None, (*rope, linear)),
        Variant("dynamic", None, (*rope, length, "memory.rope_scaling_factor=1")),
        Variant("dca", None, (*_EVERY_KEY, length, "memory.positions=dca")),
        Variant("clamped", None, ("memory.positions=clamped",)),
    ]


def _makers(haystack: Haystack, samples: dict[int, int], seed: int) -> dict[str, Callable[[], Task]]:
    """`samples` by length."""

    def each(name: str) -> Callable[[], Task]:
        return lambda: ByLength(
            {
                length: retrieval_task(name, haystack, (length,), count, seed)
                for length, count in samples.items()
            }
        )

    return {name: each(name) for name in RETRIEVAL_TASKS}


@eval_app.command(
    epilog=examples(
        "runtime eval extrapolation --config deploy/local.yaml --trained 512",
        "runtime eval extrapolation --config deploy/local.yaml --preset full,inf-llm,moorage --scales 1,4,16,64 "
        "--tasks passkey,needle-4,kv-retrieval,perplexity --output out",
        "runtime eval extrapolation --config deploy/local.yaml --variant yarn:memory.preset=full,"
        "'memory.rope_scaling={rope_type: yarn, factor: {scale}}'",
        "runtime eval extrapolation --address 127.0.0.1:50051 --trained 8K --preset full,lmdeploy",
    )
)
@takes_run_options
def extrapolation(
    run: RunOptions,
    trained: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Tokens the model was trained on; in this process its own figure if absent."
        ),
    ] = None,
    scales: Annotated[str, typer.Option(metavar="X,X,…", help="Lengths, in trained lengths.")] = "2,4,16,64",
    tasks: Annotated[
        str, typer.Option(metavar="NAME,…", help="Of passkey, needle, needle-4, kv-retrieval and perplexity.")
    ] = "passkey,perplexity",
    samples: Annotated[
        str,
        typer.Option(
            metavar="N,N,…", help="Samples of each task, by length; the last number is that of the rest."
        ),
    ] = "10",
    windows: Annotated[int, typer.Option(min=1, help="Windows of each length for the perplexity.")] = 2,
    last: Last = 256,
    exact_up_to: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Leave out longer prompts where every key is attended, which take minutes each; in this process.",
        ),
    ] = None,
    seed: Seed = 0,
    document: Document = DOCUMENT,
) -> None:
    """Lay ways beyond the trained length side by side.

    Measures tasks and perplexity at multiples of it. Without presets or variants, in this process: plain RoPE,
    linear interpolation, dynamic NTK and dual chunks over every key, and clamped positions with the file's
    selection of blocks.
    """
    if not run.in_process and trained is None:
        raise typer.BadParameter(
            "a server does not report it; give it, or --config or --model", param_hint="--trained"
        )
    base = _trained(run, trained)
    try:
        lengths = tuple(dict.fromkeys(round(float(scale) * base) for scale in scales.split(",")))
    except ValueError:
        raise typer.BadParameter(
            f"{scales!r} should be numbers, separated by commas", param_hint="--scales"
        ) from None
    if exact_up_to is not None and not run.in_process:
        raise typer.BadParameter(
            "a server does not report what it attends; give --config or --model", param_hint="--exact-up-to"
        )
    makers = _makers(text_haystack(document), _counts(lengths, samples), seed)
    makers["perplexity"] = lambda: Perplexity(TokenText.of(document), lengths, windows, None, last)
    chosen = _tasks(tasks, makers)
    ways = schemes(base) if run.in_process else None
    with run.targets(max(lengths), ways, base) as targets:
        longest = {} if exact_up_to is None else dict.fromkeys(_exact(targets), parse_tokens(exact_up_to))
        if any(limit < min(lengths) for limit in longest.values()):
            raise typer.BadParameter(
                f"{exact_up_to} leaves nothing of {next(iter(longest))}; the shortest prompt has "
                f"{counted(min(lengths), 'token')}",
                param_hint="--exact-up-to",
            )
        fitting = tuple(_fitted(task, targets) for task in chosen)
        summary = measure(Suite("extrapolation", fitting, seed, longest), targets, run)
    publish(summary, run, {"trained": base})


def _tasks(names: str, makers: Mapping[str, Callable[[], Task]]) -> tuple[Task, ...]:
    asked = names.split(",")
    unknown = [name for name in asked if name not in makers]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} should be one of {', '.join(makers)}", param_hint="--tasks")
    return tuple(makers[name]() for name in dict.fromkeys(asked))


def _fitted(task: Task, targets: Targets) -> Task:
    """A perplexity of those lengths alone that the document has; any other task as it is."""
    if not isinstance(task, Perplexity):
        return task
    fitted = task.fitted(targets.at(targets.labels[0], min(task.lengths)))
    missing = [str(length) for length in task.lengths if length not in fitted.lengths]
    if missing:
        print_note(
            f"perplexity: the document is shorter than {', '.join(missing)} tokens, left out; give a longer one"
        )
    return fitted


def _counts(lengths: tuple[int, ...], samples: str) -> dict[int, int]:
    """Samples by length."""
    try:
        counts = [int(part) for part in samples.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or len(counts) > len(lengths):
        raise typer.BadParameter(
            f"{samples!r} should be whole numbers from 1 on, at most one for each length",
            param_hint="--samples",
        )
    return {length: counts[min(i, len(counts) - 1)] for i, length in enumerate(lengths)}


def _exact(targets: Targets) -> list[str]:
    """The choices under which a prompt's tokens attend every key before them."""
    memories = {label: targets.settings(label)["memory"] for label in targets.labels}
    return [
        label for label, memory in memories.items() if memory["topk"] is None or not memory["exc_block_size"]
    ]


def _trained(run: RunOptions, trained: str | None) -> int:
    if trained is not None:
        return parse_tokens(trained)
    from moorage.runtime.evals.local_targets import LocalConfig
    from moorage.runtime.planning.trained_length import trained_length
    from moorage.workers.hf_config import read_model_spec

    config = LocalConfig(run.config, run.model, run.overrides or ()).load()
    return config.memory.pretraining_length or trained_length(read_model_spec(config.model.path))
