"""Tokenizing as transformers does, text in whole characters, and chat templates."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from moorage.runtime.tokenizer import IncrementalDecoder, TextTokenizer
from moorage.workers.errors import InvalidModel, InvalidRequest

PILOT = Path(__file__).resolve().parents[2] / "deploy" / "models" / "moorage-pilot"
TEXTS = (
    "",
    " ",
    "Hello, world! 12345",
    "  two  spaces\n\n\tand tabs ",
    "naïve café 日本語 🙂👩‍👩‍👧 \u200b",
    "<user>a question</s><bot>",
    "The pass key is 90210. " * 50,
)


@pytest.fixture(scope="module")
def pilot() -> TextTokenizer:
    return TextTokenizer.load(PILOT)


@pytest.fixture
def spaced(tmp_path: Path) -> TextTokenizer:
    """Like Llama 2: BOS first, a space before the first word, byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "▁b", "c", "▁"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_same_as_transformers(pilot: TextTokenizer, text: str) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(PILOT)
    ids = pilot.encode(text)
    assert ids == oracle.encode(text)
    assert pilot.decode(ids) == oracle.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert pilot.decode(ids, skip_special_tokens=False) == text


def test_post_processor_decides_on_bos(spaced: TextTokenizer) -> None:
    assert spaced.encode("c")[0] == 1
    assert spaced.encode("c", add_special_tokens=False)[0] != 1


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


def test_spaces_between_words_survive(spaced: TextTokenizer) -> None:
    ids = [1, 259, 260, 2, 2, *([2] * 40), 260, 261, 0xE2 + 3, 0x82 + 3, 0xAC + 3]
    decoder = IncrementalDecoder(spaced)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) == "a b bc€" == spaced.decode(ids)
    assert pieces[-3:] == ["", "", "€"]


def test_bytes_that_never_become_a_character_come_out(pilot: TextTokenizer) -> None:
    lead = pilot.encode("日")[0]
    decoder = IncrementalDecoder(pilot)
    assert "".join(decoder.push(lead) for _ in range(100))
    assert decoder.push(lead) == ""
    assert decoder.flush()
    assert decoder.flush() == ""


def test_invalid_text_is_refused(pilot: TextTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="send valid UTF-8"):
        pilot.encode("a\ud800")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"missing.*token ids instead of text"):
        TextTokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(InvalidModel, match="not a tokenizer"):
        TextTokenizer.load(tmp_path)
    path.write_bytes((PILOT / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InvalidModel, match="not JSON"):
        TextTokenizer.load(tmp_path)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def with_settings(directory: Path, **settings: object) -> TextTokenizer:
    (directory / "tokenizer.json").write_bytes((PILOT / "tokenizer.json").read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **settings}))
    return TextTokenizer.load(directory)


def test_chat_templates_from_every_place(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (tmp_path / "added").mkdir()
    as_object = with_settings(tmp_path / "added", chat_template=TEMPLATE, bos_token={"content": "<b>"})
    assert as_object.render_chat(messages) == "<b><user>hi<bot>"
    for template in (
        TEMPLATE,
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}],
    ):
        tokenizer = with_settings(tmp_path, chat_template=template)
        assert tokenizer.has_chat_template
        assert tokenizer.render_chat(messages) == "<s><user>hi<bot>"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == "<s><user>hi"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | tojson }}")
    assert tokenizer.render_chat(messages) == json.dumps(messages)


def test_same_chat_as_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    lines = (
        "{% for m in messages %}",
        "  {% if loop.first %}",
        "{{ m | tojson(indent=2) }}é",
        "  {% endif %}",
    )
    template = "\n".join((*lines, "{% endfor %}"))
    tokenizer = with_settings(tmp_path, chat_template=template, tokenizer_class="TokenizersBackend")
    messages = [{"role": "user", "content": "ü <b>"}, {"role": "bot", "content": "2"}]
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.render_chat(messages) == oracle.apply_chat_template(messages, tokenize=False)


def test_chat_refusals(pilot: TextTokenizer, tmp_path: Path) -> None:
    assert not pilot.has_chat_template
    with pytest.raises(InvalidRequest, match=r"has no chat template.*send a plain prompt"):
        pilot.render_chat([])
    for template, why in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "chat template refuses"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            with_settings(tmp_path, chat_template=template).render_chat([])
