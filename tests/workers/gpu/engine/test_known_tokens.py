from __future__ import annotations

import pytest

from moorage.workers.gpu.engine.known_tokens import MATCH, KnownTokens


def known(*token_ids: int) -> KnownTokens:
    found = KnownTokens()
    found.put(0, token_ids)
    return found


LAST = tuple(range(20, 20 + MATCH))


def test_proposes_what_followed_the_last_tokens_before() -> None:
    assert known(1, *LAST, 5, 6, 7, 9, *LAST).following(3) == (5, 6, 7)
    assert known(1, *LAST, 5, 6, 7, 9, *LAST).following(0) == ()


def test_proposes_nothing_that_has_not_occurred() -> None:
    assert KnownTokens().following(4) == ()
    assert known(*range(50)).following(4) == ()
    assert known(*LAST[1:], 1, *LAST[1:]).following(4) == ()


def test_the_latest_of_several_places_decides() -> None:
    assert known(*LAST, 1, 5, *LAST, 2, 6, *LAST).following(1) == (2,)


def test_a_text_that_repeats_itself_goes_on() -> None:
    assert known(8, *[1, 2] * MATCH).following(5) == (1, 2, 1, 2, 1)
    assert known(8, *[3] * (MATCH + 1)).following(4) == (3, 3, 3, 3)


def test_later_tokens_are_forgotten_when_a_position_is_written_again() -> None:
    found = known(*LAST, 4, 5, 6, *LAST)
    found.put(MATCH, (9, 1, *LAST))
    assert found.following(2) == (9, 1)


def test_tokens_behind_a_gap_are_known_alone() -> None:
    found = known(*LAST, 4, 5)
    found.put(100, LAST)
    assert found.following(2) == ()
    found.put(100 + MATCH, (6, 7, *LAST))
    assert found.following(2) == (6, 7)


@pytest.mark.parametrize("chunk", [1, 7, 5000])
def test_long_texts_in_chunks(chunk: int) -> None:
    text = [*range(9000), *range(4000, 4000 + MATCH)]
    found = KnownTokens()
    for start in range(0, len(text), chunk):
        found.put(start, text[start : start + chunk])
    assert found.following(2) == (4000 + MATCH, 4001 + MATCH)
