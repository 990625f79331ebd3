"""The text of generated tokens: whole characters, and the sentence itself wherever prompt and output meet."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from moorage.runtime.text.decoder import IncrementalDecoder, text_after
from moorage.runtime.text.tokenizer import TextTokenizer
from tests import tokenizers
from tests.tokenizers import KINDS, SENTENCE

PILOT = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-pilot"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXTS = ("Hello, world! 12345", "  two  spaces\n\n\tand tabs ", "naïve café 日本語 🙂👩‍👩‍👧 \u200b")


@pytest.fixture(scope="module")
def pilot() -> TextTokenizer:
    return TextTokenizer.load(PILOT)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    return TextTokenizer.load(tokenizers.save(tmp_path, request.param))


def output(tokenizer: TextTokenizer, prompt: list[int], generated: list[int]) -> str:
    return text_after(tokenizer, prompt, generated)


@pytest.mark.parametrize("text", [SENTENCE, "日本語🙂日本語", "a", " a", "  a  b", "\n\nline", "🙂"])
def test_prompt_and_output_are_the_sentence_wherever_it_is_cut(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    whole, complete = tokenizer.decode(ids), ""
    for cut in range(len(ids) + 1):
        prompt = tokenizer.decode(ids[:cut]).rstrip(REPLACEMENT)
        complete = max(complete, prompt, key=len)
        # Where the prompt ends within a character, the output has it as a whole.
        assert complete + output(tokenizer, ids[:cut], ids[cut:]) == whole


def test_special_tokens_at_the_seam_change_no_space(tokenizer: TextTokenizer) -> None:
    special = sorted(tokenizer.special_ids)[1:4]
    words = tokenizer.encode("The first word keeps its space", add_special_tokens=False)
    for cut in range(len(words)):
        prompt, generated = [*words[:cut], *special], [special[0], *words[cut:], special[1]]
        assert tokenizer.decode(prompt) + output(tokenizer, prompt, generated) == tokenizer.decode(words)


def test_a_prompt_of_special_tokens_alone_has_no_text_to_continue(tokenizer: TextTokenizer) -> None:
    words = tokenizer.encode("The first", add_special_tokens=False)
    assert output(tokenizer, sorted(tokenizer.special_ids) * 100, words) == tokenizer.decode(words)


def test_a_spelled_replacement_character_is_whole(pilot: TextTokenizer) -> None:
    prompt, generated = pilot.encode(f"a{REPLACEMENT}"), pilot.encode("b", add_special_tokens=False)
    assert output(pilot, prompt, generated) == "b"


def test_an_unfinished_prompt_alone_gives_no_text(pilot: TextTokenizer) -> None:
    prompt = pilot.encode("日")[:-1]
    assert prompt
    assert output(pilot, prompt, []) == ""


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_whole_and_add_up(pilot: TextTokenizer, seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice(TEXTS[2:5]) for _ in range(4))
    ids = pilot.encode(text)
    decoder = IncrementalDecoder(pilot)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == text


@pytest.mark.parametrize("seed", range(5))
def test_any_tokens_add_up_to_their_text(pilot: TextTokenizer, seed: int) -> None:
    draw = random.Random(seed)
    ids = [draw.randrange(pilot.vocab_size) for _ in range(200)]
    decoder = IncrementalDecoder(pilot)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == pilot.decode(ids)


def test_bytes_that_never_become_a_character_come_out(pilot: TextTokenizer) -> None:
    lead = pilot.encode("日")[0]
    decoder = IncrementalDecoder(pilot)
    assert "".join(decoder.push(lead) for _ in range(100))
    assert decoder.push(lead) == ""
    assert decoder.flush()
    assert decoder.flush() == ""
