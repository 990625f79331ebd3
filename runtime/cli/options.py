"""Options that several commands share, and how the given ones become a request."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer

from moorage.client import GenerateOptions
from moorage.runtime.cluster import registry
from moorage.runtime.config.addresses import server_target
from moorage.runtime.packaged import example_file, examples
from moorage.workers.errors import DeadlineExceeded, InvalidRequest

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The server. Default: $MOORAGE_ADDRESS, else the cluster that runs here, else 127.0.0.1:50051.",
    ),
]
Example = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"An example that comes with the package: {', '.join(examples())}."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PromptText = Annotated[str | None, typer.Argument(help="The text; read from stdin when it is not given.")]
PromptFile = Annotated[
    Path | None, typer.Option(help="Read the text from a file, as UTF-8.", exists=True, dir_okay=False)
]
TokenIdsFile = Annotated[
    Path | None, typer.Option(help="Read token ids from a file: a JSON list.", exists=True, dir_okay=False)
]
Preset = Annotated[str | None, typer.Option(metavar="NAME", help="A memory preset other than the cluster's.")]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="KEY=VALUE",
        help="A setting of this request alone, by its key in a cluster file, such as topk=64; may be given several "
        "times.",
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to generate; default 256.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy. Default is the model's own, see `status`.")
]
TopK = Annotated[
    int | None,
    typer.Option(help="Draw from the k likeliest tokens; 0 means all. Default is the model's own."),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest tokens of this probability. Default is the model's own."),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this share of the likeliest. Default is the model's own."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Over 1 makes seen tokens less likely. Default is the model's own.")
]
PresencePenalty = Annotated[float | None, typer.Option(help="Subtracted from generated tokens' logits.")]
FrequencyPenalty = Annotated[float | None, typer.Option(help="The same, once per occurrence.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Makes sampling repeatable; default differs each time. The same request with the same seed draws "
        "the same tokens, whatever was cached and whatever else runs. With model.dtype float32 that holds for "
        "every token. In bfloat16 and float16, requests that run beside this one change how logits are "
        "rounded; then a draw "
        "between nearly equal tokens can differ."
    ),
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-sequence token.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this time.", min=0.001)
]


def server_address(address: str | None) -> str:
    """The address given, or where a server is found. Raises InvalidRequest for what can't be an address."""
    return registry.default_address() if address is None else server_target(address, "--address")


@contextmanager
def time_limit(timeout_s: float | None) -> Iterator[None]:
    """Names the flag --timeout where the client's error names its parameter."""
    try:
        yield
    except DeadlineExceeded:
        if timeout_s is None:
            raise
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s; raise --timeout or ask for less") from None


def given(**options: object) -> GenerateOptions:
    """The options that were given on the command line; the server knows the defaults of the others."""
    return cast("GenerateOptions", {name: value for name, value in options.items() if value is not None})


def memory_settings(pairs: list[str] | None) -> dict[str, str] | None:
    """The settings of `--memory KEY=VALUE` options."""
    if not pairs:
        return None
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.strip()):
            raise typer.BadParameter(
                f"{pair[:100]!r} should be KEY=VALUE, as in topk=64", param_hint="--memory"
            )
        found[key.strip()] = value
    return found


def cluster_file(file: Path | None, example: str | None) -> Path:
    """The cluster file of a command, given by its path or as an example. Raises NotFound for an unknown example."""
    if file is not None and example is None:
        return file
    if example is not None and file is None:
        return example_file(example)
    raise typer.BadParameter("give one cluster file or model, or --example NAME", param_hint="FILE")


def read_text(text: str | None, prompt_file: Path | None) -> bytes:
    """The bytes of a text from its argument, a file or stdin; the server checks that they are UTF-8."""
    if text is not None and prompt_file is not None:
        raise typer.BadParameter("give the text or --prompt-file, not both")
    if text is not None:
        return text.encode("utf-8", "surrogateescape")
    if prompt_file is not None:
        return prompt_file.read_bytes()
    if sys.stdin.isatty():
        raise typer.BadParameter("give a text, or --prompt-file, or pipe one in")
    return sys.stdin.buffer.read()


def read_prompt(text: str | None, prompt_file: Path | None, token_ids_file: Path | None) -> bytes | list[int]:
    """A text as `read_text` finds it, or a file's token ids. Raises InvalidRequest for a file of other things."""
    if token_ids_file is None:
        return read_text(text, prompt_file)
    if text is not None or prompt_file is not None:
        raise typer.BadParameter("give a text or --token-ids-file, not both")
    try:
        ids = json.loads(token_ids_file.read_bytes())
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise InvalidRequest(f"--token-ids-file {token_ids_file}: must hold a JSON list of whole numbers")
    return ids
