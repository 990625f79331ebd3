from __future__ import annotations

import pytest

from moorage.workers.gpu.engine.known_tokens import LONGEST_MATCH, SHORTEST_MATCH, KnownTokens


def known(*token_ids: int) -> KnownTokens:
    found = KnownTokens()
    found.put(0, token_ids)
    return found


def test_proposes_what_followed_the_last_tokens_before() -> None:
    assert known(1, 2, 3, 4, 5, 6, 7, 9, 2, 3, 4).following(3) == (5, 6, 7)
    assert known(1, 2, 3, 4, 5, 6, 7, 9, 2, 3, 4).following(0) == ()


def test_proposes_nothing_that_has_not_occurred() -> None:
    assert KnownTokens().following(4) == ()
    assert known(*range(50)).following(4) == ()
    few = range(7, 7 + SHORTEST_MATCH - 1)
    assert known(*few, 1, *few).following(4) == ()


def test_the_longer_match_decides_then_the_later_one() -> None:
    longer = tuple(range(10, 10 + LONGEST_MATCH))
    shorter = longer[-SHORTEST_MATCH:]
    assert known(*longer, 1, 5, *shorter, 2, 6, *longer).following(1) == (1,)
    assert known(*longer, 1, 5, *longer, 2, 6, *longer).following(1) == (2,)


def test_a_text_that_repeats_itself_goes_on() -> None:
    assert known(8, 1, 2, 1, 2, 1, 2).following(5) == (1, 2, 1, 2, 1)
    assert known(8, 3, 3, 3, 3, 3, 3).following(4) == (3, 3, 3, 3)


def test_later_tokens_are_forgotten_when_a_position_is_written_again() -> None:
    found = known(1, 2, 3, 4, 5, 6, 2, 3, 4)
    found.put(3, (9, 1, 2, 3))
    assert found.following(2) == (9, 1)


def test_tokens_behind_a_gap_are_known_alone() -> None:
    found = known(1, 2, 3, 4, 5)
    found.put(100, (2, 3, 4))
    assert found.following(2) == ()
    found.put(103, (6, 7, 2, 3, 4))
    assert found.following(2) == (6, 7)


@pytest.mark.parametrize("chunk", [1, 7, 5000])
def test_long_texts_in_chunks(chunk: int) -> None:
    text = [*range(9000), 4000, 4001, 4002]
    found = KnownTokens()
    for start in range(0, len(text), chunk):
        found.put(start, text[start : start + chunk])
    assert found.following(2) == (4003, 4004)
