"""The CPU kernels that a worker uses alone, and functions that use each of them once, so that it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from moorage.kernels.block_attention import attend_blocks
from moorage.kernels.block_attention.resident import Rotations, attend_resident
from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.logit_rows import summarise_rows
from moorage.kernels.numba_flags import in_both_ways
from moorage.kernels.step_program import Program, run_program
from moorage.workers.gpu.engine.warm_up_decode import decode_uses
from moorage.workers.gpu.engine.warm_up_prefill import prefill_uses
from moorage.workers.gpu.model.weights import resolve_dtype
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.gpu.transfer.copy_engine import as_storage_array
from moorage.workers.spec import KvLayout


@dataclass(frozen=True)
class KernelNeeds:
    """What decides which kernels a worker uses on a CPU."""

    layout: KvLayout
    group_size: int
    rotary_dim: int
    dtype: str
    """The type of hidden states, as torch names it."""
    num_shards: int
    on_cpu: bool
    """Whether the model runs on the CPU."""
    in_place: bool
    """Whether blocks are attended where they lie in the stores."""
    attends_blocks: bool
    """Whether selected blocks are attended by the CPU for a model that runs elsewhere."""

    @staticmethod
    def of(settings: WorkerSettings, device: torch.device, num_shards: int) -> KernelNeeds:
        """The needs of a worker on `device`."""
        spec, on_cpu = settings.spec, device.type == "cpu"
        return KernelNeeds(
            settings.layout,
            spec.group_size,
            spec.rope.rotary_dim,
            str(resolve_dtype(settings.dtype, spec)).removeprefix("torch."),
            num_shards,
            on_cpu,
            on_cpu and settings.engine.in_place,
            settings.engine.attend_on == "cpu",
        )


def kernel_uses(needs: KernelNeeds) -> list[Callable[[], None]]:
    """Functions that use the kernels of the worker alone. `compiling_process` begins with the last one.

    Each of them waits while another process runs the same one.
    """
    layout, sizes = needs.layout, (needs.group_size, needs.rotary_dim)
    uses: list[Callable[[], None]] = []
    if needs.in_place:
        uses += decode_uses(layout, *sizes)
    if needs.attends_blocks:
        uses.append(partial(in_both_ways, partial(_attend_stored, layout, *sizes, needs.num_shards)))
    if needs.on_cpu or needs.attends_blocks:
        uses.append(partial(in_both_ways, partial(_attend_copied, layout, *sizes)))
    if needs.on_cpu:
        uses += [_summarise, *prefill_uses(getattr(torch, needs.dtype)), _run_nothing]
    return [partial(_use_alone, f"worker-kernels-{place}", use) for place, use in enumerate(uses)]


def _use_alone(name: str, use: Callable[[], None]) -> None:
    with one_at_a_time(name):
        use()


def _summarise() -> None:
    summarise_rows(np.zeros((1, 1), np.float32))


def _run_nothing() -> None:
    """A step's program without operations."""
    run_program(*Program().tables(), 0)


def _attend_stored(layout: KvLayout, group_size: int, rotary_dim: int, num_shards: int) -> None:
    """Attends one block in host memory."""
    memory = as_storage_array(torch.zeros((1, 2, *layout.block_shape), dtype=storage_dtype(layout.kv_type)))
    query = np.zeros((layout.num_kv_heads * group_size, layout.head_dim), np.float32)
    none, memories = np.zeros(1, np.int32), (memory.reshape(-1),) * num_shards
    sizes, rotations = np.zeros(num_shards, np.int64), _rotations(layout, rotary_dim // 2)
    attend_resident(
        query,
        memories,
        (none,) * num_shards,
        sizes,
        0,
        1,
        layout.block_shape,
        none,
        (none, none),
        rotations,
        1.0,
    )


def _attend_copied(layout: KvLayout, group_size: int, rotary_dim: int) -> None:
    """Attends one block in a device slot."""
    copied = torch.zeros((1, 2, *layout.block_shape), dtype=storage_dtype(layout.kv_type))
    query = torch.zeros(layout.num_kv_heads * group_size, layout.head_dim)
    cos, sin, rotate_keys, offset_cos, offset_sin = _rotations(layout, rotary_dim // 2)
    none = np.zeros(1, np.int32)
    attend_blocks(
        query,
        copied,
        slot=none,
        begin=none,
        end=none,
        angle_cos=cos,
        angle_sin=sin,
        rotate_keys=rotate_keys,
        offset_cos=offset_cos,
        offset_sin=offset_sin,
        scale=1.0,
    )


def _rotations(layout: KvLayout, half: int) -> Rotations:
    """Rotations of one entry, as `attend_resident` takes them."""
    angles, offsets = np.zeros((1, half), np.float32), np.zeros((layout.block_size, half), np.float32)
    return angles, angles, np.ones(1, np.uint8), offsets, offsets
