from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.block_attention import attend_blocks, entry_lse, gpu, reference
from moorage.kernels.block_attention.resident import attend_resident
from moorage.kernels.half import from_storage, to_storage

SHAPES = [  # KV heads, group, block size, head size, rotated channels, entries
    (1, 1, 1, 16, 16, 0),
    (1, 1, 1, 16, 16, 1),
    (2, 2, 7, 32, 32, 3),
    (1, 3, 31, 64, 0, 4),
    (3, 4, 32, 96, 48, 5),
    (2, 5, 33, 128, 128, 6),
    (1, 6, 64, 256, 256, 2),
    (2, 7, 127, 64, 32, 3),
    (4, 8, 256, 32, 32, 3),
    (1, 16, 128, 128, 64, 4),
]
NUM_SLOTS = 5


def turns(rng, *shape):
    angle = rng.uniform(-7, 7, shape)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def make_case(rng, draw, shape, num_slots=NUM_SLOTS):
    """(query, stored blocks, keyword arguments) with rows outside [begin, end) full of NaN."""
    num_kv_heads, group, block_size, dim, rotary_dim, count = shape
    stored = draw(num_slots, 2, num_kv_heads, block_size, dim)
    query = (3 * rng.standard_normal((num_kv_heads * group, dim))).astype(np.float32)
    edges = np.sort(rng.integers(0, block_size + 1, (count, 2)), axis=1).astype(np.int32)
    slot = rng.permutation(num_slots)[:count].astype(np.int32) if count <= num_slots else None
    if slot is None:
        slot = rng.integers(0, num_slots, count).astype(np.int32)
    else:
        nan = to_storage(np.array([np.nan], np.float32), stored.dtype == np.uint16)
        for e in range(count):
            stored[slot[e], :, :, : edges[e, 0]] = nan
            stored[slot[e], :, :, edges[e, 1] :] = nan
    cos, sin = turns(rng, count, rotary_dim // 2)
    offset_cos, offset_sin = turns(rng, block_size, rotary_dim // 2)
    arguments = {
        "slot": slot,
        "begin": edges[:, 0].copy(),
        "end": edges[:, 1].copy(),
        "angle_cos": cos,
        "angle_sin": sin,
        "rotate_keys": rng.integers(0, 2, count).astype(np.uint8),
        "offset_cos": offset_cos,
        "offset_sin": offset_sin,
        "scale": dim**-0.5,
    }
    return query, stored, arguments


def as_tensor(stored):
    return torch.from_numpy(stored.view(np.float16) if stored.dtype == np.uint16 else stored)


def on_cpu(query, blocks, arguments):
    return attend_blocks(torch.from_numpy(query), blocks, **arguments)


def in_torch(query, blocks, arguments):
    entries = tuple(arguments[name] for name in ("slot", "begin", "end"))
    names = ("angle_cos", "angle_sin", "rotate_keys", "offset_cos", "offset_sin")
    rotations = tuple(arguments[name] for name in names)
    return gpu.attend_blocks(
        torch.from_numpy(query), blocks, entries, rotations, arguments["scale"], arguments.get("softcap", 0.0)
    )


def check(attend, query, stored, arguments):
    out, lse = attend(query, as_tensor(stored), arguments)
    expected_out, expected_lse = reference.attend_blocks(query, stored, **arguments)
    assert out.dtype == lse.dtype == torch.float32
    np.testing.assert_allclose(out, expected_out, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("attend", [on_cpu, in_torch])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, draw, shape, attend):
    check(attend, *make_case(rng, draw, shape))


@pytest.mark.parametrize("attend", [on_cpu, in_torch])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_logits_are_capped(rng, draw, shape, attend, softcap):
    query, stored, arguments = make_case(rng, draw, shape)
    check(attend, 20 * query, stored, {**arguments, "softcap": softcap})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_each_entry_alone(rng, draw, shape, softcap, monkeypatch):
    query, stored, arguments = make_case(rng, draw, shape)
    arguments["softcap"] = softcap
    monkeypatch.setattr(gpu, "PIECE_BYTES", 1)
    found = entry_lse(torch.from_numpy(query), as_tensor(stored), **arguments)
    assert found.shape == (shape[-1], len(query))
    per_entry = ("slot", "begin", "end", "angle_cos", "angle_sin", "rotate_keys")
    for e in range(len(found)):
        one = {name: value[e : e + 1] if name in per_entry else value for name, value in arguments.items()}
        _, expected = reference.attend_blocks(query, stored, **one)
        np.testing.assert_allclose(found[e], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 2, 32, 64, 64, 600), (2, 1, 128, 128, 0, 40)])
