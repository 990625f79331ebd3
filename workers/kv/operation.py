"""What every store operation has: how it reaches the store, and how a worker's own view of the store follows it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar, get_args

from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.store import KvStore

T = TypeVar("T")
OPERATIONS: dict[int, type[Operation[Any]]] = {}
"""The one table of operations, by their number on the wire."""


@dataclass(slots=True)
class Operation(Generic[T]):
    """Something to ask of a store, whose reply is a T."""

    handler: ClassVar[str]
    """The method of KvStore, or for Selecting of MappedShard, that answers."""
    follower: ClassVar[str] = ""
    """The method of MappedShard that does the same in a worker's view, where `follow` is not overridden."""
    reply_type: ClassVar[Any]
    number: ClassVar[int]

    def __init_subclass__(cls) -> None:
        (base,) = cls.__orig_bases__  # type: ignore[attr-defined]
        (cls.reply_type,) = get_args(base)
        if not isinstance(cls.reply_type, TypeVar):
            # A dataclass with slots is made twice; the second takes the place of the first.
            names = [known.__name__ for known in OPERATIONS.values()]
            cls.number = names.index(cls.__name__) if cls.__name__ in names else len(names)
            OPERATIONS[cls.number] = cls

    @property
    def sessions(self) -> list[int]:
        """The sessions that it is about."""
        session_id: int | None = getattr(self, "session_id", None)
        return [] if session_id is None else [session_id]

    def answer(self, store: KvStore) -> T:
        """Asks the store."""
        reply: T = getattr(store, self.handler)(*_values(self))
        return reply

    def follow(self, shard: MappedShard, reply: T) -> None:
        """Records what the store has done in a worker's own view of the store's memory."""
        del reply
        if self.follower:
            getattr(shard, self.follower)(*_values(self))


@dataclass(slots=True)
class Selecting(Operation[T]):
    """An operation that only reads what a worker of the same host maps as well."""

    runs_on_mapping: ClassVar[bool] = False
    """Whether such a worker always does it itself, and not only where it scores all blocks itself."""

    def select(self, shard: MappedShard) -> T:
        """Answers it from a view of the store's memory."""
        reply: T = getattr(shard, self.handler)(*_values(self))
        return reply

    def answer(self, store: KvStore) -> T:
        """See Operation."""
        return self.select(store.shard)


_GETTERS: dict[str, Any] = {}


def _values(operation: Operation[Any]) -> Any:
    """The values of its fields."""
    get = _GETTERS.get(operation.__class__.__name__)
    if get is None:
        names = [field.name for field in fields(operation)]
        get = attrgetter(*names) if len(names) > 1 else lambda one: [getattr(one, name) for name in names]
        _GETTERS[operation.__class__.__name__] = get
    return get(operation)
