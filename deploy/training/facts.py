"""Facts to hide in a text, and the questions that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from deploy.training.frames import draw_frame
from deploy.training.phrases import Phrases

_TOKENS_PER_FACT = 45
"""What a fact takes at most, usually; a guess of how many fit."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the words that open its answer (or none), the answer as it goes on from there, and its core."""

    text: str
    lead: str
    answer: str
    value: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Statements in reading order and questions about them. `in_order`: the order must not change."""

    statements: list[str]
    questions: tuple[Question, ...]
    preamble: str = ""
    in_order: bool = False


_ALONE = (
    " The {a} is {v}. Keep it in mind, {v} is the {a}.",
    " Please note the {a}: {v}.",
    " Our {a} is {v}; do not forget {v}.",
    " The {a} is {v}.",
    " The {a} is {v}. Do not lose it: the {a} is {v}.",
    " Here is the {a}: {v}. Write {v} down.",
    " Important: the {a} has been set to {v}.",
    " Remember this. The {a} is {v}.",
)
_ALONE_QUESTIONS = (
    ("What is the {a}?", "The {a} is"),
    ("What was the {a} in the text?", "The {a} was"),
    ("What is the {a}?", ""),
    ("Tell me the {a}.", "The {a} is"),
    ("Now, the {a} that was given above?", "{a}:"),
    ("Which {a} does the text give?", "The text says that the {a} is"),
    ("Q: What is the {a}?", "A: The {a} is"),
)
_KEYED = (
    " The {a} of {k} is {v}.",
    " The {a} for {k} is {v}.",
    " {k} has the {a} {v}.",
    " Note that the {a} of {k} is {v}.",
    " For {k}, the {a} is: {v}.",
    " One {a} that goes with {k} is {v}.",
    " Remember: {a} of {k} = {v}.",
    " Use {v} as the {a} of {k}.",
    " {v} is the {a} of {k}.",
    " The {a} of {k} is {v}. So {k} has {v}.",
    "\n{k}: {v}\n",
    "\n{a} of {k}: {v}\n",
)
_KEYED_QUESTIONS = (
    ("What is the {a} of {k}?", "The {a} of {k} is"),
    ("What is the {a} for {k} in the text above?", "The {a} for {k} in the text above is"),
    ("Which {a} belongs to {k}?", "The {a} that belongs to {k} is"),
    ("What is the {a} of {k}?", ""),
    ("Tell me the {a} of {k}.", ""),
    ("Give the {a} for {k}.", "{k}:"),
    ("{k}?", ""),
    ("Now look for {k}. Which {a} was named?", "The {a} named for {k} was"),
    ("Q: {a} of {k}?", "A:"),
)
_FORWARD = (
    *(form for form in _KEYED if form.find("{k}") < form.find("{v}")),
    " One {a} for {k} is: {v}.",
    " There is a {a} for {k}: {v}.",
    " Of {k} the {a} is: {v}.",
)
"""A key before its value: what a small model can learn. The others it can only guess at."""
_FORWARD_QUESTIONS = (
    *_KEYED_QUESTIONS,
    ("What is the {a} for {k} that the text gives?", "The {a} for {k} that the text gives is"),
    ("Which is the {a} for {k} named in this text?", "The {a} for {k} named in this text is"),
    ("What is the {a} for {k} that was noted above?", "The {a} for {k} that was noted above is"),
)
_SEVERAL_QUESTIONS = (
    ("What are all the {a}s of {k}?", "The {a}s of {k} are"),
    ("List every {a} of {k} that the text gives.", "The list for {k} is"),
    ("Which {a}s belong to {k}?", "{k} has"),
)
_TOGETHER_QUESTIONS = (
    ("What are the {a}s of {k}?", "The {a}s of {k} are"),
    ("Give the {a} for each of {k}, as named in the text.", "The {a}s for {k} are"),
    ("Name the {a}s that belong to {k}.", ""),
)
_PREAMBLES = (
    "Read this carefully; questions follow at the end.\n",
    "Somewhere below stands the {a}. Find it.\n\n",
    "A long text follows in which some facts hide. Note every {a}.\n",
    "Below is a text. At its end you will be asked for the {a}.\n\n",
)


def single_fact(phrases: Phrases, rng: Random, room: int) -> Facts:
    """One fact with no key, as in the pass-key task, sometimes among facts of other attributes."""
    attributes = _different(phrases.attribute, rng.choice((1, 1, 1, 2, 3)))
    kind = phrases.kind()
    form = rng.choice(_ALONE)
    values = [phrases.value(kind if number == 0 else phrases.kind()) for number, _ in enumerate(attributes)]
    statements = [form.format(a=a, v=v) for a, v in zip(attributes, values, strict=True)]
    asked = rng.sample(range(len(attributes)), min(len(attributes), 2 if room > 100 else 1))
    questions = tuple(_question(rng.choice(_ALONE_QUESTIONS), attributes[i], "", values[i]) for i in asked)
    return Facts(statements, questions, _preamble(rng, attributes[0]))


def keyed_facts(
    phrases: Phrases,
    rng: Random,
    room: int,
    asking: int = 1,
    forward: bool = False,
    framed: bool = False,
    alike: bool = False,
) -> Facts:
    """Facts about several keys, of which some are asked for, one by one or together; `asking` times as many.

    With `forward`, each key stands before its value, and there are more wordings. With `framed` it does as well, and
    the wording of each context is one that no other has; with `alike`, keys share words.
    """
    most = max(1, min(40, (room - 40) // _TOKENS_PER_FACT))
    count = min(most, rng.choice((2, 4, 6, 8, 12, 40) if framed else (1, 2, 4, 4, 6, 10, 40)))
    attribute, kind = phrases.attribute(), phrases.kind()
    frame = draw_frame(phrases, rng) if framed else None
    form = frame.statement if frame else rng.choice(_FORWARD if forward else _KEYED)
    form_of_keys = rng.random() if framed and rng.random() < 0.6 else None
    keys = phrases.alike(count) if alike else _different(lambda: phrases.key(form_of_keys), count)
    count = len(keys)
    values = _different(lambda: phrases.value(kind), count)
    statements = [form.format(a=attribute, k=k, v=v) for k, v in zip(keys, values, strict=True)]
    asked = rng.sample(range(count), min(count, asking * rng.choice((1, 1, 2, 3, 4))))
    questions: tuple[Question, ...]
    if frame is not None:
        questions = tuple(_question((frame.question, frame.lead), "", keys[i], values[i]) for i in asked)
    elif len(asked) > 1 and rng.random() < (0.1 if forward else 0.35):
        names, answer = (
            _series(rng, [keys[i] for i in asked[:4]]),
            _series(rng, [values[i] for i in asked[:4]]),
        )
        questions = (_question(rng.choice(_TOGETHER_QUESTIONS), attribute, names, answer),)
    else:
        shape = rng.choice(_FORWARD_QUESTIONS if forward else _KEYED_QUESTIONS)
        questions = tuple(_question(shape, attribute, keys[i], values[i]) for i in asked)
    return Facts(statements, questions, _preamble(rng, attribute))


def several_values(phrases: Phrases, rng: Random, room: int) -> Facts:
    """Keys with two to four values each, all of which are asked for in the order of the text."""
    attribute, kind, form = phrases.attribute(), phrases.kind(), rng.choice(_KEYED[:7])
    num_keys = 1 if room < 200 else rng.choice((1, 1, 2, 3))
    num_values = rng.randint(2, 4 if room > 120 else 2)
    keys = _different(phrases.key, num_keys)
    owners = [key for key in keys for _ in range(num_values)]
    rng.shuffle(owners)
    values = _different(lambda: phrases.value(kind), len(owners))
    statements = [form.format(a=attribute, k=k, v=v) for k, v in zip(owners, values, strict=True)]
    questions = []
    for key in rng.sample(keys, min(num_keys, 2)):
        own = [value for owner, value in zip(owners, values, strict=True) if owner == key]
        questions.append(_question(rng.choice(_SEVERAL_QUESTIONS), attribute, key, _series(rng, own)))
    return Facts(statements, tuple(questions), _preamble(rng, attribute), in_order=True)


def chain_facts(phrases: Phrases, rng: Random, room: int) -> Facts:
    """Variables that take their value from one another; asked for are a value or the names that share one."""
    num_chains = 1 if room < 200 else rng.choice((1, 2, 2, 3))
    length = rng.randint(2, 5 if room > 160 else 3)
    names = _different(lambda: phrases.capitals(3, 5), num_chains * length)
    first, then = rng.choice(_CHAINS)
    queues: list[list[str]] = []
    owner: dict[str, list[str]] = {}
    value_of: dict[str, str] = {}
    for chain in range(num_chains):
        own = names[chain * length : (chain + 1) * length]
        value = phrases.digits(4, 6)
        owner |= dict.fromkeys(own, own)
        value_of |= dict.fromkeys(own, value)
        links = zip(own[1:], own, strict=False)
        queues.append([first.format(n=own[0], v=value), *(then.format(n=n, m=m) for n, m in links)])
    order = rng.sample([chain for chain in range(num_chains) for _ in range(length)], num_chains * length)
    statements = [queues[chain].pop(0) for chain in order]
    asked = rng.choice(names)
    value, own = value_of[asked], owner[asked]
    listed = " ".join(own)
    several = Question(
        f"Which names hold {value} in the end?", f"The names that hold {value} are", f" {listed}.", listed
    )
    one = Question(f"Which number does {asked} hold?", f"{asked} holds", f" {value}.", value)
    questions = (several, one) if rng.random() < 0.5 else (one, several)
    return Facts(statements, questions[: rng.choice((1, 2))], in_order=True)


_CHAINS = (
    (" Let {n} be {v}.", " Let {n} be the same as {m}."),
    ("\n{n} <- {v}\n", "\n{n} <- {m}\n"),
    (" {n} is now {v}.", " {n} takes what {m} has."),
    ("\nset {n} {v}\n", "\nset {n} {m}\n"),
)


def _question(shape: tuple[str, str], attribute: str, key: str, answer: str) -> Question:
    text, lead = (part.format(a=attribute, k=key) for part in shape)
    return Question(text, lead, f" {answer}.", answer)


def _preamble(rng: Random, attribute: str) -> str:
    return rng.choice(_PREAMBLES).format(a=attribute) if rng.random() < 0.3 else ""


def _series(rng: Random, names: list[str]) -> str:
    """Names as a sentence lists them; the last comma is as likely as the word "and"."""
    last = rng.choice((", ", " and ", ", and "))
    return ", ".join(names[:-1]) + last + names[-1] if len(names) > 1 else names[0]


def _different(draw: Callable[[], str], count: int) -> list[str]:
    """`count` drawings that differ from one another."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[draw()] = None
    return list(drawn)