def test_large_inputs_take_the_parallel_path(rng, draw, shape):
    query, stored, arguments = make_case(rng, draw, shape, num_slots=8)
    arguments["rotate_keys"][:] = 1
    expected = in_torch(query, as_tensor(stored), arguments)
    for actual, wanted in zip(on_cpu(query, as_tensor(stored), arguments), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-5)


def test_torch_form_works_in_pieces(rng, draw, monkeypatch):
    query, stored, arguments = make_case(rng, draw, (2, 3, 16, 32, 32, 5))
    monkeypatch.setattr(gpu, "PIECE_BYTES", 2 * 8 * 2 * 16 * 32)
    check(in_torch, query, stored, arguments)


@pytest.mark.parametrize("attend", [on_cpu, in_torch])
def test_nothing_to_see(rng, draw, attend):
    query, stored, arguments = make_case(rng, draw, (2, 2, 8, 32, 32, 4))
    arguments["begin"][:] = arguments["end"]
    out, lse = attend(query, as_tensor(stored), arguments)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("attend", [on_cpu, in_torch])
def test_huge_logits_stay_finite(rng, draw, attend):
    query, stored, arguments = make_case(rng, draw, (1, 2, 16, 32, 32, 5))
    check(attend, 1000 * query, stored, arguments)


@pytest.mark.parametrize("attend", [on_cpu, in_torch])
def test_one_kv_head_of_a_pool_is_a_view(rng, draw, attend):
    query, stored, arguments = make_case(rng, draw, (3, 2, 16, 32, 32, 4))
    whole, _ = attend(query, as_tensor(stored), arguments)
    for head in range(3):
        out, _ = attend(query[2 * head : 2 * head + 2], as_tensor(stored)[:, :, head : head + 1], arguments)
        torch.testing.assert_close(out, whole[2 * head : 2 * head + 2], rtol=1e-5, atol=1e-6)


