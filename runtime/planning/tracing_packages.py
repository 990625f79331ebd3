"""Whether traces can be sent."""

from __future__ import annotations

from importlib.util import find_spec

from moorage.workers.errors import InvalidConfig

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check_tracing(endpoint: str | None) -> None:
    """Raises InvalidConfig if traces are to be sent to an endpoint and the packages for that are missing."""
    if endpoint is None:
        return
    missing = [name for name in _PACKAGES if not _is_installed(name)]
    if missing:
        raise InvalidConfig(
            f"server.otlp: {missing[0]} is not installed; install it with pip install 'moorage[otlp]', or leave "
            "server.otlp out"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
