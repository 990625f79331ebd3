"""Automatic reuse of prefixes: idle sessions whose first blocks are those of a prompt, found by hashes of blocks.

Each full block has a hash of 256 bits of the block before, its token ids, and all that shapes keys and values: the
format of the store, the positions, what was attended, and the tenant (vLLM and SGLang find prefixes in this way).
The hash is keyed by a secret of the process. It only finds sessions: their tokens are compared, and decide what may
be used. A session is found from the end of its request on, when every layer has its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.scheduled_request import ScheduledRequest
from moorage.runtime.serving.session_cache import IdleSession, SessionCache
from moorage.runtime.serving.sessions.forking import check_can_share, first_blocks, share
from moorage.runtime.serving.sessions.keys import is_unnamed, tenant_and_name
from moorage.runtime.serving.sessions.reuse import attention_shape, selection_shape
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks
from moorage.workers.errors import FailedPrecondition
from moorage.workers.spec import KvLayout, MemorySpec
from moorage.workers.token_ids import TokenIds

_DIGEST_BYTES = 32
_MOST_TRIED = 4
"""Sessions with equally many blocks of a prompt that are compared with it."""


class BlockChain:
    """The hashes of a prompt's full blocks, and of what follows it."""

    def __init__(
        self,
        secret: bytes,
        tenant: str,
        memory: MemorySpec,
        layout: KvLayout,
        prompt: TokenIds,
        prompt_tokens: int | None = None,
    ) -> None:
        """`prompt_tokens` is the length of the whole prompt, where `prompt` is only a part of it."""
        length = len(prompt) if prompt_tokens is None else prompt_tokens
        selects = memory.selection.in_prefill(length)
        shape = (
            attention_shape(memory, layout, length),
            selection_shape(memory, layout) if selects else None,
        )
        self._secret, self._block_size = secret, layout.block_size
        self._root = self._hash(repr((tenant, layout, shape)).encode())
        self.digests: tuple[bytes, ...] = ()
        self.digests = self.of(prompt)

    def of(self, tokens: TokenIds) -> tuple[bytes, ...]:
        """The hashes of the full blocks of `tokens`, which begin with the prompt as far as it was read."""
        known = self.digests[: len(tokens) // self._block_size]
        found, last = list(known), known[-1] if known else self._root
        for block in tokens.blocks(self._block_size, len(known)):
            last = self._hash(last + block)
            found.append(last)
        return tuple(found)

    def _hash(self, content: bytes) -> bytes:
        return blake2b(content, digest_size=_DIGEST_BYTES, key=self._secret).digest()


@dataclass(slots=True)
class Prefixes:
    """Finds what a request may use of idle sessions of other names."""

    capacity: Capacity
    reusable: Callable[[str, IdleSession], int]
    """How many prompt tokens of a request an idle session's KV saves."""

    def find(self, request: ScheduledRequest, idle: SessionCache) -> tuple[IdleSession, int] | None:
        """The idle session that saves most of a request's prompt, and how many tokens in whole blocks."""
        own = request.session_name
        for held in idle.index.longest(request.digests, idle)[:_MOST_TRIED]:
            if held.name != own and tenant_and_name(held.name)[0] == request.tenant:
                tokens = self._whole_blocks(request, held)
                if tokens:
                    return held, tokens
        return None

    def is_taken_over(self, held: IdleSession, tokens: int) -> bool:
        """Whether a request that uses the first `tokens` of `held` goes on with it, since nobody else names it."""
        size = self.capacity.layout.block_size
        return is_unnamed(held.name) and tokens // size >= len(held.stored.token_ids) // size

    def first(self, held: IdleSession, tokens: int) -> Resources:
        """Resources of the blocks that the first `tokens` of a session fill."""
        return first_blocks(self.capacity, held.first_actor)(tokens // self.capacity.layout.block_size)

    def share(self, held: IdleSession, tokens: int, idle: SessionCache) -> SharedBlocks | None:
        """Holds the blocks that the first `tokens` of an idle session fill for another one."""
        return share(held, tokens, self.capacity, idle)[1]

    def _whole_blocks(self, request: ScheduledRequest, held: IdleSession) -> int:
        """First tokens that the request may use, a number of whole blocks after which its prefill may go on."""
        tokens, size = self.reusable(request.request_id, held), self.capacity.layout.block_size
        while tokens % size:
            kept = held.stored.token_ids[: tokens - tokens % size]
            held = replace(held, stored=replace(held.stored, token_ids=kept))
            tokens = self.reusable(request.request_id, held)
        return tokens


def can_share(capacity: Capacity) -> bool:
    """Whether sessions can share blocks."""
    try:
        check_can_share(capacity)
    except FailedPrecondition:
        return False
    return True
