"""The sampling that a model's authors recommend, read from generation_config.json or a GGUF file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from moorage.workers.gguf.files import gguf_files
from moorage.workers.gguf.model import read_gguf
from moorage.workers.gguf.sampling import sampling_of
from moorage.workers.hf_fields import Fields

FILE_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The sampling of a request that names none. Without a file: greedy, and every token allowed."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_sampling_defaults(directory: str | Path) -> SamplingDefaults:
    """The defaults of a model. Fields that its file lacks keep the defaults of SamplingDefaults.

    `do_sample: false` stands for greedy. `do_sample: true` without a temperature stands for temperature 1, as in
    transformers. Raises InvalidModel with the file and the field for a value that no request may have.
    """
    config, plain = _fields(Path(directory)), SamplingDefaults()
    if config is None:
        return plain
    do_sample = None if config.get("do_sample") is None else config.flag("do_sample")
    temperature = _number(config, "temperature", 0.0, 100.0, 1.0 if do_sample else plain.temperature)
    return SamplingDefaults(
        temperature=0.0 if do_sample is False else temperature,
        top_k=_top_k(config),
        top_p=_number(config, "top_p", 0.0, 1.0, plain.top_p, above=True),
        min_p=_number(config, "min_p", 0.0, 1.0, plain.min_p),
        repetition_penalty=_number(config, "repetition_penalty", 0.1, 10.0, plain.repetition_penalty),
    )


def _fields(model: Path) -> Fields | None:
    if files := gguf_files(model):
        return sampling_of(read_gguf(files))
    path = model / FILE_NAME
    return Fields.read(path) if path.is_file() else None


def _top_k(config: Fields) -> int:
    """-1 is the spelling of "all" that some files have."""
    value = config.get("top_k")
    if value is None or value == -1:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise config.wrong("top_k", "a whole number of at least 0")
    return value


def _number(
    config: Fields, name: str, low: float, high: float, default: float, *, above: bool = False
) -> float:
    """A number from `low` (or above it) to `high`; `default` when the field is absent."""
    value = config.get(name)
    if value is None:
        return default
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (above and number == low):
        begin = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise config.wrong(name, f"a number {begin}")
    return number
