"""What a user sees of a running cluster: answers, scores, several clients, clear refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from openai import OpenAI
from transformers import LlamaForCausalLM

from moorage.client import Client
from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.evals.haystack import Material, text_haystack
from moorage.runtime.evals.passkey import ANSWER_TOKENS, is_correct, make_samples
from moorage.runtime.evals.targets import ServerCoder
from moorage.runtime.serving.protocol import Progress, Token
from moorage.workers.errors import DeadlineExceeded, InvalidRequest, ResourceExhausted
from tests.end_to_end.conftest import DOCUMENT, PILOT, RunningCluster, launch

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def oracle() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(PILOT, dtype=torch.float32).eval()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def tokens_of_document(client: Client, count: int, start: int = 0) -> list[int]:
    text = DOCUMENT.read_text(encoding="utf-8")[start : start + 5 * count]
    return client.tokenize(text, add_special_tokens=False)[:count]


def test_http_and_grpc_give_the_same_answer(cluster: RunningCluster) -> None:
    prompt = "The pass key is 12345. Remember it. What is the pass key? The pass key is"
    with (
        Client(cluster.address) as client,
        OpenAI(base_url=f"http://{cluster.ready['http']}/v1", api_key="-") as http,
    ):
        wanted = client.generate(prompt, max_new_tokens=8, temperature=0).result()
        answer = http.completions.create(model="", prompt=prompt, max_tokens=8, temperature=0)
    assert answer.choices[0].text == wanted.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == wanted.usage.completion_tokens


def test_generate_prints_the_contracts_json(cluster: RunningCluster, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The pass key is 12345. Remember it. What is the pass key? The pass key is")
    arguments = ["--prompt-file", prompt, "--max-new-tokens", 8, "--temperature", 0, "--ignore-eos", "--json"]
    result = cluster.cli.json("generate", "--address", cluster.address, *arguments)
    assert len(result["token_ids"]) == len(result["logprobs"]) == 8
    assert "12345" in result["text"]
    assert result["finish_reason"] == "length"
    assert {
        "prompt_tokens",
        "cached_tokens",
        "time_to_first_token_s",
        "decode_tokens_per_s",
        "recall",
    } <= set(result["usage"])
    assert cluster.cli.json("generate", "--preset", "full", *arguments)["token_ids"] == result["token_ids"]


def test_scores_equal_transformers(cluster: RunningCluster, oracle: LlamaForCausalLM, tmp_path: Path) -> None:
    """Within the trained length and the window all presets are exact; the store is FP16, hence the tolerance."""
    with Client(cluster.address) as client:
        ids = tokens_of_document(client, 250)
    file = tmp_path / "ids.json"
    file.write_text(json.dumps(ids))
    score = cluster.cli.json("score", "--address", cluster.address, "--token-ids-file", file, "--json")
    with torch.inference_mode():
        rows = torch.log_softmax(oracle(torch.tensor([ids])).logits[0, :-1].double(), -1)
    want = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    assert score["logprobs"][0] is None
    np.testing.assert_allclose(score["logprobs"][1:], want, atol=0.02)
    assert score["num_tokens"] == 250
    assert score["loss"] == pytest.approx(-np.mean(score["logprobs"][1:]))
    assert score["perplexity"] == pytest.approx(np.exp(score["loss"]))


def test_pass_keys_in_real_text_far_beyond_the_trained_length(cluster: RunningCluster) -> None:
    """Eight times the model's trained length, 24 chosen blocks of 32 tokens. Plain RoPE finds none there."""
    with Client(cluster.address) as client:
        samples = make_samples(Material(text_haystack(), ServerCoder(client)), 4096, 5, seed=11)
        answers = [
            client.generate(sample.prompt_ids, max_new_tokens=ANSWER_TOKENS, temperature=0).result()
            for sample in samples
        ]
    found = [is_correct(answer.text, sample.answer) for answer, sample in zip(answers, samples, strict=True)]
    assert sum(found) >= 4, [answer.text for answer in answers]
    assert all(answer.usage.chosen_blocks == 24 for answer in answers)
    assert all(answer.usage.budget_tokens == 32 + 256 + 24 * 32 for answer in answers)


def test_two_clients_get_what_each_gets_alone_and_tokens_flow_while_a_long_prompt_prefills(
    cluster: RunningCluster,
) -> None:
    with Client(cluster.address) as client:
        # Together first, since what was read once is not read again; no other test begins at these places.
        long_prompt, short_prompt = (
            tokens_of_document(client, 6000, 33_000),
            tokens_of_document(client, 100, 9000),
        )
        long_options = {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True}
        short_options = {"max_new_tokens": 40, "temperature": 0.0, "ignore_eos": True}
        order: list[str] = []
        results: dict[str, tuple[int, ...]] = {}

        def run_long() -> None:
            stream = client.generate(long_prompt, **long_options)
            for event in stream:
                if isinstance(event, Progress):
                    order.append("progress")
            results["long"] = stream.result().token_ids

        short = client.generate(short_prompt, **short_options)
        thread = threading.Thread(target=run_long)
        for event in short:
            if isinstance(event, Token):
                order.append("token")
                if event.index == 0:
                    thread.start()
        results["short"] = short.result().token_ids
        thread.join()
        alone = [
            client.generate(long_prompt, **long_options).result().token_ids,
            client.generate(short_prompt, **short_options).result().token_ids,
        ]
    assert [results["long"], results["short"]] == alone
    first, last = order.index("progress"), len(order) - 1 - order[::-1].index("progress")
    assert order[first:last].count("token") >= 10, (
        "the short client's tokens stopped while the long prompt ran"
    )


