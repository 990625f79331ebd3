"""How far an engine is from transformers on a published configuration, and the table of all of them.

python -m tests.workers.gpu.model.parity              writes workers/gpu/model/families/README.md
python -m tests.workers.gpu.model.parity ORG/NAME …   measures these and new models, and keeps the other rows
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model import families
from moorage.workers.hf_config import read_model_spec
from tests.engine_driver import Driver, memory
from tests.published_models import MOST_LAYERS, PUBLISHED, TRAINED, build, read
from tests.tiny_models import random_prompt
from tests.workers.gpu.test_sliding_windows import fed

README = Path(families.__path__[0]) / "README.md"
CHUNKS, NUM_DECODED = (64, 37), 16
LONG, SHORT = 200, 60
"""Tokens of two sessions: one passes TRAINED, its scaling and every window; the other stays below."""


def largest_difference(name: str, directory: Path) -> float:
    """Of log-probabilities: of a long prompt in chunks, then of two sessions that decode together."""
    model = build(name, directory)
    driver = Driver(model.directory, model.spec)
    long, short = (random_prompt(model.spec, length, length) for length in (LONG, SHORT))
    expected = {1: torch.log_softmax(model.logits(long), -1), 2: torch.log_softmax(model.logits(short), -1)}
    found = driver.prompt_logprobs(long.tolist(), memory(), CHUNKS)
    differences = [(found - expected[1][:-1].gather(1, long[1:, None])[:, 0]).abs().max()]
    sessions = {2: (short.tolist(), SHORT - NUM_DECODED)}
    if model.spec.rope.rope_type != "dynamic":
        # Frequencies of this scaling change with every token, so that transformers' cache has keys of several.
        sessions[1] = (long.tolist(), LONG - NUM_DECODED)
    for session, rows in fed(driver, sessions, NUM_DECODED, chunk=64).items():
        differences.append((rows - expected[session][-NUM_DECODED - 1 :]).abs().max())
    return float(torch.stack(differences).max())


def refusal(name: str) -> str | None:
    """The line by which a published config.json is refused; None where it is served."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        path.write_text(PUBLISHED[name].read_text())
        try:
            read_model_spec(directory)
        except InvalidModel as error:
            return str(error).removeprefix(f"{path}: ")
    return None


def table(kept: Mapping[str, str]) -> Iterator[str]:
    """The lines of the README, with the rows that are `kept`, by model."""
    yield "# Model families\n"
    yield (
        "Each family is one file of this folder. The table has the largest difference of log-probabilities from\n"
        "transformers in fp32, or the line by which a model is refused. Configurations are those of their authors\n"
        "with random weights, scaled down in width. Depth is cut to two periods of the pattern of layers, "
        f"{MOST_LAYERS} at\nleast. Lengths are divided so that the trained one is {TRAINED} tokens. Compared are a "
        f"prompt of {LONG} tokens in\nchunks, and two sessions that decode together.\n"
    )
    yield "Written by `python -m tests.workers.gpu.model.parity`.\n"
    yield "| model | architecture | difference |"
    yield "|---|---|---|"
    for name in PUBLISHED:
        yield kept.get(name) or f"| {name} | {read(name)['architectures'][0]} | {_shown(name)} |"


def _shown(name: str) -> str:
    reason = refusal(name)
    if reason is None:
        with tempfile.TemporaryDirectory() as directory:
            try:
                return f"{largest_difference(name, Path(directory)):.1e}"
            except InvalidModel as error:
                reason = str(error)
    return f"refused: {reason.split('; use one of ')[0]}"


def rows() -> dict[str, str]:
    """Those of the README, by model."""
    lines = README.read_text().splitlines()
    return {
        line.split(" | ")[0].removeprefix("| "): line
        for line in lines
        if line.startswith("| ") and "/" in line
    }


def main(names: Sequence[str]) -> None:
    """Writes the table; `names` are the models to measure again, none means all."""
    warnings.simplefilter("ignore")
    kept = {name: row for name, row in rows().items() if names and name not in names}
    README.write_text("\n".join(table(kept)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
