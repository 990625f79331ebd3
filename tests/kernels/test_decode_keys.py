"""Single keys that a layer of decode selects and attends, against the definition in fp64."""

import numpy as np
import pytest

from moorage.kernels.decode_keys import KeyLists, KeySelections, decode_keys
from moorage.kernels.decode_layer import LayerMemory, LayerShape, decode_layer
from moorage.kernels.half import from_storage, to_storage
from moorage.kernels.key_codes import centre_bytes, encode_keys
from moorage.kernels.key_select.reference import log_sum_exp
from tests.kernels.decode_layer_case import CLAMPED, DCA, ROPE, Case, Setting

HALF, FULL = np.uint16, np.float32


def coded(case, has_centres=False):
    """(case, KeySelections): codes of all keys of a case, which attends sinks and window alone; and their centres."""
    s, batch = case.setting, case.batch
    rotated = s.scheme != CLAMPED
    codes = [
        np.zeros((len(kv), s.heads * (s.block * (s.dim // 8 + 2) + 2 * s.dim)), np.uint8) for kv in case.kv
    ]
    centres = [np.zeros((len(kv), centre_bytes(s.heads, s.dim) * has_centres), np.uint8) for kv in case.kv]
    half = s.rotated // 2
    inv_freq = 1000.0 ** -(np.arange(half) / max(1, half))
    for i, one in enumerate(case.pages):
        for m, pages in enumerate(one):
            shard = (m - batch.first_memory[i]) % s.num_memories
            blocks = [
                b for b in range(s.positions[i] // s.block + 1) if b // s.stripe % s.num_memories == shard
            ]
            tokens = (
                np.array(blocks)[:, None] * s.block + np.arange(s.block) if blocks else np.zeros((0, s.block))
            )
            angles = np.multiply.outer(tokens, inv_freq)
            rotation = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
            encode_keys(
                case.kv[m],
                case.anchors[m],
                codes[m],
                np.array(pages, np.int32),
                rotation if rotated else None,
                centres[m],
            )
    shape = LayerShape(s.heads, s.block, s.dim, s.stripe, False, key_codes=True)
    case.codes, case.centres = codes, centres
    case.memory = LayerMemory.of(shape, case.kv, case.anchors, codes, None, centres)
    case.selections = case.selections._replace(
        ids=np.zeros((len(s.positions), 1, 0), np.int32),
        scores=np.zeros((len(s.positions), 1, 0), np.float32),
    )
    bases = np.stack([batch.bases.real, batch.bases.imag], 1).astype(np.float32)
    offsets = np.stack([batch.offset_cos, batch.offset_sin], 1)
    n = len(s.positions)
    keys = KeySelections(
        np.ones(n, np.uint8),
        np.full((n, s.heads, s.k), -7, np.int32),
        np.zeros((n, s.heads * s.group), np.float32),
        rotated,
        np.ascontiguousarray(bases),
        np.ascontiguousarray(offsets),
    )
    return case, keys


def run(case, keys):
    selections = case.selections._replace(window_first=case.selections.window_first.copy())
    attended = case.new_attended()
    assert decode_layer(case.memory, case.batch, case.query, case.key, case.value, selections, attended) == 0
    keys = keys._replace(positions=keys.positions.copy(), lse=keys.lse.copy())
    decode_keys(case.memory, case.batch, case.query, keys, attended, KeyLists())
    return keys, attended


def place_of(case, i, block):
    """(memory, page) of a block."""
    s, batch = case.setting, case.batch
    stripe, within = divmod(block, s.stripe)
    turn, shard = divmod(stripe, s.num_memories)
    m = (batch.first_memory[i] + shard) % s.num_memories
    return m, batch.pages[batch.page_start[i, m] + turn * s.stripe + within]


def candidates(case, i):
    """(first, end) of the tokens that a session may select."""
    size = case.setting.block
    return int(case.batch.num_sinks[i]) * size, int(case.batch.near_block[i]) * size


def logits_and_values(case, i, head):
    """(exact logits of all tokens, values) of one query head, in fp64."""
    s, batch = case.setting, case.batch
    total, kv_head = s.positions[i] + 1, head // s.group
    logits, values = np.full(total, -np.inf), np.zeros((total, s.dim))
    for token in range(total):
        block, place = divmod(token, s.block)
        m, page = place_of(case, i, block)
        key, values[token] = from_storage(case.kv[m][page][:, kv_head, place]).astype(np.float64)
        for part in range(batch.num_parts[i]):
            if batch.part_low[i, part] <= token < batch.part_high[i, part]:
                query = turned(case.query[i, head].astype(np.float64), batch.query_turn[i, part])
                if batch.part_rotates[i, part]:
                    first = block * s.block % batch.period if batch.period else block * s.block
                    offset = batch.offset_cos[place] + 1j * batch.offset_sin[place].astype(np.float64)
                    key = turned(key, batch.bases[first // s.block] * offset)
                logit = float(batch.scale[i]) * (query @ key)
                cap = float(batch.softcap[i])
                logits[token] = cap * np.tanh(logit / cap) if cap else logit
    return logits, values


def turned(x, turn):
    half = len(turn)
    both = (x[:half] + 1j * x[half : 2 * half]) * turn
    return np.concatenate((both.real, both.imag, x[2 * half :]))


def check(case, keys, tolerance):
    """The positions are attended beside sinks and window, and each block's other keys by their means if so asked."""
    keys, attended = run(case, keys)
    s = case.setting
    for i, position in enumerate(s.positions):
        low, high = candidates(case, i)
        always = np.array([*range(low), *range(high, position + 1)])
        for kv_head in range(s.heads):
            own = keys.positions[i, kv_head][keys.positions[i, kv_head] >= 0]
            assert len(own) == min(s.k, max(0, high - low))
            assert (np.diff(own) > 0).all()
            assert (low <= own).all()
            assert (own < high).all()
            attends = np.concatenate((always, own)).astype(np.int64)
            for head in range(kv_head * s.group, (kv_head + 1) * s.group):
                logits, values = logits_and_values(case, i, head)
                lse = log_sum_exp(logits[attends])
                if high > low:
                    np.testing.assert_allclose(keys.lse[i, head], lse, atol=tolerance)
                mean_logits, mean_values = block_means(case, i, head, values)
                left = s.block - np.bincount(own // s.block, minlength=high // s.block)[low // s.block :]
                left = left if keys.completes else 0 * left
                mean_logits, mean_values = mean_logits[left > 0], mean_values[left > 0]
                all_logits = np.concatenate((logits[attends], mean_logits + np.log(left[left > 0])))
                all_values = np.concatenate((values[attends], mean_values))
                lse = log_sum_exp(all_logits)
                np.testing.assert_allclose(attended.lse[i, head], lse, atol=tolerance)
                want = np.exp(all_logits - lse) @ all_values
                np.testing.assert_allclose(attended.out[i, head], want, atol=tolerance, rtol=0)


def block_means(case, i, head, values):
    """(logits of the mean keys as stored, mean values) of a session's candidate blocks."""
    s, batch = case.setting, case.batch
    kv_head, logits, means = head // s.group, [], []
    for block in range(batch.num_sinks[i], batch.near_block[i]):
        m, page = place_of(case, i, block)
        mean = from_storage(case.anchors[m][page][kv_head, 0]).astype(np.float64)
        for part in range(batch.num_parts[i]):
            if batch.part_low[i, part] <= block * s.block < batch.part_high[i, part]:
                turn = batch.query_turn[i, part]
                if batch.period:
                    turn = turn * batch.bases[1] ** (
                        block * s.block // batch.period * (batch.period // s.block)
                    )
                logits.append(batch.scale[i] * (turned(case.query[i, head].astype(np.float64), turn) @ mean))
        means.append(values[block * s.block : (block + 1) * s.block].mean(axis=0))
    return np.array(logits), np.array(means).reshape(-1, s.dim)


@pytest.mark.parametrize(("storage", "num_memories"), [(HALF, 1), (HALF, 3), (FULL, 3)])
@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
def test_selected_keys_are_attended_beside_sinks_and_window(storage, scheme, num_memories):
    rng = np.random.default_rng(5)
    for dim, rotated, group, block in ((64, 64, 3, 16), (128, 128, 4, 64), (80, 32, 1, 32), (64, 16, 6, 16)):
        setting = Setting(
            (470, 133, 39, 5), num_memories, group=group, dim=dim, rotated=rotated, block=block, scheme=scheme, k=24,
            window=3 * block,
        )  # fmt: skip
        check(*coded(Case(rng, storage, setting)), 2e-3 if storage == HALF else 5e-4)


@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
def test_nothing_stands_for_other_keys_where_it_is_not_asked_for(scheme):
    case, keys = coded(Case(np.random.default_rng(8), HALF, Setting((470, 133, 5), 2, scheme=scheme, k=24)))
    check(case, keys._replace(completes=False), 2e-3)


@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
def test_keys_that_stand_out_are_found(scheme):
    """Their codes are enough, in whichever memory and slice they lie."""
    rng = np.random.default_rng(6)
    setting = Setting(
        (6000, 3000), 2, group=3, dim=64, rotated=64, block=64, k=64, window=128, stripe=4, scheme=scheme
    )
    case, planted = Case(rng, HALF, setting), []
    for i in range(2):
        low, high = candidates(case, i)
        for kv_head in range(setting.heads):
            logits = logits_and_values(case, i, 3 * kv_head)[0][low:high]
            planted.append(low + np.sort(np.argsort(-logits)[:8]))
            for token in planted[-1]:
                m, page = place_of(case, i, token // setting.block)
                key = case.kv[m][page, 0, kv_head, token % setting.block]
                key[:] = to_storage(3 * from_storage(key), True)
    found, _ = run(*coded(case))
    for positions, wanted in zip(found.positions.reshape(4, 64), planted, strict=True):
        assert not len(np.setdiff1d(wanted, positions))


def test_a_key_far_above_all_others_is_all_that_a_head_attends():
    """Weights relative to sinks and window would leave fp32 otherwise."""
    rng = np.random.default_rng(7)
    case = Case(rng, FULL, Setting((900,), heads=1, group=2, dim=64, rotated=64, block=64, k=16, window=64))
    m, page = place_of(case, 0, 5)
    direction = turned(case.query[0, 0].astype(np.float64), case.batch.query_turn[0, 0])
    back = np.conj(case.batch.bases[5])
    case.kv[m][page, 0, 0, 0] = 60 * turned(direction, back)
    logits = logits_and_values(case, 0, 0)[0]
    assert logits[5 * 64] - log_sum_exp(np.delete(logits, 5 * 64)) > 100
    value = case.kv[m][page, 1, 0, 0].copy()
    keys, attended = run(*coded(case))
    assert 5 * 64 in keys.positions[0, 0]
    np.testing.assert_allclose(attended.out[0, 0], value, atol=1e-4)
    assert np.isfinite(attended.out).all()
