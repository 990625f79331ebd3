"""How much memory a model and a context need: the one formula behind admission, start-up and `runtime size`.

    DRAM   = KV pages (keys, values, anchors) + host staging + Ray and its processes
             (+ all device memory and the lists of scanned keys on a CPU)
    device = weights + slots + rings + workspace + device staging + the reserve of a GPU's runtime

Pages, slots and rings are exact, since arenas and pools are allocated by the same sizes; workspace is an upper
estimate of what a step's tensors take at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod

from moorage.runtime.config.units import format_bytes
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.key_memory import key_rows_bytes, scan_bytes
from moorage.runtime.planning.pages import largest_shard, pages_of_session
from moorage.workers.errors import InvalidConfig
from moorage.workers.gpu.model.weight_plan import expert_bytes, plan_weights, planned_bytes
from moorage.workers.hf_tensors import tensor_shapes
from moorage.workers.sizes import packed_staging_bytes, piece_blocks, slots_per_layer
from moorage.workers.spec import ExpertsPlace, KvLayout, MemorySpec, ModelSpec

RAY_BASE_BYTES = 320 * 1024**2
"""Proportional memory of a private Ray's own processes."""
COORDINATOR_BYTES = 320 * 1024**2
ACTOR_BASE_BYTES = 140 * 1024**2
WORKER_BASE_BYTES = 288 * 1024**2
"""Interpreter, libraries and compiled kernels of each process, as measured while a million tokens were served."""
CUDA_RESERVE_BYTES = 1024**3
"""Bytes for what the formula cannot count on a GPU: CUDA's context and modules (half a GB), the workspaces of cuBLAS,
graphs, and unused ends of the allocator's segments. An estimate; no GPU has been measured yet."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STAGING_BUFFERS = 2
IDLE_RINGS = 4
"""Rings of sliding-window layers beside those of running sessions, so that idle sessions keep theirs."""
_MERGED_PARTS = 8
"""Partial attention results that prefill holds before it merges them."""


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """Memory of the device, in bytes."""

    weights_bytes: int
    slots_bytes: int
    window_bytes: int
    """The part of `slots_bytes` that holds local windows."""
    rings_bytes: int
    """Keys and values of sliding-window layers, of running and idle sessions."""
    workspace_bytes: int
    staging_bytes: int
    reserve_bytes: int
    """CUDA_RESERVE_BYTES on a GPU."""
    num_slots: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        parts = (
            self.weights_bytes,
            self.slots_bytes,
            self.rings_bytes,
            self.workspace_bytes,
            self.staging_bytes,
        )
        return sum(parts) + self.reserve_bytes


@dataclass(frozen=True, slots=True)
class ContextSizes:
    """Memory of `sessions` sessions of `context_tokens` each, in bytes."""

    context_tokens: int
    sessions: int
    kv_bytes: int
    """Exactly the tokens' keys and values."""
    anchors_bytes: int
    """Bytes of all blocks, the last one included."""
    reserved_bytes: int
    """What admission reserves: whole pages in every shard, those of rows in fp16 beside packed blocks included."""
    largest_shard_bytes: int
    staging_bytes: int
    """Host staging, pinned when the device is a GPU."""
    ray_bytes: int
    scan_bytes: int
    """Lists of single keys that a step finds, on a CPU."""
    device: DeviceSizes
    total_dram_bytes: int
    disk_bytes: int
    """Bytes of spilled blocks; this version keeps all of them in DRAM."""


@cache
def num_parameters(model: ModelSpec) -> int:
    """Parameters of the decoder, embeddings and head included."""
    return sum(prod(shape) for shape in tensor_shapes(model).values())


def token_bytes(layout: KvLayout) -> int:
    """Keys and values of one token in all layers."""
    return layout.page_kv_bytes // layout.block_size


