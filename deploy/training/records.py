"""Long lists of records, key and value, and questions about some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from deploy.training.facts import Question
from deploy.training.phrases import Phrases


@dataclass(frozen=True, slots=True)
class _Style:
    """How a list is written: before it, one record, between records, after it; then how one is asked for."""

    opening: str
    record: str
    between: str
    closing: str
    lead: str
    end: str


_STYLES = (
    _Style("{{", '"{k}": "{v}"', ", ", "}}", '"{k}": "', '"'),
    _Style("{{", '"{k}": "{v}"', ", ", "}}", '"{k}" has the value "', '"'),
    _Style("{{\n", '  "{k}": "{v}"', ",\n", "\n}}", '"{k}": "', '"'),
    _Style("{{", '"{k}": "{v}"', ", ", "}}", "", ""),
    _Style('{{"', '{k}": "{v}', '", "', '"}}', '"{k}" ->', ""),
    _Style("", "{k}: {v}", "\n", "\n", "{k}:", "\n"),
    _Style("", "{k} = {v}", "\n", "\n", "{k} =", "\n"),
    _Style("| key | value |\n", "| {k} | {v} |", "\n", "\n", "| {k} |", " |"),
    _Style("", "record {k} holds {v}.", "\n", "\n", "record {k} holds", "."),
    _Style("(", "'{k}', '{v}'", "), (", ")", "'{k}', '", "'"),
)
_PREAMBLES = (
    "", "", "A list of keys with their values:\n", "Look things up in this table.\n\n", "Data:\n",
    "Here is an object. You will be asked for some of its values.\n\n",
)  # fmt: skip
_QUESTIONS = (
    '\nWhich value has "{k}"?\n', "\n\nKey to look up: {k}\nIts value: ", "\nLook up {k}.\n", "\nAsked: {k}\n",
    '\n\nFind the value of the key "{k}".\n', '\nWanted key: "{k}"\nValue: ',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Records:
    """The list with what stands before it, and the questions."""

    text: str
    questions: tuple[Question, ...]


def records(
    phrases: Phrases, rng: Random, room: int, count_tokens: Callable[[str], int], asking: int = 1
) -> Records | None:
    """A list that fills `room` tokens more or less, or None when not even two records fit.

    A few of them are asked for, or `asking` times as many.
    """
    style = rng.choice(_STYLES) if rng.random() < 0.4 else _draw_style(rng)
    key = _key_maker(phrases, rng)
    kind = rng.choice(("digits", "hex", "uuid", "word", "invented", "hex8", "uuid"))
    value = partial(phrases.hexadecimal, 8) if kind == "hex8" else partial(phrases.value, kind)
    trial = style.record.format(k=key(), v=value()) + style.between
    question = _draw_question(phrases, rng, style)
    asked_in = count_tokens(question + trial)
    num_questions = min(
        asking * rng.choice((1, 2, 4, 6)), max(1, asking * room // 150), 1 + room // (2 * asked_in)
    )
    closing_tokens = asked_in * num_questions
    each = count_tokens(trial)
    count = min(90, int((room - closing_tokens - 20) / (1.08 * each)))
    if count < 2:
        return None
    if rng.random() < 0.3:
        count = rng.randint(2, count)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        pairs[key()] = value()
    text = style.between.join(style.record.format(k=k, v=v) for k, v in pairs.items())
    asked = rng.sample(list(pairs), min(count, num_questions))
    questions = tuple(_question(style, question, k, pairs[k]) for k in asked)
    opening, closing = style.opening.format(), style.closing.format()
    return Records(rng.choice(_PREAMBLES) + opening + text + closing, questions)


def _draw_style(rng: Random) -> _Style:
    """Records as no other context has them, perhaps."""
    quote = rng.choice(('"', '"', "'", "`", "", ""))
    link = rng.choice((": ", ": ", " = ", " -> ", ", ", "; ", " | ", " is ", " holds ", " - "))
    between = rng.choice((", ", ",\n", "\n", "; ", " ", "\n\n"))
    opened, closed = rng.choice((("{{", "}}"), ("[", "]"), ("", ""), ("", "."), ("(", ")")))
    own = f"{quote}{{k}}{quote}{link}{quote}"
    return _Style(opened, f"{own}{{v}}{quote}", between, closed, own.rstrip(" "), quote or "\n")


def _draw_question(phrases: Phrases, rng: Random, style: _Style) -> str:
    """A question with {k}: one of ours, or words at random; or none, when the record itself is begun again."""
    form = rng.random()
    if form < 0.3 and style.lead:
        return "\n"
    if form < 0.6:
        return rng.choice(_QUESTIONS)
    quote, cue = rng.choice(('"', '"', "'", "")), rng.choice((":", " =", " is", "", ","))
    before, after = (" ".join(phrases.word() for _ in range(rng.randint(0, 3))) for _ in range(2))
    end = rng.choice(("\n", "\n", ". ", ", ", "? "))
    text = f"{before.capitalize()}{cue} {quote}{{k}}{quote}{end}{after.capitalize()}{rng.choice((':', ' is', ' ='))} "
    return rng.choice(("\n", "\n\n", " ")) + text.lstrip()


def _key_maker(phrases: Phrases, rng: Random) -> Callable[[], str]:
    """One kind of key for the whole list."""
    size = rng.randint(4, 10)
    return rng.choice(
        (
            phrases.uuid,
            phrases.uuid,
            lambda: phrases.hexadecimal(8),
            lambda: phrases.hexadecimal(size),
            lambda: phrases.digits(3, 6),
            phrases.key,
            lambda: f"{phrases.word()}_{phrases.word()}",
            phrases.invented,
        )
    )


def _question(style: _Style, question: str, key: str, value: str) -> Question:
    """The answer repeats the record's own punctuation; a question that ends with a space gets it bare."""
    if question.endswith(" "):
        return Question(question.format(k=key).rstrip(" "), "", f" {value}\n", value)
    lead = style.lead.format(k=key)
    if not lead:
        return Question(question.format(k=key), "", f"{value}\n", value)
    space = "" if lead.endswith(('"', "'", "`")) else " "
    return Question(question.format(k=key), lead, f"{space}{value}{style.end}", value)
