"""`runtime key`: the API keys of a server, in a file that holds their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.api.access.keys import KeyFile
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.metavars import App
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.cluster import registry
from moorage.runtime.config.units import format_bytes, parse_bytes, parse_tokens
from moorage.runtime.serving.tenant_limits import TenantLimits
from moorage.workers.counting import counted

key_app = App(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(key_app, name="key", help="Make, limit, list and remove the API keys of a server.")

File = Annotated[
    Path | None,
    typer.Option(help="The file of keys. Default: keys.json in the state directory.", dir_okay=False),
]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Whose key it is; requests with it are this tenant's.")
]

MaxParallel = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most requests with the key that run or wait at once.", show_default="unlimited"
    ),
]
TokensPerMinute = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Most tokens that they read or generate in a minute; tokens of held KV do not count.",
        show_default="unlimited",
    ),
]
MaxKvBytes = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most KV memory that they hold together.", show_default="unlimited"),
]


@key_app.command(
    epilog=examples(
        "runtime key add laptop",
        "runtime key add team --file keys.json",
        "runtime key add guest --max-parallel-requests 2 --tokens-per-minute 100K --max-kv-bytes 4GiB",
    )
)
def add(
    name: Name,
    max_parallel_requests: MaxParallel = None,
    tokens_per_minute: TokensPerMinute = None,
    max_kv_bytes: MaxKvBytes = None,
    file: File = None,
) -> None:
    """Make a key and print it, once. Set server.keys to the file; running servers take a new key at once."""
    path = _path(file)
    print(KeyFile(path).add(name, _limits(max_parallel_requests, tokens_per_minute, max_kv_bytes)))
    print_note(f"{path} holds its hash; a server with server.keys: {path} lets it in")


@key_app.command("list", epilog=examples("runtime key list"))
def list_keys(file: File = None, as_json: o.AsJson = False) -> None:
    """Show whose keys there are, and since when."""
    keys = KeyFile(_path(file)).read()
    if as_json:
        print_json([{"name": key.name, "created": key.created, "limits": asdict(key.limits)} for key in keys])
        return
    for key in keys:
        print("  ".join((key.created, key.name, *_shown(key.limits))))


@key_app.command(
    epilog=examples(
        "runtime key limit guest --max-parallel-requests 2 --tokens-per-minute 100K",
        "runtime key limit guest",
    )
)
def limit(
    name: Name,
    max_parallel_requests: MaxParallel = None,
    tokens_per_minute: TokensPerMinute = None,
    max_kv_bytes: MaxKvBytes = None,
    file: File = None,
) -> None:
    """Give a key these limits in place of the ones that it has; running servers keep them at once."""
    KeyFile(_path(file)).limit(name, _limits(max_parallel_requests, tokens_per_minute, max_kv_bytes))


@key_app.command(epilog=examples("runtime key remove laptop"))
def remove(name: Name, file: File = None) -> None:
    """Remove a key; running servers refuse it at once."""
    KeyFile(_path(file)).remove(name)


def _limits(parallel: int | None, tokens: str | None, kv_bytes: str | None) -> TenantLimits:
    """The limits of three options. Ends the command at one that can't be read."""
    try:
        limits = TenantLimits(
            parallel,
            None if tokens is None else parse_tokens(tokens),
            None if kv_bytes is None else parse_bytes(kv_bytes),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if 0 in (limits.tokens_per_minute, limits.max_kv_bytes):
        raise typer.BadParameter("a limit must be over 0; remove the key to let in no request")
    return limits


def _shown(limits: TenantLimits) -> Iterator[str]:
    if limits.max_parallel_requests is not None:
        yield counted(limits.max_parallel_requests, "request")
    if limits.tokens_per_minute is not None:
        yield f"{limits.tokens_per_minute:,} tokens/min"
    if limits.max_kv_bytes is not None:
        yield f"{format_bytes(limits.max_kv_bytes)} of KV"


def _path(file: Path | None) -> Path:
    return (file or registry.state_dir() / "keys.json").resolve()
