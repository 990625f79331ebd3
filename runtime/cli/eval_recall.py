"""`runtime eval recall` and `runtime inspect`: what the selection of blocks holds, and which blocks it is."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.loading import loading_bar
from moorage.runtime.cli.options import AsJson
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.evals.recall import draw_heatmap, table_of
from moorage.runtime.packaged import DEPLOY
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from moorage.runtime.evals.local_engine import LocalEngine

DEFAULT_CONFIG = DEPLOY / "local.yaml"
_TEXT_CHARACTERS = 60
"""Shown of each block."""

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config", help="The cluster file; its server need not run.", show_default="deploy/local.yaml"
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
]
PromptPath = Annotated[Path, typer.Option(help="The prompt, as UTF-8 text.", exists=True, dir_okay=False)]
OtherPreset = Annotated[
    str | None, typer.Option(metavar="NAME", help="A memory preset other than the file's.")
]


@eval_app.command(
    epilog=examples(
        "runtime eval recall --prompt-file prompt.txt",
        "runtime eval recall --prompt-file prompt.txt --set long_context.second_select_num=48 --output out",
        "runtime eval recall --config cluster.yaml --prompt-file prompt.txt --preset inf-llm --json",
    )
)
def recall(
    prompt_file: PromptPath,
    config: ConfigFile = DEFAULT_CONFIG,
    overrides: Overrides = None,
    preset: OtherPreset = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 16,
    every: Annotated[int, typer.Option(min=1, help="Measure every so-many-th step.")] = 1,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write recall.json and a heatmap, recall.png, there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much of the exact attention the selected blocks hold, by layer and head.

    Runs the model in this process. The oracle is the best set of as many blocks, by exact mass: what it holds
    more than the selection is the anchors' fault, what it lacks is the budget's.
    """
    report, table = _measure(_settings(config, overrides), prompt_file, preset, max_new_tokens, every)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, allow_nan=False)
        (output / "recall.json").write_text(text + "\n", encoding="utf-8")
        draw_heatmap(
            table, output / "recall.png", f"{report['preset']}: {counted(report['prompt_tokens'], 'token')}"
        )
    if as_json:
        print_json(report)
        return
    heads = range(len(report["layers"][0]["recall_by_head"]))
    print_table(
        ("layer", "recall", "oracle", *(f"head {head}" for head in heads)),
        [
            (
                str(row["layer"]),
                *(f"{share:.3f}" for share in (row["recall"], row["oracle"], *row["recall_by_head"])),
            )
            for row in report["layers"]
        ],
        title=f"recall, preset {report['preset']}, {counted(report['prompt_tokens'], 'prompt token')}",
        notes=[f"mean recall {report['recall']:.3f}, oracle {report['oracle']:.3f}"],
    )


@app.command(
    epilog=examples(
        "runtime inspect --prompt-file prompt.txt",
        "runtime inspect --prompt-file prompt.txt --max-new-tokens 8 --top 5 --json",
    )
)
def inspect(
    prompt_file: PromptPath,
    config: ConfigFile = DEFAULT_CONFIG,
    overrides: Overrides = None,
    preset: OtherPreset = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 8,
    top: Annotated[int, typer.Option(min=1, help="Blocks shown for each token.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the blocks that each token attended most, and their text.

    Runs the model in this process. A block's share is the exact attention mass on it, the mean over heads and
    layers; layers that did not select it count 0, and layers with a sliding window do not count.
    """
    engine, prompt = _load(_settings(config, overrides), prompt_file, preset, max_new_tokens)
    probe = engine.probe()
    tokens = list(engine.generate(prompt, max_new_tokens, progress=_note_progress(len(prompt))))
    shares: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for sample in probe.samples:
        for block, mass in zip(sample.blocks, sample.masses.tolist(), strict=True):
            shares[sample.step][block] += mass / engine.layout.num_layers
    everything = [*prompt, *tokens]
    size, decode = engine.layout.block_size, engine.tokenizer.decode
    rows: list[dict[str, Any]] = []
    for step, found in sorted(shares.items()):
        # The query of step i is generated token i, and brings token i + 1.
        best = sorted(found.items(), key=lambda item: -item[1])[:top]
        blocks = [
            {"block": block, "share": share, "text": decode(everything[block * size : (block + 1) * size])}
            for block, share in best
        ]
        text = decode(tokens[step + 1 : step + 2])
        rows.append({"step": step + 1, "token": text, "attended_blocks": len(found), "blocks": blocks})
    engine.close()
    if as_json:
        print_json({"prompt_tokens": len(prompt), "text": decode(tokens), "steps": rows})
        return
    if not any(row["blocks"] for row in rows):
        print(_no_blocks(engine.memory.preset, len(tokens), len(probe.samples)))
        return
    cells = [
        ((str(row["step"]), repr(row["token"])) if place == 0 else ("", ""))
        + (str(block["block"]), f"{block['share']:.3f}", _one_line(block["text"]))
        for row in rows
        for place, block in enumerate(row["blocks"])
    ]
    print_table(
        ("step", "token", "block", "share", "text"), cells, title=f"blocks attended for {decode(tokens)!r}"
    )


def _no_blocks(preset: str, num_tokens: int, num_samples: int) -> str:
    """Why `inspect` has no block to show."""
    if not num_samples:
        return f"No attention was measured: {num_tokens} generated, and the first needs no decode step."
    return f"No distant block to select: sinks and local window of preset {preset} hold the whole prompt."


def _settings(config: Path, overrides: list[str] | None) -> ClusterConfig:
    return load_cluster_config(config, overrides or ())


def _load(
    config: ClusterConfig, prompt_file: Path, preset: str | None, max_new_tokens: int
) -> tuple[LocalEngine, list[int]]:
    from moorage.runtime.evals.local_engine import LocalEngine
    from moorage.runtime.text.tokenizer import TextTokenizer

    try:
        text = prompt_file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"--prompt-file {prompt_file}: not UTF-8 text; convert it") from None
    if not text:
        raise InvalidRequest(f"--prompt-file {prompt_file}: is empty; write a prompt into it")
    prompt = TextTokenizer.load(config.model.path).encode(text)
    with loading_bar() as on_loading:
        engine = LocalEngine(config, len(prompt) + max_new_tokens, preset, on_loading=on_loading)
    return engine, prompt


def _measure(
    config: ClusterConfig, prompt_file: Path, preset: str | None, max_new_tokens: int, every: int
) -> tuple[dict[str, Any], Any]:
    engine, prompt = _load(config, prompt_file, preset, max_new_tokens)
    probe = engine.probe(every)
    tokens = list(engine.generate(prompt, max_new_tokens, progress=_note_progress(len(prompt))))
    table = table_of(probe.samples)
    report: dict[str, Any] = {
        "preset": engine.memory.preset,
        "prompt_tokens": len(prompt),
        "generated_tokens": len(tokens),
    }
    engine.close()
    return report | table.as_json(), table


def _note_progress(total: int) -> Any:
    return lambda done: print_note(f"prefilled {done} of {counted(total, 'token')}")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_CHARACTERS else line[: _TEXT_CHARACTERS - 1] + "…"
