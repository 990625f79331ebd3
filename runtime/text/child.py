"""The text process: it holds the tokenizer and forks a child for each job, so that no job exceeds its limits.

It exchanges packets with the server on one socket. A job is a packet of JSON with two descriptors: the text, and a
file for the answer. When the child has ended, a packet has its exit code. The answer is a line of JSON, then bytes.
The process ends with the server, and its children with it. It loads the standard library, jinja2 and tokenizers.

python -m moorage.runtime.text.child MODEL_DIR SOCKET_FD LIMITS_AS_JSON
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

from moorage.runtime.text.body import overwrite, read_all
from moorage.runtime.text.child_setup import NICE, be_quiet, die_first, die_with
from moorage.runtime.text.jobs import JOBS, Tokenizer
from moorage.runtime.text.limits import PACKET_BYTES, JobLimits, limit_stage
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import MoorageError


class TextServer:
    """Reads jobs from the socket, forks a child for each, and reports how it ended."""

    def __init__(self, tokenizer: Tokenizer, server: socket.socket, limits: JobLimits) -> None:
        self._tokenizer, self._server, self._limits = tokenizer, server, limits
        self._jobs: dict[int, int] = {}
        """Job by the pid of its child."""
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Runs until the server closes its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    self._woken.recv(PACKET_BYTES)
                    self._reap()
                if self._server in ready and not self._receive():
                    return

    def _receive(self) -> bool:
        """Starts or cancels one job; False once the server is gone."""
        packet, descriptors, _, _ = socket.recv_fds(self._server, PACKET_BYTES, 2)
        if not packet:
            return False
        request = json.loads(packet)
        if "cancel" in request:
            for pid, job in self._jobs.items():
                if job == request["cancel"]:
                    os.kill(pid, signal.SIGKILL)
            return True
        text_fd, answer_fd = descriptors
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._work(parent, request, text_fd, answer_fd)
        self._jobs[pid] = request["job"]
        os.close(text_fd)
        os.close(answer_fd)
        return True

    def _reap(self) -> None:
        """Reports every child that has ended to the server."""
        while self._jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            job = self._jobs.pop(pid)
            self._server.send(json.dumps({"job": job, "code": os.waitstatus_to_exitcode(status)}).encode())

    def _work(self, parent: int, request: dict[str, Any], text_fd: int, answer_fd: int) -> NoReturn:
        """Runs in the child. It ends by `os._exit`, so that no clean-up of the parent runs in it."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            die_with(parent)
            die_first()
            be_quiet()
            self._server.close()
            answer = _answer(self._tokenizer, self._limits, request, text_fd, answer_fd)
            overwrite(answer_fd, answer)
            code = 0
        finally:
            os._exit(code)


def _answer(
    tokenizer: Tokenizer, limits: JobLimits, request: dict[str, Any], text_fd: int, answer_fd: int
) -> bytes:
    """The content of the answer file. While a stage runs, the file holds its name, in case the stage is killed."""

    def on_stage(name: str, num_bytes: int) -> None:
        overwrite(answer_fd, json.dumps({"stage": name, "num_bytes": num_bytes}).encode() + b"\n")
        limit_stage(limits, num_bytes)

    def stage() -> dict[str, Any]:
        return dict(json.loads(read_all(answer_fd) or b"{}"))

    job = request["do"]
    try:
        result = JOBS[job](tokenizer, read_all(text_fd), request["options"], on_stage)
    except MemoryError:
        # The memory limit is set anew, so that the answer can be made.
        limit_stage(limits, 0)
        return json.dumps({"memory": True, **stage()}).encode() + b"\n"
    except MoorageError as error:
        return json.dumps({"error": str(error)}).encode() + b"\n"
    except Exception as error:  # noqa: BLE001  the last line before the process ends
        kind = type(error).__name__
        return (
            json.dumps({"error": f"{stage().get('stage', job)} fails with {kind}: {error}"[:1000]}).encode()
            + b"\n"
        )
    return b"{}\n" + result


def main(arguments: list[str]) -> None:
    """Loads the tokenizer, reports that, and serves."""
    model_dir, server_fd, limits = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # A fork must not find threads.
    os.nice(NICE)
    server = socket.socket(fileno=int(server_fd))
    tokenizer = TextTokenizer.load(model_dir)
    tokenizer.prepare_chat()
    server.send(b"{}")
    TextServer(tokenizer, server, JobLimits(**json.loads(limits))).run()


if __name__ == "__main__":
    main(sys.argv[1:])
