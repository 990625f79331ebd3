"""`runtime eval harness`: tasks of lm-evaluation-harness on a cluster or an engine in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import RunOptions, takes_run_options
from moorage.runtime.cli.output import print_json
from moorage.runtime.config.units import parse_tokens
from moorage.workers.errors import InvalidRequest


@eval_app.command(
    epilog=examples(
        "runtime eval harness lambada_openai --samples 100",
        "runtime eval harness niah_single_1 --samples 10 "
        '--metadata \'{"tokenizer": "./my-model", "max_seq_lengths": [4096]}\'',
        "runtime eval harness my_task --include-path tasks/ --config deploy/local.yaml --preset full --json out.json",
    )
)
@takes_run_options
def harness(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK…", help="The harness's tasks.", show_default=False)
    ],
    run: RunOptions,
    samples: Annotated[
        int | None, typer.Option(min=1, help="The first so many of each task; all if absent.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of tasks beside the harness's own.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="Metadata that tasks read, such as RULER's lengths.")
    ] = None,
    max_length: Annotated[
        str | None, typer.Option(metavar="N", help="In this process: room for prompt and answer.")
    ] = None,
) -> None:
    """Run tasks of lm-evaluation-harness.

    It needs `pip install 'moorage[harness]'`. Answers are greedy, under one preset.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table

        from moorage.runtime.evals.harness import HarnessModel
    except ImportError:
        raise InvalidRequest(
            "lm-evaluation-harness is not installed; pip install 'moorage[harness]'"
        ) from None
    if run.output is not None:
        raise typer.BadParameter(
            "does not apply here: the harness keeps no samples; give --json", param_hint="--output"
        )
    values = _metadata(metadata)
    with run.targets(parse_tokens(max_length) if max_length else None) as targets:
        if len(targets.labels) != 1:
            raise typer.BadParameter("the harness takes one at a time", param_hint="--preset")
        model = HarnessModel(targets.at(targets.labels[0], None))
        manager = TaskManager(
            include_path=None if include_path is None else str(include_path), metadata=values
        )
        results = simple_evaluate(
            model, tasks=tasks, limit=samples, task_manager=manager, metadata=values, log_samples=False
        )
    report = {
        "task": "harness",
        "model": targets.model,
        "preset": targets.labels[0],
        "results": results["results"],
    }
    if str(run.json_file) == "-":
        print_json(json.loads(json.dumps(report, default=str)))
        return
    if run.json_file is not None:
        run.json_file.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    print(make_table(results))


def _metadata(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r} should be a JSON object", param_hint="--metadata")
    return value
