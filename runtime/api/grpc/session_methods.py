"""The methods of `moorage.v1.Moorage` that are about sessions. Every name is checked, then the engine is asked."""

from __future__ import annotations

from typing import Any

import grpc

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageServicer
from moorage.runtime.api.access.keys import tenant
from moorage.runtime.api.front_end import FrontEnd
from moorage.runtime.api.grpc import codec
from moorage.runtime.api.grpc.failures import reported
from moorage.runtime.api.validation import session_name

Context = grpc.aio.ServicerContext[Any, Any]


class SessionMethods(FrontEnd, MoorageServicer):
    """List, delete, rename, pin, fork, save and load."""

    async def ListSessions(  # noqa: N802
        self,
        request: pb.ListSessionsRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ListSessionsResponse:
        """Every session that is held."""
        async with reported(context):
            found = await self.ready().sessions.list(tenant.get())
            return pb.ListSessionsResponse(sessions=map(codec.session, found))

    async def DeleteSession(  # noqa: N802
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        """Drops one."""
        async with reported(context):
            await self.ready().sessions.delete(session_name(request.name), tenant.get())
            return pb.DeleteSessionResponse()

    async def RenameSession(self, request: pb.RenameSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        """Gives one another name."""
        async with reported(context):
            names = session_name(request.name), session_name(request.new_name, "new_name")
            return codec.session(await self.ready().sessions.rename(*names, tenant.get()))

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        """Opens one that shares the blocks of another."""
        async with reported(context):
            names = session_name(request.name), session_name(request.new_name, "new_name")
            return codec.session(await self.ready().sessions.fork(*names, tenant.get()))

    async def SaveSession(self, request: pb.SaveSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        """Writes one to files."""
        async with reported(context):
            return codec.session(await self.ready().sessions.save(session_name(request.name), tenant.get()))

    async def LoadSession(self, request: pb.LoadSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        """Brings one back from files."""
        async with reported(context):
            return codec.session(await self.ready().sessions.load(session_name(request.name), tenant.get()))

    async def PinSession(self, request: pb.PinSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        """Keeps one from eviction, or gives it free again."""
        async with reported(context):
            pinned = request.pinned if request.HasField("pinned") else True
            name = session_name(request.name)
            return codec.session(await self.ready().sessions.pin(name, pinned, tenant.get()))
