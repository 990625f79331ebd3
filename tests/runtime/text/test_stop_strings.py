"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from moorage.runtime.text.stop_strings import StopMatcher


def test_it_says_which_stop_string_was_seen() -> None:
    matcher = StopMatcher(("END", "own fox"))
    assert matcher.matched is None
    assert matcher.push("a brown") + matcher.push(" fox END") == "a br"
    assert matcher.matched == "own fox"
