"""`runtime tokenize` and `runtime detokenize`."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage.client import Client
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.streaming import print_json_line


@app.command(
    epilog=examples(
        'runtime tokenize "Once upon a time"',
        "runtime tokenize --prompt-file book.txt --json",
    )
)
def tokenize(
    text: o.PromptText = None,
    prompt_file: o.PromptFile = None,
    address: o.Address = None,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Add the model's special tokens.")
    ] = True,
    as_json: o.AsJson = False,
) -> None:
    """Print the token ids of a text."""
    with Client(o.server_address(address)) as client:
        ids = client.tokenize(o.read_text(text, prompt_file), add_special_tokens=special)
    if as_json:
        print_json_line({"token_ids": ids, "num_tokens": len(ids)})
    else:
        print(*ids)


@app.command(
    epilog=examples(
        "runtime detokenize 17 4 1999",
        "runtime detokenize --token-ids-file ids.json",
    )
)
def detokenize(
    token_ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID", help="Token ids.", show_default=False)
    ] = None,
    token_ids_file: o.TokenIdsFile = None,
    address: o.Address = None,
    as_json: o.AsJson = False,
) -> None:
    """Print the text of token ids."""
    if bool(token_ids) == (token_ids_file is not None):
        raise typer.BadParameter("give token ids or --token-ids-file")
    ids = token_ids or o.read_prompt(None, None, token_ids_file)
    with Client(o.server_address(address)) as client:
        text = client.detokenize(list(ids))
    if as_json:
        print_json_line({"text": text})
    else:
        print(text)
