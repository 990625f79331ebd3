"""Measure a checkpoint: published retrieval tasks inside the trained length, and perplexity of held-out text.

    python -m deploy.training.check --work WORK --length 2048 --samples 50

The prompts are worded as in the published tests, which the training never shows. Answers are greedy and exact: a
sample counts when every token of its answer is the likeliest one after those before it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer

from deploy.training.corpus import read_corpus
from deploy.training.export import read_weights
from deploy.training.model import Llama, Shape
from deploy.training.prepare import Text, encode_texts
from deploy.training.recipe import RECIPE, read_recipe
from deploy.training.tokenizer import BOS, special_id
from deploy.training.trainer import CHECKPOINT
from moorage.runtime.evals.haystack import Haystack, garbage_haystack, text_haystack, word_start
from moorage.runtime.evals.passkey import FACT, QUESTION
from moorage.workers.hf_config import read_model_spec

NUM_PAIRS = 40
_ADJECTIVES = (
    "abrasive", "brave", "curious", "dizzy", "elegant", "fierce", "gentle", "humble", "icy", "jolly",
    "keen", "lively", "mellow", "noisy",
)  # fmt: skip
_NOUNS = (
    "otter", "piano", "quartz", "ribbon", "saddle", "teapot", "umbrella", "violin", "walnut", "yacht",
    "zebra", "acorn", "badger", "cactus",
)  # fmt: skip
_NEEDLE = " One of the special magic numbers for {k} is: {v}."
_NEEDLE_QUESTION = (
    " What is the special magic number for {k} mentioned in the provided text? "
    "The special magic number for {k} mentioned in the provided text is"
)
_PAIRS = "Extract the value corresponding to the specified key in the JSON object below.\n\n"


@dataclass(frozen=True, slots=True)
class Problem:
    """Statements to hide in a haystack, the question that ends the prompt, and the answers that are right."""

    statements: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def pass_key(rng: Random) -> Problem:
    """The pass-key task of the project and of Mohtashami and Jaggi."""
    key = str(rng.randrange(10_000, 100_000))
    return Problem((FACT.format(key=key),), QUESTION, (f" {key}",))


def needle(rng: Random, num_keys: int = 1) -> Problem:
    """RULER's `niah`: one of `num_keys` seven-digit numbers is asked for."""
    keys = rng.sample([f"{first}-{second}" for first in _ADJECTIVES for second in _NOUNS], num_keys)
    values = [str(rng.randrange(10**6, 10**7)) for _ in keys]
    statements = tuple(_NEEDLE.format(k=k, v=v) for k, v in zip(keys, values, strict=True))
    asked = rng.randrange(num_keys)
    return Problem(statements, _NEEDLE_QUESTION.format(k=keys[asked]), (f" {values[asked]}",))


def key_value(rng: Random) -> Problem:
    """InfiniteBench's `kv_retrieval` with 40 pairs of eight hexadecimal digits, and no haystack."""
    pairs = {f"{rng.getrandbits(32):08x}": f"{rng.getrandbits(32):08x}" for _ in range(NUM_PAIRS)}
    asked, value = rng.choice(list(pairs.items()))
    question = f'{_PAIRS}{json.dumps(pairs)}\n\nKey: "{asked}"\nCorresponding value:'
    return Problem((), question, (f' "{value}"', f" {value}"))


TASKS: Mapping[str, tuple[Callable[[Random], Problem], str]] = {
    "pass key, garbage": (pass_key, "garbage"),
    "pass key, text": (pass_key, "text"),
    "needle, garbage": (needle, "garbage"),
    "needle, text": (needle, "text"),
    "one of four needles, garbage": (lambda rng: needle(rng, 4), "garbage"),
    "one of four needles, text": (lambda rng: needle(rng, 4), "text"),
    f"JSON, {NUM_PAIRS} pairs": (key_value, ""),
}


