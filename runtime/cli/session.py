"""`runtime session`: the sessions whose KV a server holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from moorage.client import Client, SessionInfo
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.metavars import App
from moorage.runtime.cli.output import print_json, print_table
from moorage.runtime.config.units import format_bytes

session_app = App(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(session_app, name="session", help="Show and change the sessions whose KV the server holds.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.", show_default=False)]
NewName = Annotated[str, typer.Argument(metavar="NEW_NAME", help="A name that is free.", show_default=False)]
_RIGHT = ("tokens", "DRAM", "shared", "saved", "unused for", "time left")


@session_app.command("list", epilog=examples("runtime session list", "runtime session list --json"))
def list_sessions(address: o.Address = None, as_json: o.AsJson = False) -> None:
    """List the sessions with their tokens and memory, the longest unused first."""
    with Client(o.server_address(address)) as client:
        sessions = client.sessions.list()
    if as_json:
        print_json([asdict(session) for session in sessions])
    elif sessions:
        print_sessions(sessions)
    else:
        print("(no session is held; `runtime generate --session NAME` begins one)")


@session_app.command(epilog=examples("runtime session delete planning"))
def delete(name: Name, address: o.Address = None) -> None:
    """Drop the KV of a session. One that a request uses is refused."""
    with Client(o.server_address(address)) as client:
        client.sessions.delete(name)


@session_app.command(epilog=examples("runtime session rename planning plan-1"))
def rename(name: Name, new_name: NewName, address: o.Address = None) -> None:
    """Give a session another name."""
    with Client(o.server_address(address)) as client:
        client.sessions.rename(name, new_name)


@session_app.command(epilog=examples("runtime session fork planning plan-b"))
def fork(name: Name, new_name: NewName, address: o.Address = None) -> None:
    """Open a session that shares the blocks of another one, which memory counts once."""
    with Client(o.server_address(address)) as client:
        made = client.sessions.fork(name, new_name)
    print(f"{made.name}: {made.num_tokens:,} tokens, {format_bytes(made.shared_bytes)} shared")


@session_app.command(epilog=examples("runtime session save planning"))
def save(name: Name, address: o.Address = None) -> None:
    """Write a session to files in sessions.path, which survive the server."""
    with Client(o.server_address(address)) as client:
        saved = client.sessions.save(name)
    print(f"{saved.name}: saved, {format_bytes(saved.saved_bytes)}")


@session_app.command(epilog=examples("runtime session load planning"))
def load(name: Name, address: o.Address = None) -> None:
    """Bring a saved session back to memory."""
    with Client(o.server_address(address)) as client:
        loaded = client.sessions.load(name)
    print(f"{loaded.name}: {loaded.num_tokens:,} tokens, {format_bytes(loaded.dram_bytes)} of DRAM")


@session_app.command(epilog=examples("runtime session pin planning", "runtime session pin planning --off"))
def pin(
    name: Name,
    address: o.Address = None,
    off: Annotated[bool, typer.Option("--off", help="Let the session be evicted again.")] = False,
) -> None:
    """Keep a session in memory: other requests do not evict it, and its time does not run out."""
    with Client(o.server_address(address)) as client:
        client.sessions.pin(name, not off)


def print_sessions(sessions: Sequence[SessionInfo]) -> None:
    """Prints a table on stdout."""
    now_s = time.time()
    rows = [
        (
            session.name,
            f"{session.state}, pinned" if session.pinned else session.state,
            f"{session.num_tokens:,}",
            format_bytes(session.dram_bytes),
            format_bytes(session.shared_bytes) if session.shared_bytes else "",
            format_bytes(session.saved_bytes) if session.saved_bytes else "",
            _duration(now_s - session.last_used_s),
            "" if session.expires_s is None else _duration(session.expires_s - now_s),
        )
        for session in sessions
    ]
    print_table(("session", "state", *_RIGHT), rows, right=_RIGHT)


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h` or `3 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
