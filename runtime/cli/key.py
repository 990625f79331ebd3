"""`runtime key`: the API keys of a server, in a file that holds their hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.api.access.keys import KeyFile
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.metavars import App
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.cluster import registry

key_app = App(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(key_app, name="key", help="Make, list and remove the API keys of a server.")

File = Annotated[
    Path | None,
    typer.Option(help="The file of keys. Default: keys.json in the state directory.", dir_okay=False),
]
Name = Annotated[str, typer.Argument(help="Whose key it is; requests with it are this tenant's.")]


@key_app.command(epilog=examples("runtime key add laptop", "runtime key add team --file keys.json"))
def add(name: Name, file: File = None) -> None:
    """Make a key and print it, once. Set server.keys to the file; running servers take a new key at once."""
    path = _path(file)
    print(KeyFile(path).add(name))
    print_note(f"{path} holds its hash; a server with server.keys: {path} lets it in")


@key_app.command("list", epilog=examples("runtime key list"))
def list_keys(file: File = None, as_json: o.AsJson = False) -> None:
    """Show whose keys there are, and since when."""
    keys = KeyFile(_path(file)).read()
    if as_json:
        print_json([{"name": key.name, "created": key.created} for key in keys])
        return
    for key in keys:
        print(f"{key.created}  {key.name}")


@key_app.command(epilog=examples("runtime key remove laptop"))
def remove(name: Name, file: File = None) -> None:
    """Remove a key; running servers refuse it at once."""
    KeyFile(_path(file)).remove(name)


def _path(file: Path | None) -> Path:
    return (file or registry.state_dir() / "keys.json").resolve()
