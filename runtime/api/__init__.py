"""The gRPC service: what it promises is written in proto/v1/moorage.proto."""

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.server import ApiServer

__all__ = ["ApiServer", "Engine"]
