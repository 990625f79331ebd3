"""How the scheduler names a session: its name, with the tenant that it belongs to."""

from __future__ import annotations

_SEPARATOR = "\0"
"""No name has it, since names are printable."""


def session_key(tenant: str, name: str) -> str:
    """One name for a tenant's session; without a tenant, the session's own name."""
    return f"{tenant}{_SEPARATOR}{name}" if tenant else name


def unnamed_key(tenant: str, number: int) -> str:
    """The key of a session to which its client gave no name; no other session has it."""
    return f"{tenant}{_SEPARATOR}{number}{_SEPARATOR}"


def is_unnamed(key: str) -> bool:
    """Whether a key is one of `unnamed_key`."""
    return key.endswith(_SEPARATOR)


def tenant_and_name(key: str) -> tuple[str, str]:
    """The inverse of `session_key`; the name of an unnamed session is empty."""
    if is_unnamed(key):
        return key[:-1].rpartition(_SEPARATOR)[0], ""
    tenant, separator, name = key.rpartition(_SEPARATOR)
    return (tenant, name) if separator else ("", key)
