"""`runtime score`: log-likelihood of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage.client import Client
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.streaming import print_json_line, quiet
from moorage.workers.counting import counted


@app.command(
    epilog=examples(
        "runtime score --prompt-file chapter.txt",
        "runtime score --token-ids-file ids.json --preset full --json",
    )
)
def score(
    text: o.PromptText = None,
    prompt_file: o.PromptFile = None,
    token_ids_file: o.TokenIdsFile = None,
    address: o.Address = None,
    preset: o.Preset = None,
    memory: o.Memory = None,
    timeout_s: o.Timeout = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with a log-probability per token.")
    ] = False,
) -> None:
    """Tell how likely a text is under the model."""
    tokens_or_text = o.read_prompt(text, prompt_file, token_ids_file)
    with (
        o.time_limit(timeout_s),
        Client(o.server_address(address), timeout_s) as client,
        client.score_stream(tokens_or_text, preset=preset, memory=o.memory_settings(memory)) as stream,
    ):
        quiet(stream)
        result = stream.result()
    if as_json:
        print_json_line(
            {
                "logprobs": result.logprobs,
                "loss": result.loss,
                "perplexity": result.perplexity,
                "num_tokens": result.num_tokens,
            }
        )
    elif result.loss is None or result.perplexity is None:
        print(f"{result.num_tokens} token: nothing comes before it, so it has no likelihood")
    else:
        print(
            f"{counted(result.num_tokens, 'token')}, loss {result.loss:.4f} nats, perplexity {result.perplexity:.3f}"
        )
