"""The blocks that each KV head of a long session scans, against the definition in fp64."""

import numpy as np
import pytest

from moorage.kernels.decode_keys.first_level import (
    KEPT_BLOCKS,
    RADIUS_SHARE,
    WORTH,
    first_level,
    keep_blocks,
    new_kept,
    score_unit,
)
from moorage.kernels.decode_keys.records import Layer
from moorage.kernels.decode_keys.runs import make_runs
from moorage.kernels.decode_layer import decode_layer
from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.half import from_storage, to_storage
from moorage.kernels.key_codes import code_bytes
from moorage.kernels.key_codes.reference import centres_in
from moorage.workers.spec import FIRST_LEVEL_BLOCKS
from tests.kernels.decode_layer_case import CLAMPED, DCA, ROPE, Case, Setting
from tests.kernels.test_decode_keys import (
    HALF,
    candidates,
    check,
    coded,
    logits_and_values,
    place_of,
    run,
    turned,
)

LONG = (2400, 900, 1500)
"""With blocks of 16 and k = 4 the first and the third session have more blocks than they scan, the second has not."""


def scored(case, keys):
    """(FirstLevel, Kept, log-sum-exps of sinks and window) of a case."""
    attended, s = case.new_attended(), case.setting
    selections = case.selections._replace(window_first=case.selections.window_first.copy())
    assert decode_layer(case.memory, case.batch, case.query, case.key, case.value, selections, attended) == 0
    memory, shape = case.memory, case.memory.shape
    kept = new_kept(memory.table, case.batch, keys, attended)
    none = np.zeros(0, np.int64)
    layer = Layer(
        memory.table, memory.empty, shape, case.batch, case.query, keys, attended, memory.empty, none,
        code_bytes(1, s.block, s.dim), memory.packed, kept,
    )  # fmt: skip
    runs = make_runs(layer)
    first = first_level(layer, runs, attended.lse.copy().reshape(-1, s.group))
    for unit in range(first.units[-1]):
        score_unit(unit, layer, runs, first)
    for at in range(len(first.less)):
        keep_blocks(at, layer, first)
    return first, kept, attended.lse


def expected_scores(case, i, kv_head, less):
    """[blocks] of one session and KV head."""
    s, batch, scores, transform = case.setting, case.batch, [], hadamard_matrix(case.setting.dim)
    heads = range(kv_head * s.group, (kv_head + 1) * s.group)
    for block in range(batch.num_sinks[i], batch.near_block[i]):
        m, page = place_of(case, i, block)
        centres, radii = centres_in(case.centres[m][page].reshape(s.heads, -1)[kv_head], s.dim)
        part = next(
            part
            for part in range(batch.num_parts[i])
            if batch.part_low[i, part] <= block * s.block < batch.part_high[i, part]
        )
        turn = batch.query_turn[i, part]
        if batch.period:
            turn = turn * batch.bases[1] ** (block * s.block // batch.period * (batch.period // s.block))
        logits = []
        for head in heads:
            query = batch.scale[i] * turned(case.query[i, head].astype(np.float64), turn)
            reach = RADIUS_SHARE * np.linalg.norm(query) * radii
            logits.append((centres @ (transform @ query) + reach).max() - less[i, head])
        scores.append(max(logits))
    return np.array(scores)


@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
def test_scores_follow_their_definition_and_the_best_blocks_are_kept(scheme):
    rng = np.random.default_rng(11)
    shapes = (64, 64, 2, 1), (96, 32, 3, 2), (128, 128, 5, 3)
    for dim, rotated, group, num_memories in shapes:
        setting = Setting(LONG, num_memories, group=group, dim=dim, rotated=rotated, scheme=scheme, stripe=4)
        case, keys = coded(Case(rng, HALF, setting), has_centres=True)
        first, kept, less = scored(case, keys._replace(completes=False))
        assert kept.has.tolist() == [True, False, True]
        for i in (0, 2):
            sinks, total = case.batch.num_sinks[i], case.batch.near_block[i] - case.batch.num_sinks[i]
            for kv_head in range(setting.heads):
                at = i * setting.heads + kv_head
                found = first.scores[at, :total]
                np.testing.assert_allclose(found, expected_scores(case, i, kv_head, less), atol=0.06)
                best = np.sort(np.argsort(-found, kind="stable")[: KEPT_BLOCKS * setting.k])
                assert kept.counts[at] == len(best)
                np.testing.assert_array_equal(kept.blocks[at], sinks + best)


@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
@pytest.mark.parametrize("dim", [64, 128])
def test_keys_of_kept_blocks_are_attended_beside_sinks_and_window(scheme, dim):
    rng = np.random.default_rng(12)
    setting = Setting((1700, 300), 2, heads=1, group=2, dim=dim, rotated=dim, scheme=scheme, stripe=4)
    case, keys = coded(Case(rng, HALF, setting), has_centres=True)
    keys = keys._replace(completes=False)
    check(case, keys, 2e-3)
    _, kept, _ = scored(case, keys)
    found, _ = run(case, keys)
    assert kept.has.tolist() == [True, False]
    assert np.isin(found.positions[0] // setting.block, kept.blocks[0]).all()


@pytest.mark.parametrize("scheme", [ROPE, CLAMPED, DCA])
def test_keys_that_stand_out_are_found_among_many_blocks(scheme):
    """Each KV head finds its own, in whichever block they lie."""
    rng = np.random.default_rng(13)
    setting = Setting((4000,), 2, group=2, dim=64, rotated=64, k=8, window=128, stripe=4, scheme=scheme)
    case, planted = Case(rng, HALF, setting), []
    low, high = candidates(case, 0)
    assert (high - low) // setting.block > WORTH * KEPT_BLOCKS * setting.k
    for kv_head in range(setting.heads):
        logits = logits_and_values(case, 0, setting.group * kv_head)[0][low:high]
        planted.append(low + np.sort(np.argsort(-logits)[:4]))
        for token in planted[-1]:
            m, page = place_of(case, 0, token // setting.block)
            key = case.kv[m][page, 0, kv_head, token % setting.block]
            key[:] = to_storage(3 * from_storage(key), True)
    case, keys = coded(case, has_centres=True)
    found, _ = run(case, keys._replace(completes=False))
    for positions, wanted in zip(found.positions[0], planted, strict=True):
        assert np.isin(wanted, positions).all()


def test_stores_keep_centres_where_a_first_level_begins():
    assert WORTH * KEPT_BLOCKS == FIRST_LEVEL_BLOCKS


def test_sessions_that_scan_all_blocks_need_no_centres():
    """Short ones, and those where means stand for the keys that are not selected."""
    case, keys = coded(
        Case(np.random.default_rng(14), HALF, Setting(LONG, 2, dim=64, rotated=64)), has_centres=True
    )
    for completes, sessions in ((False, [1]), (True, [0, 1, 2])):
        case.memory.table[:, 4] = [stored.ctypes.data for stored in case.centres]
        found, attended = run(case, keys._replace(completes=completes))
        case.memory.table[:, 4] = 0
        wanted, expected = run(case, keys._replace(completes=completes))
        np.testing.assert_array_equal(found.positions[sessions], wanted.positions[sessions])
        np.testing.assert_array_equal(attended.out[sessions], expected.out[sessions])