def test_rotated_keys_are_plain_rotary_attention(rng, draw):
    """Query at position p, blocks at their own: the same as rotating every query and key by its position."""
    block_size, dim, position = 8, 32, 37
    inv_freq = 100.0 ** -(np.arange(dim // 2) / (dim // 2))
    slot = np.array([2, 0, 4], np.int32)
    first = np.array([0, 16, 24])
    query, stored, arguments = make_case(rng, draw, (1, 2, block_size, dim, dim, 3))
    stored[...] = draw(*stored.shape)
    angle, offset = np.outer(position - first, inv_freq), np.outer(np.arange(block_size), inv_freq)
    arguments |= {
        "slot": slot,
        "begin": np.zeros(3, np.int32),
        "end": np.array([8, 8, 5], np.int32),
        "angle_cos": np.cos(angle).astype(np.float32),
        "angle_sin": np.sin(angle).astype(np.float32),
        "rotate_keys": np.ones(3, np.uint8),
        "offset_cos": np.cos(offset).astype(np.float32),
        "offset_sin": np.sin(offset).astype(np.float32),
    }
    out, _ = on_cpu(query, as_tensor(stored), arguments)
    blocks = from_storage(stored[slot]).astype(np.float64)
    keys, values = (np.concatenate(blocks[:, part, 0])[:21] for part in (0, 1))
    positions = np.concatenate([np.arange(start, start + 8) for start in first])[:21]

    def complex_form(x):
        return x[..., : dim // 2] + 1j * x[..., dim // 2 :]

    turned_query = complex_form(query.astype(np.float64)) * np.exp(1j * position * inv_freq)
    turned_keys = complex_form(keys) * np.exp(1j * np.outer(positions, inv_freq))
    weights = np.exp(arguments["scale"] * (turned_query @ turned_keys.conj().T).real)
    np.testing.assert_allclose(
        out, weights @ values / weights.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("slot", NUM_SLOTS), ("slot", -1), ("begin", -1), ("end", 9)],
)
def test_refuses_rows_outside_the_blocks(rng, draw, name, value):
    query, stored, arguments = make_case(rng, draw, (1, 1, 8, 32, 32, 3))
    arguments[name][1] = value
    with pytest.raises(ValueError, match=r"slot|rows"):
        on_cpu(query, as_tensor(stored), arguments)


@pytest.mark.parametrize(
    "name", ["begin", "rotate_keys", "angle_cos", "angle_sin", "offset_cos", "offset_sin"]
)
def test_refuses_arrays_that_do_not_fit(rng, draw, name):
    query, stored, arguments = make_case(rng, draw, (1, 1, 8, 32, 32, 3))
    arguments[name] = arguments[name][:-1].copy()
    with pytest.raises(ValueError, match=name):
        on_cpu(query, as_tensor(stored), arguments)


def test_refuses_a_query_that_does_not_fit(rng, draw):
    query, stored, arguments = make_case(rng, draw, (2, 1, 8, 32, 32, 3))
    with pytest.raises(ValueError, match="query"):
        on_cpu(query[:, :16].copy(), as_tensor(stored), arguments)
    with pytest.raises(ValueError, match="query heads"):
        on_cpu(query[:1].copy(), as_tensor(stored), arguments)
    with pytest.raises(ValueError, match="strides"):
        on_cpu(query, as_tensor(stored).transpose(2, 3).contiguous().transpose(2, 3), arguments)


RESIDENT_SHAPES = [shape for shape in SHAPES if shape[-1]]


@pytest.mark.parametrize("num_memories", [1, 2, 3])
@pytest.mark.parametrize("shape", RESIDENT_SHAPES)
def test_blocks_are_attended_where_they_lie(rng, draw, shape, num_memories):
    """The same as from slots, with blocks dealt to memories of two layers in stripes of two."""
    num_kv_heads, _, block_size, dim, _, count = shape
    query, stored, arguments = make_case(rng, draw, shape, num_slots=11)
    local = [(block // 2 // num_memories) * 2 + block % 2 for block in range(11)]
    tables = tuple(rng.permutation(12).astype(np.int32) for _ in range(num_memories))
    memories = [draw(2, 12 + m, 2, num_kv_heads, block_size, dim) for m in range(num_memories)]
    for block in range(11):
        m = block // 2 % num_memories
        memories[m][1, tables[m][local[block]]] = stored[block]
    sizes = np.array([memory[0].size for memory in memories], np.int64)
    flat = tuple(memory.reshape(-1) for memory in memories)
    names = ("angle_cos", "angle_sin", "rotate_keys", "offset_cos", "offset_sin")
    rotations = tuple(arguments[name] for name in names)
    rows = arguments["begin"], arguments["end"]

    def attend(heads, kv_head=None, blocks=arguments["slot"], rows=rows):
        return attend_resident(
            heads, flat, tables, sizes, 1, 2, (num_kv_heads, block_size, dim), blocks, rows, rotations,
            arguments["scale"], kv_head,
        )  # fmt: skip

    expected_out, expected_lse = reference.attend_blocks(query, stored, **arguments)
    out, lse = attend(query)
    np.testing.assert_allclose(out, expected_out, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=2e-5)
    group = len(query) // num_kv_heads
    for head in range(num_kv_heads):
        own = slice(head * group, (head + 1) * group)
        np.testing.assert_array_equal(attend(query[own].copy(), head)[0], out[own])
    for blocks in (np.full(count, -1, np.int32), np.full(count, 24 * num_memories, np.int32)):
        with pytest.raises(ValueError, match="entry 0"):
            attend(query, blocks=blocks)
    with pytest.raises(ValueError, match="entry 0"):
        attend(query, rows=(rows[0], rows[1] + np.int32(block_size + 1)))
