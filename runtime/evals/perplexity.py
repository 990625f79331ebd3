"""Loss and perplexity of long texts by length, in windows that slide over the text as PG19 is measured.

A window of `length` tokens is scored in one prefill, so that exact presets differ by their positions, and
those that select blocks in prefill by their selection. Published figures (ChunkLlama's PG19) slide by 256 tokens and
count every token of a window; counting only its last tokens measures the use of a context of that length.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from moorage.runtime.evals.haystack import text_files
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

_PIECE_CHARACTERS = 1 << 18
"""Text that is tokenised at once; as UTF-8 below the 4 MiB of one Tokenize call."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A text to score: files that the target's tokenizer reads, or token ids in a .bin file."""

    files: tuple[Path, ...]
    dtype: str | None
    """uint16 or uint32 of a .bin file; None for text."""

    @classmethod
    def of(cls, path: Path, dtype: str = "uint16") -> TokenText:
        """A .bin file of token ids, a text file or a folder of texts. Raises InvalidRequest when there is none."""
        if path.suffix == ".bin" and path.is_file():
            if path.stat().st_size % np.dtype(dtype).itemsize:
                raise InvalidRequest(
                    f"{path}: is not a whole number of {dtype} tokens; give --dtype uint16 or uint32"
                )
            return cls((path,), dtype)
        files = tuple(text_files(path))
        if not files:
            raise InvalidRequest(f"{path}: no text in it; name a .bin, a text file or a folder of texts")
        return cls(files, None)

    def fingerprint(self) -> str:
        """Tells this text from another."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
        return digest.hexdigest()[:16]

    def tokens(self, target: Target) -> Sequence[int] | np.ndarray[Any, np.dtype[Any]]:
        """All of its token ids; those of a .bin stay in the file until they are read."""
        if self.dtype is not None:
            return np.memmap(self.files[0], np.dtype(self.dtype), "r")
        ids: list[int] = []
        for file in self.files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest(f"{file}: not UTF-8 text; convert it or name another file") from None
            for start in range(0, len(text), _PIECE_CHARACTERS):
                ids += target.encode(text[start : start + _PIECE_CHARACTERS])
        return ids


@dataclass(slots=True)
class Perplexity:
    """The task: windows of each length, ending at places spread over the text, or sliding by `stride`."""

    text: TokenText
    lengths: tuple[int, ...]
    samples: int
    stride: int | None = None
    last: int | None = None
    """Count only that many last tokens of a window; None counts all but its first."""
    name: str = "perplexity"
    metric: Metric = Metric.LOSS
    by_depth: bool = False
    _tokens: Sequence[int] | np.ndarray[Any, np.dtype[Any]] | None = field(default=None, repr=False)

    def settings(self) -> Mapping[str, Any]:
        """The text, and which tokens of it count."""
        spread = None if self.stride else {"windows": self.samples, "longest": max(self.lengths)}
        return {"text": self.text.fingerprint(), "stride": self.stride, "last": self.last, "spread": spread}

    def places(self) -> list[Place]:
        """`samples` windows of each length."""
        return [Place(index, length) for length in self.lengths for index in range(self.samples)]

    def fitted(self, target: Target) -> Perplexity:
        """The same with those lengths alone that the text is long enough for. InvalidRequest if none is."""
        tokens, prefix = self.text.tokens(target), len(target.prefix())
        lengths = tuple(length for length in self.lengths if length - prefix <= len(tokens))
        if not lengths:
            raise InvalidRequest(
                f"lengths: the text has {counted(len(tokens), 'token')} and the shortest length asked is "
                f"{min(self.lengths)}; give a longer text or shorter lengths"
            )
        return replace(self, lengths=lengths, _tokens=tokens)

    def measure(self, place: Place, target: Target) -> Outcome:
        """Mean loss of one window, in nats per token."""
        assert place.length is not None
        prefix = target.prefix()
        tokens = self._window(place.index, place.length - len(prefix), target)
        start_s = time.monotonic()
        logprobs = target.score([*prefix, *tokens])[max(0, len(prefix) - 1) :]
        counted = logprobs[-self.last :] if self.last else logprobs
        return Outcome(-fmean(counted), "", (), place.length, time.monotonic() - start_s)

    def _window(self, index: int, size: int, target: Target) -> list[int]:
        if self._tokens is None:
            self._tokens = self.text.tokens(target)
        start = index * self.stride if self.stride else self._end(index, target) - size
        if size < 2 or start < 0 or start + size > len(self._tokens):
            raise InvalidRequest(
                f"lengths: the text has {counted(len(self._tokens), 'token')} and window {index + 1} of {size} "
                f"would end at {start + size}; give a longer text, shorter --lengths or fewer --samples"
            )
        return [int(token) for token in self._tokens[start : start + size]]

    def _end(self, index: int, target: Target) -> int:
        """Windows of every length end at the same places, so that the same tokens meet contexts of each length."""
        assert self._tokens is not None
        longest = max(self.lengths) - len(target.prefix())
        return longest + int((len(self._tokens) - longest) * (index + 0.5) / self.samples)
