"""The clusters of `runtime demo`: each on a free port of its own, ended with the block that uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from moorage.client import Client
from moorage.runtime.cli.loading import start_view
from moorage.runtime.cli.output import print_note
from moorage.runtime.cli.stop import end_cluster
from moorage.runtime.cluster import registry
from moorage.runtime.cluster.daemon import launch_detached
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.preflight import check_host
from moorage.workers.errors import NotFound

_FREE_PORT = "server.grpc=127.0.0.1:0"
_STOP_TIMEOUT_S = 20.0


@contextmanager
def demo_cluster(source: Path, overrides: Sequence[str] = ()) -> Iterator[Client]:
    """A client of a new cluster from a cluster file or a model."""
    overrides = (_FREE_PORT, *overrides)
    check_host(load_cluster_config(source, overrides))
    print_note(f"Starting a cluster from {source} …")
    begun_s = time.monotonic()
    with start_view() as view:
        ready = launch_detached(source, overrides, None, view.loading, view.stage)
    print_note(f"Ready after {time.monotonic() - begun_s:.1f} s at {ready['address']}.")
    try:
        with Client(ready["address"]) as client:
            yield client
    finally:
        with suppress(NotFound):
            end_cluster(registry.find(ready["address"]), _STOP_TIMEOUT_S)
            print_note("The cluster has stopped; nothing of it is left.")
