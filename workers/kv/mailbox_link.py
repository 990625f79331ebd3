"""The worker's end of the mailbox: rows and blocks in the mapped arena, operations through the window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from moorage.workers.kv.link import confirm
from moorage.workers.kv.mailbox_channel import Channel, Patience
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.operation import Operation, Selecting

T = TypeVar("T")


class MailboxLink:
    """A `Link` to a MailboxServer of the same host.

    A session that this link opened is written by this link alone, until it is dropped. A dead server shows at once as
    PeerDead, and one that is silent for longer than `patience` allows.
    """

    def __init__(self, address: str, *, patience: Patience | None = None, name: str = "") -> None:
        """Connects. Raises PeerDead when nobody serves `address`. `name` is the server's, for messages."""
        self._channel = Channel(address, patience or Patience(), name)
        self.pid, self.layout = self._channel.pid, self._channel.arena.layout
        self.shard = MappedShard(self._channel.arena, "open on this link; open it first or attach to it")
        self.scores_here = False

    def call(self, operation: Operation[T]) -> T:
        """See Link."""
        return self.submit(operation)()

    def submit(self, operation: Operation[T]) -> Callable[[], T]:
        """See Link."""
        if isinstance(operation, Selecting) and (self.scores_here or operation.runs_on_mapping):
            for session_id in operation.sessions:
                confirm(self, session_id)
            found: T = operation.select(self.shard)
            return lambda: found
        receive = self._channel.submit(operation)
        if self.shard.unconfirmed:
            self.shard.unconfirmed.difference_update(operation.sessions)

        def collect() -> T:
            reply = receive()
            operation.follow(self.shard, reply)
            return reply

        return collect

    def post(self, *operations: Operation[Any]) -> None:
        """See Link; one packet for all, where it holds them."""
        self._channel.post(operations)
        for operation in operations:
            operation.follow(self.shard, None)

    def close(self) -> None:
        """Ends the connection and unmaps the arena; the sessions stay. Idempotent."""
        self._channel.close()
        self.shard.sessions.clear()
