"""Targets on a real server and in this process behave alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.client import Client
from moorage.runtime.evals.asking import Question, ask
from moorage.runtime.evals.haystack import garbage_haystack
from moorage.runtime.evals.local_targets import LocalConfig, LocalTargets
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.runner import run
from moorage.runtime.evals.targets import ServerCoder, ServerTargets
from moorage.runtime.evals.tasks import Suite
from moorage.runtime.evals.variants import Variant, check_names, parse_variant
from moorage.workers.errors import InvalidConfig, InvalidRequest
from tests.toy_engine import BOS, VOCAB_SIZE, ToyEngine
from tests.toy_server import toy_server

CONFIG = Path(__file__).parents[3] / "deploy" / "local.yaml"
MODEL = CONFIG.parent / "models" / "moorage-pilot"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with toy_server(engine=ToyEngine()) as running, Client(running.address) as client:
        yield client


def test_server_coder_is_the_servers_tokenizer(client: Client) -> None:
    coder = ServerCoder(client)
    assert coder.encode("a b") == [97, 32, 98]
    assert coder.decode([97, 32, 98]) == "a b"
    assert coder.decode([]) == ""
    assert coder.prefix() == [BOS]


def test_server_target_generates_and_scores(client: Client) -> None:
    targets = ServerTargets(client)
    assert (targets.model, targets.labels, targets.settings("full")) == ("toy", ("full",), {"preset": "full"})
    target = targets.at("full", None)
    answer = target.generate([97, 98, 99], 2)
    assert (answer.text, answer.recall, answer.budget_tokens) == ("ab", None, 0)
    assert target.score([BOS, 97, 98]) == pytest.approx([-97 / VOCAB_SIZE, -98 / VOCAB_SIZE])
    assert target.room == 4096
    with pytest.raises(InvalidRequest, match="room for 4096"):
        ask(target, Question([97] * 4090, 7, ("",), lambda _output, _answers: 1.0))


def test_local_target_counts_like_the_server() -> None:
    variants = [
        Variant("full", "full"),
        Variant("inf-llm", "inf-llm"),
        parse_variant("few:long_context.second_select_num=4"),
    ]
    targets = LocalTargets(LocalConfig(CONFIG, None), variants, room=600)
    target = targets.at("full", 600)
    prompt = [*target.prefix(), *target.encode("The grass is green. " * 60)][:500]
    answer = target.generate(prompt, 4)
    logprobs = target.score(prompt)
    assert len(logprobs) == len(prompt) - 1
    assert max(logprobs) <= 0
    assert answer.budget_tokens == 0
    assert targets.at("few", 600).generate(prompt, 2).budget_tokens == 32 + 256 + 4 * 32
    assert targets.settings("few")["memory"]["topk"] == 4
    assert {"n_init", "positions", "exc_block_size", "rope"} <= targets.settings("few")["memory"].keys()
    targets.close()


def test_scoring_agrees_with_generating() -> None:
    """The likeliest continuation is the one that is drawn."""
    targets = LocalTargets(LocalConfig(CONFIG, None), [Variant("full", "full")], room=300)
    target = targets.at("full", None)
    prompt = [
        *target.prefix(),
        *target.encode("The pass key is 12345. What is the pass key? The pass key is"),
    ]
    drawn = target.encode(target.generate(prompt, 6).text)
    best = target.score([*prompt, *drawn])[-len(drawn) :]
    other = target.score([*prompt, *target.encode(" 54321.")])[-len(drawn) :]
    assert sum(best) > sum(other)
    targets.close()


def test_room_of_one_variant_serves_another_when_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from moorage.runtime.evals import local_targets

    loaded = []
    engine_class = local_targets.LocalEngine
    monkeypatch.setattr(
        local_targets, "LocalEngine", lambda *a, **k: loaded.append(1) or engine_class(*a, **k)
    )
    names = {
        "many": "long_context.second_select_num=32",
        "few": "long_context.second_select_num=8",
        "small": "long_context.block_size=16",
    }
    targets = LocalTargets(
        LocalConfig(CONFIG, None), [Variant(name, None, (key,)) for name, key in names.items()], room=128
    )
    for label, count in (("many", 1), ("few", 1), ("many", 1), ("small", 2)):
        target = targets.at(label, 128)
        target.generate(target.encode("one two three"), 2)
        assert len(loaded) == count
    targets.close()


def test_a_model_alone_is_enough() -> None:
    targets = LocalTargets(LocalConfig(None, MODEL, ["model.dtype=float32", "memory.preset=full"]), room=64)
    assert (targets.model, targets.labels) == ("moorage-pilot", ("full",))
    assert targets.at("full", 64).generate([1, 2, 3], 2).text is not None
    targets.close()


def test_what_does_not_fit_is_refused_before_weights() -> None:
    with pytest.raises(InvalidConfig, match="topk"):
        LocalTargets(LocalConfig(CONFIG, None), [parse_variant("odd:memory.topk=4")])
    with pytest.raises(InvalidRequest, match="no such preset"):
        LocalTargets(LocalConfig(CONFIG, None), [Variant("fast", "fast")])
    with pytest.raises(InvalidRequest, match="few: named twice"):
        check_names([Variant("few"), Variant("few")])


@pytest.mark.parametrize(
    ("text", "name", "overrides"),
    [
        ("plain:", "plain", ()),
        ("a:memory.topk=4", "a", ("memory.topk=4",)),
        ("b:memory.topk=4, memory.n_init=0", "b", ("memory.topk=4", "memory.n_init=0")),
        (
            "pi:memory.rope_scaling={rope_type: linear, factor: {scale}},memory.topk=2",
            "pi",
            ("memory.rope_scaling={rope_type: linear, factor: {scale}}", "memory.topk=2"),
        ),
    ],
)
def test_variants_are_read(text: str, name: str, overrides: tuple[str, ...]) -> None:
    assert parse_variant(text) == Variant(name, None, overrides)


@pytest.mark.parametrize("text", ["", "name", ":memory.topk=4", "a:topk=4", "a:memory.topk"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="NAME:section"):
        parse_variant(text)


def test_scale_follows_the_length() -> None:
    variant = parse_variant("pi:memory.distance_scale={scale}")
    scales = [variant.overrides_at(length, 512)[0].split("=")[1] for length in (None, 256, 512, 768, 2048)]
    assert scales == ["1", "1", "1", "1.5", "4"]


def test_variants_stand_side_by_side() -> None:
    task = Passkey(garbage_haystack(), Style.GARBAGE, (256, 512), 2)
    variants = [Variant("full", "full"), parse_variant("two:long_context.second_select_num=2")]
    targets = LocalTargets(LocalConfig(CONFIG, None), variants, room=512)
    report = run(Suite("passkey", (task,)), targets).as_json()
    targets.close()
    assert report["preset"] == "full, two"
    assert [(row["preset"], row["length"], row["samples"]) for row in report["rows"]] == [
        ("full", 256, 2),
        ("full", 512, 2),
        ("two", 256, 2),
        ("two", 512, 2),
    ]
    assert report["means"]["full"] == 1.0
