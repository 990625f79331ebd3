import pytest

from moorage.runtime.config.units import format_bytes, format_tokens, parse_bytes, parse_seconds, parse_tokens


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("512mib", 2**29),
        ("0", 0),
        (7, 7),
        (-1, -1),
    ],
)
def test_bytes(text: str | int, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("4K", 4096), ("1M", 2**20), ("1110000", 1110000), ("0.5k", 512)]
)
def test_tokens(text: str, value: int) -> None:
    assert parse_tokens(text) == value


@pytest.mark.parametrize(
    "text", ["", "8 XB", "-1GiB", "nan", "1e3", "GiB", "9" * 5000, "٣GiB", True, 1.5, None]
)
def test_refuses_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="such as 8GiB"):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("30min", 1800), ("1.5h", 5400), ("7d", 604800), (5, 5), (0.25, 0.25)]
)
def test_seconds(text: str | float, value: float) -> None:
    assert parse_seconds(text) == value


def test_refuses_what_is_no_time() -> None:
    with pytest.raises(ValueError, match="such as 90, 30min, 12h or 7d"):
        parse_seconds("3 weeks")


def test_formats() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 * 2**29, 2**41)] == [
        "0 B", "1023 B", "1.00 KiB", "1.50 GiB", "2.00 TiB",
    ]  # fmt: skip
    assert [format_tokens(n) for n in (0, 1000, 4096, 2**20, 3 * 2**19)] == ["0", "1000", "4K", "1M", "1536K"]
