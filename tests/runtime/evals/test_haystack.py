"""Haystacks have exact lengths, follow the document, and go on beyond its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from moorage.runtime.evals.haystack import GARBAGE, garbage_haystack, text_haystack, word_start
from moorage.workers.errors import InvalidRequest


class Bytes:
    """One token for each byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(
        "\n\n".join(f"Paragraph {number} of ten." for number in range(10)) + "\n\n\n", encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("num_tokens", [0, 1, 23, 24, 1000, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_length_is_exact_and_repeats_with_its_seed(document: Path, num_tokens: int, seed: int) -> None:
    haystack = text_haystack(document)
    ids = haystack.tokens(Bytes(), num_tokens, seed)
    assert len(ids) == num_tokens
    assert ids == haystack.tokens(Bytes(), num_tokens, seed)


def test_another_seed_begins_elsewhere(document: Path) -> None:
    haystack = text_haystack(document)
    assert len({tuple(haystack.tokens(Bytes(), 12, seed)) for seed in range(20)}) > 3


@pytest.mark.parametrize("seed", range(5))
def test_text_runs_in_order_to_the_end_then_in_whole_rounds(document: Path, seed: int) -> None:
    haystack = text_haystack(document)
    text = Bytes().decode(haystack.tokens(Bytes(), 24 * 40, seed))
    numbers = [int(part.split()[1]) for part in text.split("\n\n")[:30]]
    first = numbers[0]
    assert numbers[: 10 - first] == list(range(first, 10))
    assert sorted(numbers[10 - first : 20 - first]) == list(range(10))
    assert numbers[10 - first : 20 - first] != list(range(10))


def test_garbage_repeats_one_sentence_group() -> None:
    text = Bytes().decode(garbage_haystack().tokens(Bytes(), 500, seed=1))
    assert (text + GARBAGE)[: 5 * len(GARBAGE) + 5] == (GARBAGE + " ") * 5


def test_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert text_haystack(tmp_path).paragraphs == ("first", "second")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b" \n\n ", "no text in it"), (b"\xff\xfe\xff", "not UTF-8")],
)
def test_refuses_what_holds_no_text(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=words):
        text_haystack(path)


@pytest.mark.parametrize(("cut", "place"), [(0, 0), (1, 3), (3, 3), (4, 7), (8, 8), (11, 11)])
def test_cut_moves_to_the_start_of_a_word(cut: int, place: int) -> None:
    ids = Bytes().encode("one two three"[:8])
    assert word_start(Bytes(), ids, cut) == min(place, len(ids))


def test_text_without_spaces_is_cut_where_asked() -> None:
    assert word_start(Bytes(), Bytes().encode("x" * 300), 7) == 7
