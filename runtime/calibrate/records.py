"""Windows in which records are looked up: a list of keys and values, and the same records again in another order.

Where a value stands for the second time, its gradients show what a model needs of a key to find it again. Those of
prose hardly do: most of what follows in prose is told by the last few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from moorage.runtime.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class _Style:
    """How a list is written: before it, one record, between records, after it."""

    opening: str
    record: str
    between: str
    closing: str

    def of(self, pairs: list[tuple[str, str]]) -> str:
        """A list of pairs."""
        return self.opening + self.between.join(self.one(*pair) for pair in pairs) + self.closing

    def one(self, key: str, value: str) -> str:
        """One record."""
        return self.record.format(key=key, value=value)


_STYLES = (
    _Style("{", '"{key}": "{value}"', ", ", "}\n\n"),
    _Style("", "{key}: {value}", "\n", "\n\n"),
    _Style("", "{key} = {value}", "; ", ".\n\n"),
    _Style("", "The number of {key} is {value}.", " ", "\n\n"),
    _Style("| key | value |\n", "| {key} | {value} |", "\n", "\n\n"),
)
_WORDS = (
    "acorn", "badger", "cactus", "delta", "ember", "fjord", "glacier", "harbor", "island", "jungle", "kettle",
    "lantern", "meadow", "nectar", "orchid", "pebble", "quarry", "river", "saddle", "timber", "umbrella", "valley",
    "willow", "yarrow", "zephyr",
)  # fmt: skip
_KINDS = ("hexadecimal", "words", "digits")


def record_windows(tokenizer: TextTokenizer, count: int, window: int) -> list[list[int]]:
    """`count` windows of `window` token ids; kinds of keys, of values and of lists take turns."""
    start = tokenizer.encode("", add_special_tokens=True)[:1]
    found = []
    for index in range(count):
        rng, style = Random(index), _STYLES[index % len(_STYLES)]
        ids = list(start)
        while len(ids) < window:
            text = _text(tokenizer, rng, style, _KINDS[index % len(_KINDS)], window // 2)
            ids += tokenizer.encode(text, add_special_tokens=False)
        found.append(ids[:window])
    return found


def _text(tokenizer: TextTokenizer, rng: Random, style: _Style, kind: str, half: int) -> str:
    """A list of about `half` tokens, and as many of its records again."""

    def pair() -> tuple[str, str]:
        return _drawn(rng, kind), _drawn(rng, rng.choice(("hexadecimal", "digits")))

    trial = style.between.join(style.one(*pair()) for _ in range(8))
    size = len(tokenizer.encode(trial, add_special_tokens=False)) / 8
    pairs = [pair() for _ in range(max(2, int(half / size)))]
    again = rng.sample(pairs, len(pairs))
    return style.of(pairs) + "\n".join(style.one(*each) for each in again) + "\n\n"


def _drawn(rng: Random, kind: str) -> str:
    if kind == "words":
        return f"{rng.choice(_WORDS)}-{rng.choice(_WORDS)}-{rng.randrange(100)}"
    return f"{rng.getrandbits(32):08x}" if kind == "hexadecimal" else str(rng.randrange(10**6, 10**7))
