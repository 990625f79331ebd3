"""`runtime size`: how much memory a model needs for given contexts, and what fits this host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json
from moorage.runtime.cli.size_report import SizeReport
from moorage.runtime.cli.size_tables import print_report
from moorage.runtime.config.load import build_config
from moorage.runtime.config.source import Source, read_source
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.planning.host import deployment_of, read_host
from moorage.runtime.planning.known_models import find_model
from moorage.runtime.planning.session_limit import session_limit
from moorage.workers.spec import KvType

_DEFAULT_CONTEXTS = "4K,32K,64K,128K,512K,1M"


def _contexts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(parse_tokens(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}, separated by commas") from error
    if min(counts) < 1:
        raise typer.BadParameter(f"{text!r}: every context must be at least 1 token")
    return counts


def _source(config: Path | None, overrides: Sequence[str]) -> Source:
    """The cluster file, or without one a single session."""
    if config is not None:
        return read_source(config, overrides, os.environ)
    source = Source(Path("runtime size"), {"server": {"max_running": 1}})
    source.put_overrides(overrides)
    return source


@app.command(
    epilog=examples(
        "runtime size --model internlm2.5-7b-1m",
        "runtime size --model ./my-model --context 1M --sessions 4",
        "runtime size --model ./my-model --set memory.topk=64",
        "runtime size --config deploy/local.yaml --json",
    )
)
def size(
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model directory, a GGUF file, or the name of a model preset."),
    ] = None,
    context: Annotated[
        str, typer.Option(help="Context lengths in tokens; K is 1024 and M is 1024².", metavar="N,N,…")
    ] = _DEFAULT_CONTEXTS,
    kv_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help=f"Storage of keys and values: {', '.join(KvType)}.")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens of a KV block.")] = None,
    anchors: Annotated[int | None, typer.Option(help="Summarised parts of each block.")] = None,
    anchor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="BLOCK_MEAN, QUEST, KEY_CODES …")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="KV actors that share the cache.")] = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sessions of that context at once, in memory and in device slots; default 1, with the device slots "
            "of the cluster file's server.max_running.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Memory preset; see `runtime presets`.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, bfloat16, float16 or auto.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="KIND", help="How matrices are kept: auto, float, int8 or int4.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cuda or cpu.")] = None,
    config: Annotated[Path | None, typer.Option(help="Take everything else from a cluster file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any other key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Size DRAM and device memory for a model and contexts."""
    if model is None and config is None:
        raise typer.BadParameter("give --model MODEL or --config FILE", param_hint="--model")
    contexts = _contexts(context)
    flags = {
        ("model", "path"): ("--model", model),
        ("model", "dtype"): ("--dtype", dtype),
        ("model", "weights"): ("--weights", weights),
        ("memory", "preset"): ("--preset", preset),
        ("long_context", "kv_type"): ("--kv-type", kv_type),
        ("long_context", "block_size"): ("--block-size", block_size),
        ("long_context", "anchor_num"): ("--anchors", anchors),
        ("long_context", "anchor_type"): ("--anchor-type", anchor_type),
        ("kv_store", "actors"): ("--shards", shards),
        ("gpu_workers", "device"): ("--device", device),
        ("server", "max_running"): ("--sessions", sessions),
    }
    source = _source(config, overrides or ())
    for (section, key), (flag, value) in flags.items():
        if value is not None:
            source.put(section, key, value, f"{flag} {value}")
    cluster = build_config(source)
    spec = find_model(model or str(cluster.model.path))
    report = SizeReport(
        model=model or str(cluster.model.path),
        deployment=deployment_of(cluster, spec),
        contexts=contexts,
        sessions=sessions or 1,
        host=read_host(),
        dram_bytes=cluster.kv_store.dram if ("kv_store", "dram") in source.origin or config else None,
        limit=session_limit(cluster, spec),
    )
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report)
