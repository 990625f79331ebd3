"""Memory for single keys: the rows that stores send to a device, and what a scan on a CPU finds."""

from __future__ import annotations

from moorage.runtime.planning.deployment import Deployment

_SINGLE_BYTES = 4
_FOUND_BYTES = 8
"""Bytes of a key in the lists of a scan: its number and its value."""


def key_rows(deployment: Deployment) -> int:
    """Keys of each KV head whose rows one session and layer has on the device at once."""
    every = deployment.memory, *deployment.other_memories
    return max(memory.selection.topk_keys for memory in every)


def key_rows_bytes(deployment: Deployment) -> int:
    """Keys and values as stored, and what is computed of them in fp32: keys, rotations, rotated keys and values,
    and for each query head logits and their exponentials."""
    layout, model = deployment.layout, deployment.model
    stored = 2 * layout.head_dim * layout.element_bytes
    computed = 4 * layout.head_dim * _SINGLE_BYTES
    weights = 4 * model.group_size * _SINGLE_BYTES
    return key_rows(deployment) * layout.num_kv_heads * (stored + computed + weights)


def scan_bytes(deployment: Deployment, context_tokens: int, sessions: int) -> int:
    """Lists of the keys that one layer's scan finds for sessions that decode together on a CPU, at most all keys."""
    if not (deployment.on_cpu and deployment.memory.selection.topk_keys):
        return 0
    together = min(sessions, deployment.max_running)
    return together * context_tokens * deployment.model.num_kv_heads * _FOUND_BYTES
