"""`python -m moorage.runtime.planning.ray_probe ADDRESS`: prints the resources of a Ray cluster's nodes as JSON.

A process of its own, since a join that hangs can only be ended from outside.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import ray
from ray._private.state import available_resources_per_node


def nodes_of_joined() -> list[dict[str, Any]]:
    """{"total", "free"} resources of each live node of the cluster that this process has joined."""
    free = available_resources_per_node()
    return [
        {"total": node["Resources"], "free": free.get(node["NodeID"], {})}
        for node in ray.nodes()
        if node["Alive"]
    ]


def main() -> None:
    """Prints one line of JSON, {"nodes": [...]}; an error's last line on stderr says what went wrong."""
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
    print(json.dumps({"nodes": nodes_of_joined()}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
