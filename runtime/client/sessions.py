"""Operations on the sessions of a server: `client.sessions`, for ordinary code and for asyncio.

All but `list` raise NotFound for a name that the server does not hold, and FailedPrecondition for a session that is
in use or a new name that is taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc.codec import read_session
from moorage.runtime.serving.sessions.records import SessionInfo


class Sessions:
    """The sessions of the server of a `Client`.

    >>> with Client() as client:
    ...     for session in client.sessions.list():
    ...         print(session.name, session.num_tokens, session.dram_bytes)
    """

    def __init__(self, stub: MoorageStub, call: Callable[[Any, Any], Any]) -> None:
        self._stub, self._call = stub, call

    def list(self) -> list[SessionInfo]:
        """Every session, the longest unused first."""
        reply = self._call(self._stub.ListSessions, pb.ListSessionsRequest())
        return [read_session(session) for session in reply.sessions]

    def delete(self, name: str) -> None:
        """Drops the KV of a session."""
        self._call(self._stub.DeleteSession, pb.DeleteSessionRequest(name=name))

    def rename(self, name: str, new_name: str) -> SessionInfo:
        """Gives a session another name."""
        request = pb.RenameSessionRequest(name=name, new_name=new_name)
        return read_session(self._call(self._stub.RenameSession, request))

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """Opens a session that shares all full blocks of another one, and goes its own way after them."""
        request = pb.ForkSessionRequest(name=name, new_name=new_name)
        return read_session(self._call(self._stub.ForkSession, request))

    def save(self, name: str) -> SessionInfo:
        """Writes a session to files of the server, which survive it."""
        return read_session(self._call(self._stub.SaveSession, pb.SaveSessionRequest(name=name)))

    def load(self, name: str) -> SessionInfo:
        """Brings a saved session back to memory."""
        return read_session(self._call(self._stub.LoadSession, pb.LoadSessionRequest(name=name)))

    def pin(self, name: str, pinned: bool = True) -> SessionInfo:
        """Keeps a session from being dropped for others and when its time has passed, or gives it free again."""
        return read_session(self._call(self._stub.PinSession, pb.PinSessionRequest(name=name, pinned=pinned)))


class AsyncSessions:
    """The sessions of the server of an `AsyncClient`."""

    def __init__(self, stub: MoorageStub, call: Callable[[Any, Any], Awaitable[Any]]) -> None:
        self._stub, self._call = stub, call

    async def list(self) -> list[SessionInfo]:
        """Every session, the longest unused first."""
        reply = await self._call(self._stub.ListSessions, pb.ListSessionsRequest())
        return [read_session(session) for session in reply.sessions]

    async def delete(self, name: str) -> None:
        """Drops the KV of a session."""
        await self._call(self._stub.DeleteSession, pb.DeleteSessionRequest(name=name))

    async def rename(self, name: str, new_name: str) -> SessionInfo:
        """Gives a session another name."""
        request = pb.RenameSessionRequest(name=name, new_name=new_name)
        return read_session(await self._call(self._stub.RenameSession, request))

    async def fork(self, name: str, new_name: str) -> SessionInfo:
        """Opens a session that shares all full blocks of another one, and goes its own way after them."""
        request = pb.ForkSessionRequest(name=name, new_name=new_name)
        return read_session(await self._call(self._stub.ForkSession, request))

    async def save(self, name: str) -> SessionInfo:
        """Writes a session to files of the server, which survive it."""
        return read_session(await self._call(self._stub.SaveSession, pb.SaveSessionRequest(name=name)))

    async def load(self, name: str) -> SessionInfo:
        """Brings a saved session back to memory."""
        return read_session(await self._call(self._stub.LoadSession, pb.LoadSessionRequest(name=name)))

    async def pin(self, name: str, pinned: bool = True) -> SessionInfo:
        """Keeps a session from being dropped for others and when its time has passed, or gives it free again."""
        request = pb.PinSessionRequest(name=name, pinned=pinned)
        return read_session(await self._call(self._stub.PinSession, request))
