"""The sizing formula: the published table, the arena's own sizes, and the limits that follow."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.host import Host, check_memory, deployment_of, read_host
from moorage.runtime.planning.key_memory import key_rows
from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.runtime.planning.memory import (
    context_sizes,
    device_sizes,
    fixed_dram_bytes,
    host_weights_bytes,
    num_parameters,
    num_rings,
    num_slots,
    spare_device_bytes,
    token_bytes,
    weights_bytes,
    workspace_bytes,
)
from moorage.runtime.planning.pages import largest_context_tokens, most_sessions, pages_per_actor
from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.scheduled_request import Limits, ScheduledRequest
from moorage.runtime.serving.scheduler import Scheduler
from moorage.workers.errors import InvalidConfig
from moorage.workers.gpu.transfer.key_rows import KeyRowBuffer
from moorage.workers.hf_config import read_model_spec
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvType, LayerSpec, MemorySpec

PILOT = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-pilot"
GIB = 2**30
QUEST = {"anchor_type": "QUEST", "block_size": 32}
INTERNLM = MODEL_PRESETS["internlm2.5-7b-1m"]


def cluster(**sections: dict[str, object]) -> ClusterConfig:
    return ClusterConfig.model_validate({"model": {"path": "m"}, **sections})


def check_fits(config: ClusterConfig, host: Host) -> None:
    check_memory(config, deployment_of(config, INTERNLM), host)


def deployment(**sections: dict[str, object]) -> Deployment:
    return deployment_of(cluster(gpu_workers={"device": "cuda"}, **sections), INTERNLM)


@pytest.mark.parametrize(
    ("tokens", "gigabytes"),
    [
        (4096, 0.54),
        (32768, 4.29),
        (65536, 8.59),
        (131072, 17.18),
        (524288, 68.72),
        (2**20, 137.44),
        (1110000, 145.49),
    ],
)
def test_published_table(tokens: int, gigabytes: float) -> None:
    row = context_sizes(deployment(), tokens)
    assert row.kv_bytes == tokens * 131072
    assert round(row.kv_bytes / 1e9, 2) == gigabytes


def test_storage_type_and_anchors_scale() -> None:
    plan = deployment(long_context=QUEST)
    wide = replace(plan, layout=replace(plan.layout, kv_type=KvType.FP32, anchor_num=4))
    assert token_bytes(wide.layout) == 2 * token_bytes(plan.layout)
    assert context_sizes(wide, 1000).anchors_bytes == 8 * context_sizes(plan, 1000).anchors_bytes


def test_lists_of_scanned_keys_are_counted_on_a_cpu() -> None:
    """A number and a value for each key and KV head of one layer, of the sessions that decode at once."""
    store = {"anchor_type": "KEY_CODES", "block_size": 64}
    keys = {"memory": {"topk_keys": 512}, "long_context": store, "server": {"max_running": 2}}
    plan = deployment_of(cluster(gpu_workers={"device": "cpu"}, **keys), INTERNLM)
    for sessions, together in [(1, 1), (2, 2), (5, 2)]:
        row = context_sizes(plan, 1000, sessions)
        assert row.scan_bytes == together * 1000 * 8 * (4 + 4)
        assert row.total_dram_bytes == fixed_dram_bytes(plan) + row.reserved_bytes + row.scan_bytes
    assert context_sizes(deployment(**keys), 1000).scan_bytes == 0
    assert context_sizes(deployment_of(cluster(gpu_workers={"device": "cpu"}), INTERNLM), 1000).scan_bytes > 0
    blocks = cluster(gpu_workers={"device": "cpu"}, memory={"preset": "ktransformers"})
    assert context_sizes(deployment_of(blocks, INTERNLM), 1000).scan_bytes == 0


def test_codes_of_keys_are_counted_with_the_anchors() -> None:
    """In each of 32 layers and 8 heads: 16 bytes of signs and a scale a key, mean key and mean value a block."""
    store = {"anchor_type": "KEY_CODES", "block_size": 64}
    row = context_sizes(deployment(memory={"topk_keys": 512}, long_context=store), 64 * 1000)
    assert row.anchors_bytes == 1000 * 32 * 8 * (64 * (128 // 8 + 2) + 2 * 128 * 2)


@pytest.mark.parametrize(
    ("shards", "stripe", "tokens"), list(product((1, 2, 3), (1, 8), (1, 127, 128, 129, 99_999)))
)
def test_reserved_is_what_admission_reserves(shards: int, stripe: int, tokens: int) -> None:
    plan = replace(deployment(), shards=shards, stripe_blocks=stripe)
    capacity = Capacity(plan.layout, Resources((10**6,) * shards, 10**9), stripe, None)
    need = capacity.need(tokens, plan.memory)
    row = context_sizes(plan, tokens)
    assert row.reserved_bytes == capacity.bytes_of(need)
    assert row.largest_shard_bytes == max(need.pages) * plan.layout.page_bytes
    assert row.kv_bytes + row.anchors_bytes <= row.reserved_bytes


@pytest.mark.parametrize(("shards", "stripe", "sessions"), list(product((1, 2, 3), (1, 8), (1, 3))))
def test_largest_context_fits_and_one_more_block_does_not(shards: int, stripe: int, sessions: int) -> None:
    plan = replace(deployment(), shards=shards, stripe_blocks=stripe)
    for dram in (0, 100 * 2**20, 3 * GIB + 12345):
        room = dram // shards
        largest = largest_context_tokens(plan, dram, sessions)
        assert context_sizes(plan, largest, sessions).largest_shard_bytes <= room
        assert context_sizes(plan, largest + 1, sessions).largest_shard_bytes > room


@pytest.mark.parametrize(
    ("shards", "stripe", "tokens"), list(product((1, 2, 3), (1, 8), (1, 129, 1000, 3000)))
)
def test_admission_takes_as_many_sessions_as_are_promised(shards: int, stripe: int, tokens: int) -> None:
    """No more and no fewer, however their ends lie in the actors."""
    plan = replace(deployment(), shards=shards, stripe_blocks=stripe)
    pages, dram_bytes = 40, 40 * shards * plan.layout.page_bytes
    promised = most_sessions(plan, dram_bytes, tokens)
    capacity = Capacity(plan.layout, Resources((pages,) * shards, 10**9), stripe, None)
    limits = Limits(capacity.total, 10**6, 10**6, max_running=10**6, max_waiting=10**6)
    scheduler = Scheduler(limits, lambda *_: 0)
    for request_id in range(promised + 1):
        scheduler.add(ScheduledRequest(str(request_id), tokens, capacity.need(tokens, plan.memory)))
    assert len(scheduler.next_step().admitted) == promised
    if promised:
        assert context_sizes(plan, tokens, promised).largest_shard_bytes <= pages * plan.layout.page_bytes
        assert largest_context_tokens(plan, dram_bytes, promised) >= tokens


def test_short_sessions_use_all_shards() -> None:
    plan = replace(deployment(), shards=3, stripe_blocks=8)
    assert most_sessions(plan, 3 * 16 * plan.layout.page_bytes, 8 * plan.layout.block_size) == 6


def test_total_adds_up() -> None:
    plan = deployment()
    row = context_sizes(plan, 32768, sessions=2)
    assert row.total_dram_bytes == row.reserved_bytes + row.staging_bytes + row.ray_bytes
    on_cpu = context_sizes(replace(plan, on_cpu=True), 32768, sessions=2)
    in_dram = on_cpu.reserved_bytes + on_cpu.staging_bytes + on_cpu.ray_bytes + on_cpu.scan_bytes
    assert on_cpu.total_dram_bytes == in_dram + on_cpu.device.total_bytes
    assert on_cpu.device.reserve_bytes == 0
    device = row.device
    assert device.reserve_bytes > 0
    assert device.total_bytes == (
        device.weights_bytes
        + device.slots_bytes
        + device.workspace_bytes
        + device.staging_bytes
        + device.reserve_bytes
    )
    assert device.weights_bytes == 2 * num_parameters(INTERNLM) + 2 * 65 * 4096, "norms are float32"


def test_slots_hold_what_a_step_attends() -> None:
    layout = deployment().layout
    for name in PRESETS:
        memory = resolve_memory(cluster(memory={"preset": name}))
        for size, window, topk, step in product(
            (1, 32, 128), (1, 127, 128, 129, 4096), (None, 1, 24), (1, 2, 500)
        ):
            spec = memory.replace(window=window, topk=topk, token_step=step)
            assert slots_per_layer(spec, replace(layout, block_size=size), 1) >= _most_attended(spec, size)
    memory = resolve_memory(cluster(memory={"preset": "inf-llm"}))
    layout = replace(layout, block_size=128)
    spec = memory.replace(window=4096, topk=16, sinks=128, token_step=1, dense_until=0)
    assert slots_per_layer(spec, layout, None) == (33 + 2) + 1 + 32
    assert slots_per_layer(spec, layout, 100) == (33 + 2) + 1 + 100
    assert slots_per_layer(spec.replace(dense_until=8192), layout, None) == (33 + 2) + 1 + 64


def _most_attended(memory: MemorySpec, size: int) -> int:
    """Blocks of sinks, window, choice, and those that left the window since a choice, at the worst position."""
    most = 0
    for position in range(20_000, 20_000 + 2 * size):
        near = position // size - (position - memory.retention.window + 1) // size + 1
        then = position - memory.selection.token_step + 1
        aged = (position - memory.retention.window + 1) // size - (then - memory.retention.window + 1) // size
        most = max(most, near + (aged if memory.selection.topk else 0))
    return most + -(-memory.retention.sinks // size) + (memory.selection.topk or 0)


def test_slots_for_all_sessions_or_for_one_of_any_preset() -> None:
    plan = deployment(memory={"preset": "full"})
    one = slots_per_layer(plan.memory, plan.layout, None) * 32
    assert num_slots(replace(plan, max_running=100)) == 100 * one
    alone = max(slots_per_layer(m, plan.layout, None) for m in plan.other_memories) * 32
    assert num_slots(replace(plan, max_running=1)) == alone > one


def test_device_memory_limits_the_slots() -> None:
    plan = replace(deployment(), max_running=64)
    full = device_sizes(plan)
    limited = device_sizes(replace(plan, device_memory=full.total_bytes - 1))
    assert limited.num_slots == full.num_slots - 1
    with pytest.raises(
        InvalidConfig, match=r"gpu_workers\.device_memory: 15\.00 GiB is too little.*raise it"
    ):
        num_slots(replace(plan, device_memory=15 * GIB))


def test_what_device_memory_leaves_goes_to_anchors() -> None:
    plan = deployment()
    total = device_sizes(plan).total_bytes
    assert spare_device_bytes(plan) is None
    assert spare_device_bytes(replace(plan, device_memory=total + 12345)) == 12345
    tight = replace(plan, device_memory=total - 1)
    assert spare_device_bytes(tight) == tight.device_memory - device_sizes(tight).total_bytes


def test_pages_per_actor() -> None:
    layout = deployment().layout
    assert pages_per_actor(2 * layout.page_bytes, 2, layout) == 1
    with pytest.raises(InvalidConfig, match=r"kv_store\.dram: .* no room for one block"):
        pages_per_actor(2 * layout.page_bytes - 1, 2, layout)


def test_memory_of_the_host() -> None:
    config = cluster(kv_store={"dram": "8GiB"}, gpu_workers={"device": "cuda"})
    fixed = fixed_dram_bytes(deployment_of(config, INTERNLM))
    host = Host(100 * GIB, 8 * GIB + fixed + 2 * GIB)
    check_fits(config, host)
    with pytest.raises(InvalidConfig, match=r"^kv_store\.dram: 8\.00 GiB.*use \d+MiB or less$") as caught:
        check_fits(config, replace(host, available_bytes=host.available_bytes - 1))
    fits = str(caught.value).split("use ")[1].split(" ")[0]
    smaller = cluster(kv_store={"dram": fits}, gpu_workers={"device": "cuda"})
    check_fits(smaller, replace(host, available_bytes=host.available_bytes - 1))
    with pytest.raises(InvalidConfig, match="larger host"):
        check_fits(config, Host(GIB, GIB))
    check_fits(cluster(kv_store={"dram": "999TiB"}, ray={"address": "auto"}), host)


def test_this_host_can_be_read() -> None:
    host = read_host()
    assert 0 <= host.usable_bytes < host.available_bytes <= host.total_bytes


def test_parameters_of_the_embedded_model() -> None:
    header = 8 + int.from_bytes((PILOT / "model.safetensors").read_bytes()[:8], "little")
    tensors = (PILOT / "model.safetensors").stat().st_size - header
    assert 2 * num_parameters(read_model_spec(PILOT)) == tensors


def test_an_automatic_chunk_costs_no_slot() -> None:
    auto: dict[str, object] = {"chunk_size": "auto"}

    def steps(**sections: dict[str, object]) -> int:
        return deployment_of(cluster(**{"long_context": auto, **sections}), INTERNLM).max_step_tokens

    def needed(chunk: int) -> int:
        plan = deployment(long_context={"chunk_size": chunk})
        return device_sizes(plan).total_bytes

    cuda: dict[str, object] = {"device": "cuda"}
    assert steps(gpu_workers={"device": "cpu"}) == 4096
    assert steps(gpu_workers=cuda) == 8192
    assert steps(gpu_workers=cuda, scheduler={"max_step_tokens": 3000}) == 3000
    for chunk in (8192, 4096):
        assert steps(gpu_workers={**cuda, "device_memory": needed(chunk)}) == chunk
        assert steps(gpu_workers={**cuda, "device_memory": needed(chunk) - 1}) == chunk // 2
    assert steps(gpu_workers={**cuda, "device_memory": needed(2048) // 2}) == 2048


def windowed() -> Deployment:
    """Three of four layers attend a window of 1 024 tokens."""
    num_layers = INTERNLM.num_layers
    layers = tuple(LayerSpec(window=1024 if layer % 4 else None) for layer in range(num_layers))
    return deployment_of(cluster(gpu_workers={"device": "cuda"}), replace(INTERNLM, layers=layers))


def test_window_layers_take_device_memory_and_no_pages() -> None:
    plan, plain = windowed(), deployment()
    assert token_bytes(plan.layout) * 4 == token_bytes(plain.layout)
    ring = device_sizes(plan).rings_bytes // num_rings(plan)
    assert ring == plan.windows.ring_bytes
    assert 1024 * 3 * token_bytes(plan.layout) < ring < 2.2 * 1024 * 3 * token_bytes(plan.layout)
    assert num_rings(plain) == device_sizes(plain).rings_bytes == 0
    assert num_rings(plan) > plan.max_running


def test_device_memory_holds_as_many_rings_as_sessions() -> None:
    plan = windowed()
    full = device_sizes(plan)
    exactly = replace(plan, device_memory=full.total_bytes)
    assert device_sizes(exactly).total_bytes <= full.total_bytes
    tight = replace(plan, device_memory=full.total_bytes - full.slots_bytes * 3 // 4)
    found = device_sizes(tight)
    assert found.total_bytes <= tight.device_memory
    assert 1 <= num_rings(tight) < num_rings(plan)
    with pytest.raises(InvalidConfig, match="is too little"):
        num_slots(replace(plan, device_memory=full.weights_bytes))


@pytest.mark.parametrize(
    ("kept", "gigabytes"), [("float", 15.48), ("auto", 15.48), ("int8", 8.22), ("int4", 5.17)]
)
def test_weights_count_as_they_are_kept(kept: str, gigabytes: float) -> None:
    plan = deployment(model={"path": "m", "weights": kept})
    assert device_sizes(plan).weights_bytes / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_rows_of_single_keys_have_room_on_the_device() -> None:
    """The rows themselves, as they are reserved, and what is computed of them: keys rotated in fp32, their values."""
    plan = deployment(memory={"preset": "full"})
    selecting = replace(plan, other_memories=(plan.memory.replace(topk_keys=700), plan.memory))
    assert (key_rows(plan), key_rows(selecting)) == (0, 700)
    layout = plan.layout
    rows = KeyRowBuffer(layout, key_rows(selecting), torch.device("meta"))
    stored = rows.num_bytes
    assert stored == 700 * layout.num_kv_heads * 2 * layout.head_dim * 2
    more = workspace_bytes(selecting) - workspace_bytes(plan)
    assert 3 * stored < more < 6 * stored


def test_experts_in_host_memory_move_from_the_device_to_dram() -> None:
    qwen = MODEL_PRESETS["qwen3-30b-a3b"]
    config = cluster(gpu_workers={"device": "cuda"}, model={"path": "m", "experts": "host"})
    here, there = deployment_of(cluster(gpu_workers={"device": "cuda"}), qwen), deployment_of(config, qwen)
    experts = 2 * 48 * 128 * 3 * 768 * 2048
    assert (host_weights_bytes(here), host_weights_bytes(there)) == (0, experts)
    assert weights_bytes(here) - weights_bytes(there) == experts
    assert fixed_dram_bytes(there) - fixed_dram_bytes(here) == experts
    two = 2 * 2 * 3 * 768 * 2048
    assert workspace_bytes(there) - workspace_bytes(here) == two
    host = Host(64 * GIB, 48 * GIB)
    with pytest.raises(InvalidConfig, match=r"GiB for Ray and staging, 54.00 GiB of them for experts"):
        check_memory(config, there, host)


def test_a_cpu_holds_experts_in_one_place() -> None:
    qwen = MODEL_PRESETS["qwen3-30b-a3b"]
    plans = (
        deployment_of(cluster(gpu_workers={"device": "cpu"}, model={"path": "m", "experts": place}), qwen)
        for place in ("device", "host")
    )
    assert len({(weights_bytes(plan), fixed_dram_bytes(plan)) for plan in plans}) == 1
