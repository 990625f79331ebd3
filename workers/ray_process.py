"""How Ray starts one process of a cluster; free of Ray itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RayProcess:
    """A named actor, what it takes of the Ray cluster, and its environment variables.

    It ends with the process that started it. It is not restarted when it dies: its state would be gone, and an empty
    one under the old name would hide the loss.
    """

    name: str
    namespace: str
    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """What `options` of a remote class takes."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": self.memory_bytes,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": dict(self.environment)},
        }
