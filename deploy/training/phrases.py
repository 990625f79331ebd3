"""Names, values and filler sentences of the training tasks, drawn at random.

None of them is a name, sentence or value of the evaluation: no pass keys, no magic numbers, no green grass.
"""

from __future__ import annotations

from random import Random

ATTRIBUTES = (
    "access code", "account number", "badge number", "bike lock code", "booking code", "cabin number",
    "call sign", "case number", "catalogue number", "chosen colour", "code word", "customer number",
    "delivery date", "door code", "entry code", "favourite dish", "file name", "final score", "flight number",
    "gate code", "hidden word", "home town", "identifier", "invoice number", "licence plate", "locker number",
    "lucky number", "lottery number", "membership number", "meter reading", "nickname", "order number",
    "parcel number", "parking space", "passphrase", "password", "phone extension", "phone number", "PIN",
    "postal code", "price", "private token", "record number", "reference", "room number", "safe combination",
    "seat number", "security code", "serial number", "server name", "special date", "street number",
    "table number", "target word", "test score", "ticket number", "tracking number", "unlock code",
    "user name", "vault code", "version", "weight", "wifi password", "winning number",
)  # fmt: skip
_CONSONANTS, _VOWELS, _LETTERS = "bcdfghjklmnprstvwz", "aeiou", "abcdefghijklmnopqrstuvwxyz"
_THINGS = (
    "kettle", "lamp", "road", "river", "garden", "window", "table", "horse", "train", "letter", "bridge",
    "candle", "market", "door", "bottle", "mountain", "basket", "wheel", "island", "carpet", "harbour",
    "mirror", "engine", "ladder", "pillow", "meadow", "ship", "tower", "clock", "field",
)  # fmt: skip
_LOOKS = (
    "warm", "old", "quiet", "round", "heavy", "bright", "narrow", "empty", "broken", "wet", "cheap", "tall",
    "clean", "open", "soft", "dark", "late", "strange", "wooden", "small",
)  # fmt: skip
_DEEDS = (
    "We walk on.", "Nobody speaks.", "It rains again.", "Then it stops.", "So it goes on.", "The day passes.",
    "Up and down it goes.", "All is well.", "They wait a while.", "And so on.", "Nothing happens here.",
    "Round and round we turn.",
)  # fmt: skip


class Phrases:
    """Random names and values. The same `rng` state gives the same ones."""

    def __init__(self, rng: Random, words: tuple[str, ...]) -> None:
        self._rng = rng
        self._words = words

    def word(self) -> str:
        """A word of the corpus."""
        return self._rng.choice(self._words)

    def invented(self) -> str:
        """A word that does not exist, of two to four syllables."""
        rng = self._rng
        return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 4)))

    def digits(self, low: int = 4, high: int = 8) -> str:
        """A number of `low` to `high` digits, the first of them no zero."""
        size = self._rng.randint(low, high)
        return str(self._rng.randrange(10 ** (size - 1), 10**size))

    def hexadecimal(self, size: int) -> str:
        """`size` hexadecimal digits in lower case."""
        return f"{self._rng.getrandbits(4 * size):0{size}x}"

    def uuid(self) -> str:
        """Hexadecimal digits in the grouping of a UUID."""
        return "-".join(self.hexadecimal(size) for size in (8, 4, 4, 4, 12))

    def capitals(self, low: int, high: int) -> str:
        """Capital letters."""
        return "".join(self._rng.choices(_LETTERS, k=self._rng.randint(low, high))).upper()

    def attribute(self) -> str:
        """What a fact is about, such as a door code; of a large set, since any can be asked for."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(ATTRIBUTES)
        return f"{self.word()} {self.word()}" if kind < 0.85 else self.word()

    def key(self, kind: float | None = None) -> str:
        """Whom or what a fact is about. The same `kind`, from 0 to 1, gives keys of one form."""
        rng = self._rng
        kind = rng.random() if kind is None else kind
        if kind < 0.30:
            return f"{self.word()}-{self.word()}"
        if kind < 0.45:
            return self.word()
        if kind < 0.60:
            return self.invented().capitalize()
        if kind < 0.70:
            return f"{self.invented().capitalize()} {self.invented().capitalize()}"
        if kind < 0.78:
            return f"the {rng.choice(_LOOKS)} {self.word()}"
        if kind < 0.86:
            return self.digits(1, 4)
        return self.uuid() if kind < 0.92 else self.hexadecimal(rng.randint(4, 8))

    def alike(self, count: int) -> list[str]:
        """`count` keys of two words each, which share their words with one another."""
        rng, size = self._rng, 2
        while size * size < 2 * count:
            size += 1
        firsts, seconds = ([self.word() for _ in range(size)] for _ in range(2))
        joint = rng.choice(("-", "-", " ", "_"))
        pairs = sorted({f"{first}{joint}{second}" for first in firsts for second in seconds})
        return rng.sample(pairs, min(count, len(pairs)))

    def value(self, kind: str) -> str:
        """A value of one `kind` of `VALUE_KINDS`."""
        rng = self._rng
        if kind == "digits":
            return self.digits()
        if kind == "word":
            return self.word()
        if kind == "words":
            return f"{self.word()} {self.word()}"
        if kind == "uuid":
            return self.uuid()
        if kind == "hex":
            return self.hexadecimal(rng.randint(4, 10))
        if kind == "invented":
            return self.invented()
        return f"{self.capitals(1, 3)}-{self.digits(2, 4)}"

    def kind(self) -> str:
        """The kind of a context's values."""
        return self._rng.choices(VALUE_KINDS, VALUE_SHARES)[0]

    def garbage(self) -> str:
        """Two to six sentences that say nothing, to be repeated."""
        rng = self._rng
        sentences = []
        for _ in range(rng.randint(2, 6)):
            form = rng.random()
            thing, look = rng.choice(_THINGS), rng.choice(_LOOKS)
            if form < 0.5:
                sentences.append(f"The {thing} is {look}.")
            elif form < 0.7:
                sentences.append(f"A {look} {thing} stands by the {rng.choice(_THINGS)}.")
            elif form < 0.8:
                sentences.append(f"The {self.word()} is {self.word()}.")
            else:
                sentences.append(rng.choice(_DEEDS))
        return " ".join(sentences)


VALUE_KINDS = ("digits", "word", "words", "uuid", "hex", "invented", "code")
VALUE_SHARES = (0.52, 0.11, 0.05, 0.08, 0.10, 0.07, 0.07)
