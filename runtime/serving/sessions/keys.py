"""How the scheduler names a session: its name, with the tenant that it belongs to."""

from __future__ import annotations

_SEPARATOR = "\0"
"""No name has it, since names are printable."""


def session_key(tenant: str, name: str) -> str:
    """One name for a tenant's session; without a tenant, the session's own name."""
    return f"{tenant}{_SEPARATOR}{name}" if tenant else name


def tenant_and_name(key: str) -> tuple[str, str]:
    """The inverse of `session_key`."""
    tenant, separator, name = key.rpartition(_SEPARATOR)
    return (tenant, name) if separator else ("", key)