class Checker:
    """A model and the haystacks of the evaluation."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._haystacks = {"garbage": garbage_haystack(), "text": text_haystack()}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        return str(self._tokenizer.decode(token_ids))

    def accuracy(self, task: str, num_tokens: int, num_samples: int, seed: int = 0) -> int:
        """How many of `num_samples` prompts of at most `num_tokens` are answered rightly."""
        make, haystack = TASKS[task]
        right = 0
        for index in range(num_samples):
            rng = Random(f"{task}/{seed}/{index}")
            problem = make(rng)
            ids = self.prompt(problem, self._haystacks.get(haystack), num_tokens, rng)
            right += any(self.answers(ids, answer) for answer in problem.answers)
        return right

    def prompt(self, problem: Problem, haystack: Haystack | None, num_tokens: int, rng: Random) -> list[int]:
        """BOS, the statements at random depths of the haystack, and the question."""
        bos, question = [special_id(self._tokenizer, BOS)], self.encode(problem.question)
        needles = [self.encode(statement) for statement in problem.statements]
        longest = max(len(self.encode(answer)) for answer in problem.answers)
        room = num_tokens - len(bos) - len(question) - sum(map(len, needles)) - longest
        if room < 0:
            raise ValueError(f"--length {num_tokens}: at least {num_tokens - room} tokens are needed")
        if haystack is None:
            return bos + question
        text = haystack.tokens(self, room, rng.randrange(2**32))
        cuts = sorted(word_start(self, text, rng.randrange(room + 1)) for _ in needles)
        ids, begin = bos, 0
        for cut, statement in zip(cuts, needles, strict=True):
            ids = ids + text[begin:cut] + statement
            begin = cut
        return ids + text[begin:] + question

    @torch.inference_mode()
    def answers(self, prompt: list[int], answer: str) -> bool:
        """Whether the greedy answer to `prompt` is `answer`."""
        expected = self.encode(answer)
        ids = torch.tensor([prompt + expected[:-1]])
        likeliest = self._model.logits(self._model(ids)[:, len(prompt) - 1 :]).argmax(-1)
        return bool(likeliest[0].tolist() == expected)


@torch.inference_mode()
def loss_of(model: Llama, text: Text, num_tokens: int) -> float:
    """Mean loss in nats a token over pieces of `num_tokens` of `text`, each read without what is before it."""
    total = count = 0.0
    for piece in _pieces(text, num_tokens):
        logits = model.logits(model(piece[None, :-1])).float()
        total += float(torch.nn.functional.cross_entropy(logits[0], piece[1:], reduction="sum"))
        count += len(piece) - 1
    return total / count


def checkpoint_model(work: Path, recipe: Path) -> tuple[Llama, Tokenizer]:
    """The model of the checkpoint in `work`, as far as it is trained."""
    model = Llama(read_recipe(recipe).shape)
    state = torch.load(work / CHECKPOINT, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model.eval(), Tokenizer.from_file(str(work / "tokenizer.json"))


def exported_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """A Llama model in the Hugging Face layout, in fp32. Its embeddings must be tied."""
    spec = read_model_spec(folder)
    shape = Shape(
        **{name: getattr(spec, name) for name in Shape.__slots__ if hasattr(spec, name)},
        max_tokens=spec.max_position_embeddings,
        rope_theta=spec.rope.theta,
    )
    model = Llama(shape)
    model.load_state_dict(read_weights(folder))
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Print a line for each task."""
    arguments = _arguments()
    work: Path = arguments.work
    if arguments.model is None:
        model, tokenizer = checkpoint_model(work, arguments.recipe)
    else:
        model, tokenizer = exported_model(arguments.model)
    checker = Checker(model, tokenizer)
    for task in TASKS:
        try:
            right = checker.accuracy(task, arguments.length, arguments.samples)
        except ValueError as error:
            print(f"{task:<30} {error}", flush=True)
            continue
        print(f"{task:<30} {right} of {arguments.samples}", flush=True)
    texts = [document.text for document in read_corpus(work) if document.held_out]
    text = encode_texts(tokenizer, texts)
    loss = loss_of(model, text, arguments.length)
    bits = loss * len(text.ids) / math.log(2) / sum(len(part.encode()) for part in texts)
    print(
        f"{'held-out text':<30} loss {loss:.3f} nats a token, perplexity {math.exp(loss):.2f}, {bits:.3f} bits a byte"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure a checkpoint, or a model in the Hugging Face layout."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpus and the checkpoint")
    parser.add_argument("--model", type=Path, help="model directory to measure instead of the checkpoint")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt with its answer")
    parser.add_argument("--samples", type=int, default=50, help="prompts of each task")
    return parser.parse_args()


def _pieces(text: Text, num_tokens: int) -> Iterator[torch.Tensor]:
    ids = torch.from_numpy(text.ids.astype("int64"))
    for start in range(0, len(ids) - 1, num_tokens - 1):
        yield ids[start : start + num_tokens]


if __name__ == "__main__":
    main()
