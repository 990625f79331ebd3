"""Which layers of a step select: the compiled plan against the rule, session by session and layer by layer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from moorage.kernels.decode_layer.plan import NEVER, Policy, SelectionState, Standing, end_step, plan_layers

LAYERS, SESSIONS, BUDGET = 7, 3, 4


def fresh(budget: int) -> SelectionState:
    shape = LAYERS, SESSIONS
    return SelectionState(
        np.full((*shape, 1, budget), 9, np.int32),
        np.full(shape, 77, np.int32),
        np.full(shape, NEVER, np.int64),
        np.full(shape, 5, np.uint8),
        np.full(shape, 5, np.uint8),
    )


def standing(step: int, rng: np.random.Generator, dense_until: int = 0) -> Standing:
    """Sessions with more, as many, and fewer candidates than the budget."""
    may_select = np.array([100, 100, 20]) + step >= dense_until
    sinks = rng.integers(0, 3, SESSIONS).astype(np.int32)
    near = sinks + np.array([BUDGET + 5 + step, BUDGET, BUDGET - 1], np.int32)
    return Standing(np.full(SESSIONS, step, np.int64), may_select.astype(np.uint8), sinks, near)


@pytest.mark.parametrize(("layer_step", "token_step"), list(product((1, 2, 3), (1, 3))))
@pytest.mark.parametrize(("dense_layers", "dense_until"), [(0, 0), (2, 0), (7, 0), (1, 103)])
def test_a_layer_chooses_when_its_last_choice_is_old(
    rng: np.random.Generator, dense_layers: int, dense_until: int, layer_step: int, token_step: int
) -> None:
    policy = Policy(BUDGET, False, dense_layers, layer_step, token_step)
    selections, made_at = fresh(BUDGET), np.full((LAYERS, SESSIONS), NEVER)
    for step in range(8):
        where, counts = standing(step, rng, dense_until), np.zeros(SESSIONS, np.int64)
        found = plan_layers(selections, where, policy)
        attended = np.zeros(SESSIONS, np.int64)
        for layer, i in np.ndindex(LAYERS, SESSIONS):
            candidates = where.near_block[i] - where.num_sinks[i]
            num_tokens = (100, 100, 20)[i] + step
            partial = layer >= dense_layers and candidates > BUDGET and num_tokens >= dense_until
            leads = partial and (layer - dense_layers) % layer_step == 0
            selects = leads and (made_at[layer, i] == NEVER or step - made_at[layer, i] >= token_step)
            assert (selections.is_partial[layer, i], selections.selects[layer, i]) == (partial, selects)
            if selects:
                made_at[layer, i] = step
                selections.window_first[layer, i] = where.near_block[i]
            if not partial:
                assert (selections.ids[layer, i] == -1).all()
                assert selections.window_first[layer, i] == where.num_sinks[i]
                attended[i] += candidates
                continue
            leader = layer - (layer - dense_layers) % layer_step
            attended[i] += BUDGET + where.near_block[i] - selections.window_first[leader, i]
        assert found == bool(selections.selects.any())
        end_step(selections, where, policy, counts)
        np.testing.assert_array_equal(counts, attended)
        np.testing.assert_array_equal(selections.made_at, made_at)


def test_without_a_budget_the_window_follows_the_sinks(rng: np.random.Generator) -> None:
    selections, where, counts = fresh(0), standing(3, rng), np.ones(SESSIONS, np.int64)
    policy = Policy(0, True, 0, 1, 1)
    assert not plan_layers(selections, where, policy)
    np.testing.assert_array_equal(selections.window_first, np.tile(where.near_block, (LAYERS, 1)))
    end_step(selections, where, policy, counts)
    assert not counts.any()