def num_slots(deployment: Deployment) -> int:
    """Device slots: for `max_running` sessions, for one of any other preset, and within `device_memory`.

    Raises InvalidConfig when `device_memory` has no room for one session.
    """
    layout = deployment.layout
    one = _slots(deployment, deployment.memory)
    wanted = max(deployment.max_running * one, *_each_slots(deployment), one)
    if deployment.device_memory is None:
        return wanted
    fixed = _beside_sessions(deployment) + num_rings(deployment) * deployment.windows.ring_bytes
    room = (deployment.device_memory - fixed) // layout.slot_bytes
    if room < one:
        raise InvalidConfig(
            f"gpu_workers.device_memory: {format_bytes(deployment.device_memory)} is too little: weights, workspace "
            f"and one session need {format_bytes(fixed + one * layout.slot_bytes)}; raise it, or lower memory.topk, "
            "long_context.local_windows_len or long_context.chunk_size"
        )
    return min(wanted, room)


def num_rings(deployment: Deployment) -> int:
    """Rings of sliding-window layers: for `max_running` sessions and some idle ones, and within `device_memory`."""
    ring_bytes = deployment.windows.ring_bytes
    if not ring_bytes:
        return 0
    wanted = deployment.max_running + IDLE_RINGS
    if deployment.device_memory is None:
        return wanted
    each = ring_bytes + _slots(deployment, deployment.memory) * deployment.layout.slot_bytes
    return max(1, min(wanted, (deployment.device_memory - _beside_sessions(deployment)) // each))


def session_slots(deployment: Deployment) -> int:
    """Device slots that one running session of the deployment's own preset reserves."""
    return _slots(deployment, deployment.memory)


def weights_bytes(deployment: Deployment) -> int:
    """The model's parameters as they are kept on the device, quantised or in their types."""
    plan = plan_weights(deployment.model, deployment.weights)
    every = planned_bytes(deployment.model, plan, DTYPE_BYTES[deployment.weight_dtype])
    return every - host_weights_bytes(deployment)


def host_weights_bytes(deployment: Deployment) -> int:
    """The weights of experts that a GPU leaves in host memory."""
    if deployment.on_cpu or deployment.experts is ExpertsPlace.DEVICE:
        return 0
    plan = plan_weights(deployment.model, deployment.weights)
    return expert_bytes(deployment.model, plan, DTYPE_BYTES[deployment.weight_dtype])


def workspace_bytes(deployment: Deployment) -> int:
    """Tensors of one step of `max_step_tokens`: linear layers, near keys, partial results, logits, single keys."""
    model, tokens = deployment.model, deployment.max_step_tokens
    item = DTYPE_BYTES[deployment.weight_dtype]
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    linear = tokens * (3 * model.hidden_size + 3 * model.feed_forward_channels + 2 * heads) * item
    window = max(memory.retention.window for memory in (deployment.memory, *deployment.other_memories))
    near_tokens = window + deployment.layout.block_size + tokens
    near = 3 * near_tokens * model.num_kv_heads * model.head_dim * item
    partials = 2 * (_MERGED_PARTS + 1) * tokens * model.num_heads * (model.head_dim + 1) * 4
    # The last tokens of a step's chunks are held for each window layer until the step is through.
    windows = deployment.windows
    held = tokens * windows.token_bytes + 3 * (windows.window + tokens) * windows.token_bytes // max(
        1, windows.num_layers
    )
    logits = 3 * deployment.max_running * model.vocab_size * 4
    beside = _streamed_expert_bytes(deployment) + key_rows_bytes(deployment)
    return linear + near + held + partials + logits + beside


def _streamed_expert_bytes(deployment: Deployment) -> int:
    """Copies of the weights of two experts, where those of all lie in host memory."""
    experts, model = deployment.model.experts, deployment.model
    if experts is None:
        return 0
    layers = sum(model.layer(index).has_experts for index in range(model.num_layers))
    return 2 * host_weights_bytes(deployment) // (layers * experts.num_experts)


def _beside_sessions(deployment: Deployment) -> int:
    """Device memory beside slots and rings."""
    parts = weights_bytes(deployment), workspace_bytes(deployment), _device_staging(deployment)
    return sum(parts) + reserve_bytes(deployment)


def reserve_bytes(deployment: Deployment) -> int:
    """Device memory that CUDA and its libraries take beside the tensors; none on a CPU."""
    return 0 if deployment.on_cpu else CUDA_RESERVE_BYTES


def device_sizes(deployment: Deployment) -> DeviceSizes:
    """Memory of the device; it does not depend on the context."""
    layout, memory = deployment.layout, deployment.memory
    slots = num_slots(deployment)
    near = -(-(memory.retention.window + 1) // layout.block_size) + 2
    windows = min(slots, deployment.max_running * layout.num_layers * near)
    return DeviceSizes(
        weights_bytes=weights_bytes(deployment),
        slots_bytes=slots * layout.slot_bytes,
        window_bytes=windows * layout.slot_bytes,
        rings_bytes=num_rings(deployment) * deployment.windows.ring_bytes,
        workspace_bytes=workspace_bytes(deployment),
        staging_bytes=_device_staging(deployment),
        reserve_bytes=reserve_bytes(deployment),
        num_slots=slots,
    )


def spare_device_bytes(deployment: Deployment) -> int | None:
    """What `device_memory` leaves for copies of anchors; None where it is unlimited."""
    if deployment.device_memory is None:
        return None
    return max(0, deployment.device_memory - device_sizes(deployment).total_bytes)


def context_sizes(deployment: Deployment, context_tokens: int, sessions: int = 1) -> ContextSizes:
    """Memory for `sessions` sessions of `context_tokens` at once."""
    layout = deployment.layout
    blocks = layout.num_blocks(context_tokens)
    reserved = sessions * pages_of_session(deployment, blocks) * layout.page_bytes
    device = device_sizes(deployment)
    fixed, scan = fixed_dram_bytes(deployment), scan_bytes(deployment, context_tokens, sessions)
    return ContextSizes(
        context_tokens=context_tokens,
        sessions=sessions,
        kv_bytes=sessions * context_tokens * token_bytes(layout),
        anchors_bytes=sessions * blocks * layout.page_anchor_bytes,
        reserved_bytes=reserved,
        largest_shard_bytes=largest_shard(deployment, blocks, sessions) * layout.page_bytes,
        staging_bytes=_host_staging(deployment),
        ray_bytes=ray_bytes(deployment),
        scan_bytes=scan,
        device=device,
        total_dram_bytes=fixed + scan + reserved,
        disk_bytes=0,
    )


def fixed_dram_bytes(deployment: Deployment) -> int:
    """Host memory beside the KV pages: staging, Ray, quantizers, experts of a GPU's model and, on a CPU, the device's
    own."""
    device = device_sizes(deployment).total_bytes if deployment.on_cpu else 0
    quantizers = deployment.shards * deployment.layout.quantizer_bytes
    beside = ray_bytes(deployment) + host_weights_bytes(deployment) + quantizers
    return _host_staging(deployment) + beside + device


def ray_bytes(deployment: Deployment) -> int:
    """Memory of Ray and of every process in it beside what the others count, and of the object store."""
    processes = COORDINATOR_BYTES + deployment.shards * ACTOR_BASE_BYTES + WORKER_BASE_BYTES
    return RAY_BASE_BYTES + processes + deployment.object_store_bytes


def _slots(deployment: Deployment, memory: MemorySpec) -> int:
    per_layer = slots_per_layer(memory, deployment.layout, deployment.max_cached_block)
    return per_layer * deployment.layout.num_layers


def _each_slots(deployment: Deployment) -> Iterable[int]:
    return [_slots(deployment, memory) for memory in deployment.other_memories]


def _host_staging(deployment: Deployment) -> int:
    layout = deployment.layout
    return _STAGING_BUFFERS * piece_blocks(layout, deployment.on_cpu) * layout.slot_bytes


def _device_staging(deployment: Deployment) -> int:
    """Keys and values of a streamed piece on the device: packed, as decoded, and in the type of activations."""
    layout = deployment.layout
    elements = piece_blocks(layout, deployment.on_cpu) * layout.slot_bytes // layout.element_bytes
    compute = DTYPE_BYTES[deployment.weight_dtype]
    packed = packed_staging_bytes(layout, deployment.on_cpu)
    return _STAGING_BUFFERS * elements * (layout.element_bytes + compute) + packed
