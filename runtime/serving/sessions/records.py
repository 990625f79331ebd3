"""Records of sessions: what clients see of them, and by which rules the server keeps them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as clients see it. Times are Unix seconds."""

    name: str
    state: str
    """idle, running (a request uses it), waiting (a request waits for it) or saved (it lies in files alone)."""
    num_tokens: int
    """Tokens whose keys and values are stored."""
    dram_bytes: int
    """Reserved in the KV actors."""
    shared_bytes: int = 0
    """The part of these in blocks that other sessions hold as well. Memory counts them once."""
    pinned: bool = False
    last_used_s: float = 0.0
    """When its last request ended; the present time while one runs."""
    expires_s: float | None = None
    """When it is dropped unless it is used again; None for never."""
    tenant: str = ""
    """Whose it is; empty where the server knows no tenants."""
    saved_bytes: int = 0
    """Bytes of the files in which it was saved; 0 where it was not."""


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long idle sessions stay, and how much memory they may hold. None stands for no limit."""

    ttl_s: float | None = None
    """A session that no request used for so long is dropped."""
    quota_bytes: int | None = None
    """DRAM that the idle sessions of one tenant may hold together."""
    save_after_s: float | None = None
    """A named session that was idle for so long is saved by itself; None saves none by itself."""
    prefixes: bool = False
    """Whether requests use blocks of other sessions that begin as their prompts do, and leave theirs for others."""
