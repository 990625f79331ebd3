"""The second part of `runtime demo`: a fact hidden in a long document, found by the embedded model."""

from __future__ import annotations

from moorage.runtime.cli.demo_cluster import demo_cluster
from moorage.runtime.cli.demo_figures import print_figures
from moorage.runtime.cli.output import print_note
from moorage.runtime.cli.streaming import stream_text
from moorage.runtime.evals.haystack import Material, text_haystack
from moorage.runtime.evals.passkey import ANSWER_TOKENS, is_correct, make_sample
from moorage.runtime.evals.targets import ServerCoder
from moorage.runtime.packaged import example_file
from moorage.workers.errors import MoorageError


def find_needle(tokens: int, depth: float, seed: int) -> None:
    """Hides the fact, asks for it, and prints the figures. Raises MoorageError for a wrong answer."""
    haystack = text_haystack()
    with demo_cluster(example_file("local")) as client:
        coder = ServerCoder(client)
        sample = make_sample(Material(haystack, coder, coder.prefix()), tokens, depth, seed)
        print_note(
            f"A document of {sample.num_tokens:,} tokens hides one fact at {sample.depth:.0%} of its length:\n"
            f"  The pass key is {sample.answer}.\n"
            "It ends with the question: What is the pass key? The embedded model answers:"
        )
        stream = client.generate(sample.prompt_ids, max_new_tokens=ANSWER_TOKENS, temperature=0.0)
        result = stream_text(stream, keep_bar=True)
        print_figures({"value": result.usage})
    if not is_correct(result.text, sample.answer):
        raise MoorageError(f"the answer is wrong: the pass key is {sample.answer}; try another --seed")
    print(f"The answer is right: {sample.answer}.")
