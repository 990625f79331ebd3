"""Launching in the background: the server gets a session of its own, its launcher waits for word of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moorage.runtime import state
from moorage.runtime.config import load_cluster_config
from moorage.runtime.logs import configure_logs
from moorage.workers.errors import MoorageError, Unavailable


def launch_detached(
    config_file: Path,
    overrides: Sequence[str],
    ready_file: Path | None,
    on_loading: Callable[[int, int], None],
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Starts the server in a new session and waits until it is ready. Returns what the ready file holds.

    `on_loading` hears the bytes of the weights that are read, and all; `on_stage` each stage of the start. Raises
    Unavailable with the server's own line when it fails to start.
    """
    log_file = state.run_dir() / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "moorage.runtime.detach", str(config_file)]
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
    with os.fdopen(reader, encoding="utf-8") as words:
        try:
            word: dict[str, Any] = {}
            for line in words:
                word = json.loads(line)
                if "loading" in word:
                    on_loading(*word["loading"])
                elif "stage" in word:
                    on_stage(word["stage"])
                else:
                    break
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if "ready" in word:
        ready: dict[str, Any] = word["ready"]
        return ready
    child.wait()
    raise Unavailable(
        word.get("error") or f"the server died with status {child.returncode}; its log is {log_file}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The background process. Sends its launcher lines: stages and loading, then {"ready": …} or {"error": …}."""
    parser = argparse.ArgumentParser(prog="python -m moorage.runtime.detach")
    parser.add_argument("config_file", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--log-file", type=Path, required=True)
    parser.add_argument("--notify-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    os.set_inheritable(options.notify_fd, False)
    configure_logs()
    from moorage.runtime.launch import Hooks, Launch, serve

    with os.fdopen(options.notify_fd, "w", encoding="utf-8") as launcher:

        def tell(word: dict[str, Any], *, last: bool = True) -> None:
            if not launcher.closed:
                launcher.write(json.dumps(word) + "\n")
                launcher.flush()
                if last:
                    launcher.close()

        try:
            config = load_cluster_config(options.config_file, options.overrides)
            launch = Launch(config, options.config_file, options.ready_file, options.log_file)
            hooks = Hooks(
                on_ready=lambda ready: tell({"ready": ready}),
                on_loading=lambda *loading: tell({"loading": loading}, last=False),
                on_stage=lambda stage: tell({"stage": stage}, last=False),
            )
            asyncio.run(serve(launch, hooks))
        except MoorageError as error:
            print(f"error: {error}", file=sys.stderr)
            tell({"error": str(error)})
            return 1
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            tell({"error": f"the server failed to start ({reason}); its log is {options.log_file}"})
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