def test_tokens_and_health_flow_while_long_texts_are_tokenised_and_others_fall_silent(
    cluster: RunningCluster,
) -> None:
    """One client sends 4 MiB to be tokenised and opens streams that never end; another is answered meanwhile."""
    text = (DOCUMENT.read_bytes() * 5)[: (4 << 20) - 100]
    over = threading.Event()

    def unfinished() -> Iterator[pb.GenerateRequest]:
        yield pb.GenerateRequest(parameters=pb.GenerateParameters())
        over.wait()

    with Client(cluster.address) as client, Client(cluster.address) as other, ExitStack() as silent:
        channel = silent.enter_context(grpc.insecure_channel(cluster.address))
        silent.callback(over.set)
        for _ in range(200):
            silent.callback(MoorageStub(channel).Generate(unfinished()).cancel)
        stream = other.generate([5, 6, 7], max_new_tokens=10_000, ignore_eos=True)
        events = iter(stream)
        assert isinstance(next(event for event in events if isinstance(event, Token)), Token)
        ids: list[int] = []
        work = threading.Thread(target=lambda: ids.extend(client.tokenize(text)))
        work.start()
        tokens = checks = 0
        while work.is_alive():
            tokens += isinstance(next(events, None), Token)
            checks += tokens % 20 == 0 and other.is_ready()
        work.join()
        stream.cancel()
    assert len(ids) > 1_000_000
    assert tokens >= 100, "the other client's tokens stopped while a long text was tokenised"
    assert checks >= 5


def test_a_conversation_is_continued_from_its_stored_kv(cluster: RunningCluster) -> None:
    with Client(cluster.address) as client:
        prompt = tokens_of_document(client, 1500)
        first = client.generate(
            prompt, session="talk", max_new_tokens=5, temperature=0, ignore_eos=True
        ).result()
        longer = [*prompt, *first.token_ids, *tokens_of_document(client, 50, 20000)]
        second = client.generate(longer, session="talk", max_new_tokens=5, temperature=0).result()
    assert second.usage.cached_tokens == 1408, "the whole execution blocks of the first prompt"


def test_what_is_wrong_is_told_and_the_server_goes_on(cluster: RunningCluster) -> None:
    with Client(cluster.address) as client:
        bad: list[tuple[type[Exception], str, dict[str, object]]] = [
            (InvalidRequest, "empty", {"prompt": ""}),
            (InvalidRequest, "vocabulary", {"prompt": [1, 99999]}),
            (InvalidRequest, "UTF-8", {"prompt": b"abc\xff"}),
            (InvalidRequest, "temperature", {"prompt": "a", "temperature": float("nan")}),
            (InvalidRequest, "max_seq_len", {"prompt": [5] * 40000}),
            (InvalidRequest, "preset", {"prompt": "a", "preset": "nothing"}),
            (InvalidRequest, "max_new_tokens", {"prompt": "a", "max_new_tokens": 0}),
        ]
        for error, says, arguments in bad:
            prompt = arguments.pop("prompt")
            with pytest.raises(error, match=says) as told:
                client.generate(prompt, **arguments).result()  # type: ignore[arg-type]
            assert "\n" not in str(told.value)
        assert len(client.generate("a b c", max_new_tokens=3, ignore_eos=True).result().token_ids) == 3


def test_a_deadline_ends_a_request_and_leaves_what_it_read_alone(cluster: RunningCluster) -> None:
    with Client(cluster.address) as client:
        prompt = tokens_of_document(client, 20000, 21_000)
        before = [actor.num_sessions for actor in client.status().kv_actors]
        with pytest.raises(DeadlineExceeded), Client(cluster.address, timeout_s=0.5) as hurried:
            hurried.generate(prompt, max_new_tokens=100).result()
        wait_until(lambda: client.status().running == 0)
        # What was read stays for the next prompt, and so does what that one reads; nothing else is left.
        answer = client.generate(prompt[:3000], max_new_tokens=3, ignore_eos=True).result()
        assert len(answer.token_ids) == 3
        wait_until(lambda: client.status().running == 0)
        after = [actor.num_sessions for actor in client.status().kv_actors]
        assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)


def test_a_prompt_larger_than_the_store_is_refused_with_what_would_fit(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    small = launch(
        tmp_path_factory.mktemp("small"), kv_store={"dram": "8MiB", "actors": 1}, memory={"preset": "full"}
    )
    try:
        with Client(small.address) as client:
            with pytest.raises(ResourceExhausted, match=r"kv_store\.dram .* enough for \d+ tokens"):
                client.generate([5] * 10000, max_new_tokens=5).result()
            assert len(client.generate([5] * 100, max_new_tokens=3, ignore_eos=True).result().token_ids) == 3
    finally:
        assert small.cli("stop").returncode == 0
