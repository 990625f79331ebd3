"""What a message shows of what somebody sent."""

import pytest

from moorage.runtime.text.quoting import quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("full", "'full'"),
        ("hé\n\x00", r"'h\xe9\n\x00'"),
        ("\ud800", r"'\ud800'"),
        ("it's", '"it\'s"'),
        ("x" * 100, "'" + "x" * 64 + "'... (100 characters)"),
    ],
)
def test_quoted(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert quoted(text).isascii()
