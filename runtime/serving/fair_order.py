"""The order in which waiting requests start: tenants take turns, so none waits behind all requests of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from moorage.runtime.serving.scheduled_request import ScheduledRequest


def in_turn(
    waiting: Iterable[ScheduledRequest], running: Iterable[ScheduledRequest]
) -> list[ScheduledRequest]:
    """First those that would be their tenant's first running request, then second ones, and so on.

    Within a turn, and so for a single tenant, they start in order of arrival, which is that of `waiting`.
    """
    turns = Counter(request.tenant for request in running)
    found = []
    for request in waiting:
        turns[request.tenant] += 1
        found.append((turns[request.tenant], request))
    return [request for _, request in sorted(found, key=lambda one: one[0])]
