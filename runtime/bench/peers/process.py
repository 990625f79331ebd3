"""A peer in a process of its own, so that its threads, its memory and its libraries meet no other's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from moorage.runtime.bench.measure import Sample, sample
from moorage.runtime.bench.peers.engines import make_peer
from moorage.runtime.bench.peers.peer import Peer, PeerSpec
from moorage.workers.errors import MoorageError, Unavailable

_RESET_PEAK = "5"
"""What Linux takes in `clear_refs` to begin a new peak of resident memory."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Parts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A whole prompt, timed."""

    token_id: int
    taken: Sample[Parts]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Generated tokens, each timed."""

    token_id: int
    taken: tuple[Sample[Parts], ...]


class PeerProcess:
    """Calls the peer in its process. Raises the peer's own errors here."""

    def __init__(self, spec: PeerSpec) -> None:
        """Starts the process and loads the model."""
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, spec), daemon=True)
        self._process.start()
        there.close()
        try:
            self._reply()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefill(self, token_ids: Sequence[int], max_tokens: int) -> Prefilled:
        """A new sequence with this prompt."""
        answer: Prefilled = self._call("prefill", list(token_ids), max_tokens)
        return answer

    def fill(self, num_tokens: int, max_tokens: int) -> None:
        """A new sequence with a made-up past."""
        self._call("fill", num_tokens, max_tokens)

    def decode(self, token_id: int, steps: int, mode: str) -> Decoded:
        """So many tokens after `token_id`."""
        answer: Decoded = self._call("decode", token_id, steps, mode)
        return answer

    def answer(self, token_ids: Sequence[int], num_tokens: int, mode: str) -> list[int]:
        """The greedy continuation of a prompt."""
        answer: list[int] = self._call("answer", list(token_ids), num_tokens, mode)
        return answer

    def peak_bytes(self) -> int:
        """Most resident memory of the process since the present sequence began."""
        answer: int = self._call("peak_bytes")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((name, arguments))
        except ConnectionError as error:
            raise self._ended() from error
        return self._reply()

    def _reply(self) -> Any:
        try:
            reply = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error
        if isinstance(reply, MoorageError):
            raise reply
        return reply

    def _ended(self) -> Unavailable:
        self._process.join(10)
        code = self._process.exitcode
        return Unavailable(f"{self.spec.name}: its process ended with code {code}; try shorter --lengths")


class PeerServer:
    """What the other process does for each call."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def prefill(self, token_ids: Sequence[int], max_tokens: int) -> Prefilled:
        """See PeerProcess."""
        self._open(max_tokens)
        taken = sample(lambda: self._peer.prefill(token_ids))
        return Prefilled(taken.value, self._with_parts(taken))

    def fill(self, num_tokens: int, max_tokens: int) -> None:
        """See PeerProcess."""
        self._open(max_tokens)
        self._peer.fill(num_tokens)

    def decode(self, token_id: int, steps: int, mode: str) -> Decoded:
        """See PeerProcess."""
        samples = []
        for _ in range(steps):
            taken = sample(lambda token=token_id: self._peer.decode(token, mode))  # type: ignore[misc]
            token_id = taken.value
            samples.append(self._with_parts(taken))
        return Decoded(token_id, tuple(samples))

    def answer(self, token_ids: Sequence[int], num_tokens: int, mode: str) -> list[int]:
        """See PeerProcess."""
        self._open(len(token_ids) + num_tokens)
        tokens = [self._peer.prefill(token_ids)]
        while len(tokens) < num_tokens:
            tokens.append(self._peer.decode(tokens[-1], mode))
        return tokens

    def peak_bytes(self) -> int:
        """See PeerProcess."""
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise Unavailable("/proc/self/status has no VmHWM; the peak of memory is known on Linux only")

    def _open(self, max_tokens: int) -> None:
        self._peer.open(max_tokens)
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")

    def _with_parts(self, taken: Sample[int]) -> Sample[Parts]:
        return Sample(dict(self._peer.part_s), taken.seconds, taken.disturbed)


def serve(parent: Connection, spec: PeerSpec) -> None:
    """The other process: answers until its parent closes the pipe or dies."""
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
    os.environ["TQDM_DISABLE"] = "1"
    try:
        peer = make_peer(spec)
    except MoorageError as error:
        parent.send(error)
        return
    server = PeerServer(peer)
    parent.send(None)
    try:
        while True:
            name, arguments = parent.recv()
            try:
                parent.send(getattr(server, name)(*arguments))
            except MoorageError as error:
                parent.send(error)
    except EOFError:
        peer.close()
