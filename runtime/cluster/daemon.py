"""Launches a server in the background, in a session of its own; the launcher waits until it is ready."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moorage.runtime.cluster import registry
from moorage.runtime.cluster.launcher_pipe import LauncherPipe
from moorage.runtime.cluster.logs import configure_logs
from moorage.runtime.config.load import load_cluster_config
from moorage.workers.errors import MoorageError, Unavailable


def launch_detached(
    config_file: Path,
    overrides: Sequence[str],
    ready_file: Path | None,
    on_loading: Callable[[int, int], None],
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Starts the server in a new session and waits until it is ready. Returns the contents of the ready file.

    `on_loading` and `on_stage` are as in Hooks. Raises Unavailable with the server's own line when it fails to start.
    """
    log_file = registry.run_dir() / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "moorage.runtime.cluster.daemon", str(config_file)]
    command += [f"--set={override}" for override in overrides]
    command += [] if ready_file is None else [f"--ready-file={ready_file.resolve()}"]
    command += [f"--log-file={log_file}", f"--notify-fd={writer}"]
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as lines, _signals_raise():
        try:
            message = _last_message(lines, on_loading, on_stage)
        except (KeyboardInterrupt, _Signalled):
            child.terminate()
            child.wait()
            raise
    if "ready" in message:
        ready: dict[str, Any] = message["ready"]
        return ready
    raise Unavailable(message.get("error") or f"{_how_it_ended(child.wait())}; its log is {log_file}")


def _how_it_ended(status: int) -> str:
    """The error for a server that ended with this exit status before it was ready, and sent no error."""
    if status == 0:
        return "the server was stopped before it was ready"
    if status < 0:
        return f"the server was ended by {signal.Signals(-status).name} before it was ready"
    return f"the server ended with status {status} before it was ready"


class _Signalled(BaseException):
    """The launcher got a signal to end before the server was ready."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise _Signalled inside the block; after it the process ends by that signal."""

    def raise_it(number: int, _frame: object) -> None:
        came.append(number)
        raise _Signalled

    came: list[int] = []
    before = {number: signal.signal(number, raise_it) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[0])


def _last_message(
    lines: Iterable[str], on_loading: Callable[[int, int], None], on_stage: Callable[[str], None]
) -> dict[str, Any]:
    """Reads a starting server's messages. Returns the last one; it is empty when the server ended without one."""
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "loading" in message:
            on_loading(*message["loading"])
        elif "stage" in message:
            on_stage(message["stage"])
        else:
            return message
    return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server in the background; sends its launcher stages and loading, then {"ready": …} or {"error": …}."""
    parser = argparse.ArgumentParser(prog="python -m moorage.runtime.cluster.daemon")
    parser.add_argument("config_file", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--log-file", type=Path, required=True)
    parser.add_argument("--notify-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    configure_logs()
    from moorage.runtime.cluster.hooks import Hooks
    from moorage.runtime.cluster.server import Launch, serve

    launcher = LauncherPipe(options.notify_fd)
    try:
        config = load_cluster_config(options.config_file, options.overrides)
        launch = Launch(config, options.config_file, options.ready_file, options.log_file)
        hooks = Hooks(
            on_ready=lambda ready: launcher.send({"ready": ready}, last=True),
            on_loading=lambda *loading: launcher.send({"loading": loading}),
            on_stage=lambda stage: launcher.send({"stage": stage}),
        )
        asyncio.run(serve(launch, hooks))
    except MoorageError as error:
        print(f"error: {error}", file=sys.stderr)
        launcher.send({"error": str(error)}, last=True)
        return 1
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        launcher.send(
            {"error": f"the server failed to start ({reason}); its log is {options.log_file}"}, last=True
        )
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
