"""Layers that attend a sliding window, on an engine, against transformers and against sessions that are alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.workers.errors import InvalidRequest, NotFinite, ResourceExhausted
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.spec import KvType, MemorySpec, OpenSession, SamplingSpec, Segment, WindowLayout
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint, random_prompt
from tests.workers.gpu.test_overlap import emulated

WINDOW = 24
WINDOWS = {
    "every layer": ("mistral", {"sliding_window": WINDOW}),
    "one token": ("mistral", {"sliding_window": 1}),
    "last layers": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "a block and a token": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 65, "max_window_layers": 0},
    ),
}


@pytest.fixture(autouse=True)
def _short_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings begin anew within a test's prompt."""
    monkeypatch.setattr("moorage.workers.spec.window.RING_MARGIN", 0)


@pytest.fixture(scope="module", params=WINDOWS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    family, fields = WINDOWS[request.param]
    return build_tiny_checkpoint(family, tmp_path_factory.mktemp("window"), **fields)


def logprobs(model: TinyModel, ids: torch.Tensor) -> torch.Tensor:
    """transformers' log-probability of each token but the first."""
    rows = torch.log_softmax(model.logits(ids)[:-1], dim=-1)
    return rows.gather(1, ids[1:, None])[:, 0]


@pytest.mark.parametrize("chunks", [(300,), (1, 63, 64, 65, 7, 100), (17,)], ids=str)
def test_prefill_equals_transformers(model: TinyModel, chunks: Sequence[int]) -> None:
    prompt = random_prompt(model.spec, 300)
    found = Driver(model.directory, model.spec).prompt_logprobs(prompt.tolist(), memory(), chunks)
    torch.testing.assert_close(found, logprobs(model, prompt), atol=2e-4, rtol=0)


def test_generated_tokens_equal_transformers(model: TinyModel) -> None:
    """Over more than a ring, from a prompt that is shorter than the window and from a longer one."""
    driver, ids = Driver(model.directory, model.spec), random_prompt(model.spec, 280)
    expected = torch.log_softmax(model.logits(ids), dim=-1)
    for first in (3, 150):
        found = fed(driver, {1: (ids.tolist(), first)}, len(ids) - first)[1]
        torch.testing.assert_close(found, expected[first - 1 :], atol=5e-4, rtol=0)


def fed(
    driver: Driver, sessions: dict[int, tuple[list[int], int]], num_tokens: int, chunk: int = 1000
) -> dict[int, torch.Tensor]:
    """Log-probabilities [num_tokens + 1, vocab] of sessions that decode together.

    Each has (ids, prompt tokens); the ids after its prompt are what it generates, whatever was sampled.
    """
    sampling = SamplingSpec(num_logprobs=driver.spec.vocab_size)
    rows: dict[int, list[torch.Tensor]] = {session_id: [] for session_id in sessions}

    def run(segments: list[Segment], opens: tuple[OpenSession, ...] = ()) -> None:
        for result in driver.step(segments=tuple(segments), opens=opens):
            row = torch.full((driver.spec.vocab_size,), torch.nan)
            for token_id, logprob in result.top_logprobs:
                row[token_id] = logprob
            rows[result.session_id].append(row)

    for session_id, (ids, prompt) in sessions.items():
        opens: tuple[OpenSession, ...] = (
            OpenSession(session_id, prompt + num_tokens, prompt, memory(), sampling),
        )
        for start in range(0, prompt, chunk):
            end = min(prompt, start + chunk)
            run([Segment(session_id, start, tuple(ids[start:end]), sample=end == prompt)], opens)
            opens = ()
    for step in range(num_tokens):
        run(
            [
                Segment(session_id, prompt + step, (ids[prompt + step],), sample=True)
                for session_id, (ids, prompt) in sessions.items()
            ]
        )
    driver.step(drops=tuple(sessions))
    # A chunk that samples nothing has a row of NaN.
    return {each: torch.stack(found[-num_tokens - 1 :]) for each, found in rows.items()}


@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32, KvType.NUQ3])
def test_sessions_of_a_batch_get_what_they_get_alone(model: TinyModel, kv_type: KvType) -> None:
    driver = Driver(model.directory, model.spec, kv_type=kv_type)
    sessions = {
        number + 1: (random_prompt(model.spec, first + 70, number).tolist(), first)
        for number, first in enumerate((1, 40, 130, 200))
    }
    # What the linear layers round otherwise in a batch is rounded up or down to fp16.
    tolerance = 2e-5 if kv_type is KvType.FP32 else 2e-3
    together = fed(driver, sessions, 70)
    for session_id, session in sessions.items():
        alone = fed(driver, {session_id: session}, 70)[session_id]
        torch.testing.assert_close(together[session_id], alone, atol=tolerance, rtol=0)


def test_a_prompt_is_prefilled_while_another_session_generates(model: TinyModel) -> None:
    driver = Driver(model.directory, model.spec)
    first, second = (random_prompt(model.spec, 150, seed).tolist() for seed in (1, 2))
    alone = [driver.generate(prompt, chunks=(50,), num_tokens=4) for prompt in (first, second)]
    opens = [driver.open(1, first, max_new_tokens=4), driver.open(2, second, max_new_tokens=4)]
    mixed: dict[int, list[int | None]] = {1: [], 2: []}

    def run(*segments: Segment, opening: tuple[OpenSession, ...] = ()) -> None:
        for result in driver.step(segments=segments, opens=opening):
            if result.token_id is not None:
                mixed[result.session_id].append(result.token_id)

    def next_of(session_id: int) -> Segment:
        made = mixed[session_id]
        return Segment(session_id, 149 + len(made), (made[-1] or 0,), sample=True)

    run(Segment(1, 0, tuple(first), sample=True), opening=(opens[0],))
    run(next_of(1), Segment(2, 0, tuple(second[:50]), sample=False), opening=(opens[1],))
    run(Segment(2, 50, tuple(second[50:100]), sample=False), next_of(1))
    run(next_of(1), Segment(2, 100, tuple(second[100:]), sample=True))
    for _ in range(3):
        run(next_of(2))
    assert [mixed[1], mixed[2]] == [[each.token_id for each in results] for results in alone]


def test_a_step_that_fails_leaves_the_windows_as_they_were(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass of both sessions raises at its end; each then goes alone, over the same past."""
    driver = Driver(model.directory, model.spec)
    prompts = {session_id: random_prompt(model.spec, 200, session_id).tolist() for session_id in (1, 2)}
    expected = {each: driver.generate(prompt, chunks=(90,), num_tokens=1) for each, prompt in prompts.items()}
    opens = tuple(driver.open(session_id, prompt) for session_id, prompt in prompts.items())
    driver.step(
        opens=opens, segments=[Segment(each, 0, tuple(ids[:90]), False) for each, ids in prompts.items()]
    )
    output, calls = driver.worker.engine._forward._output, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the output fails once")
        return output(*arguments)

    monkeypatch.setattr(driver.worker.engine._forward, "_output", failing)
    segments = [Segment(each, 90, tuple(ids[90:]), True) for each, ids in prompts.items()]
    found = {result.session_id: result.token_id for result in driver.step(segments=segments)}
    assert calls == 3
    assert found == {each: results[-1].token_id for each, results in expected.items()}


def test_a_value_beyond_the_stored_type_fails_its_session_alone(tmp_path: Path) -> None:
    """The first layer's value of one token is too large for fp16."""
    model = build_tiny_checkpoint("mistral", tmp_path, sliding_window=WINDOW)
    driver = Driver(model.directory, model.spec, kv_type=KvType.FP16)
    weights = driver.worker.decoder.weights
    v_rows = weights.layers[0].qkv[-model.spec.head_dim :]
    normed = torch.nn.functional.rms_norm(
        weights.embed[7], (model.spec.hidden_size,), weights.layers[0].input_norm.weight
    )
    v_rows.copy_(v_rows + 1e6 * normed / normed.square().sum())
    other = next(each for each in range(20) if abs(float(weights.embed[each] @ weights.embed[7])) < 3)
    assert other != 7
    with pytest.raises(NotFinite, match="layer 0"):
        driver.generate([other, 7, other], num_tokens=1)


def test_rings_are_reserved_when_sessions_open_and_free_when_they_end(model: TinyModel) -> None:
    driver = Driver(model.directory, model.spec, num_rings=2)
    prompt = random_prompt(model.spec, 20).tolist()
    for session_id in (1, 2):
        driver.step(
            opens=(driver.open(session_id, prompt),), segments=(Segment(session_id, 0, prompt, False),)
        )
    with pytest.raises(ResourceExhausted, match="all 2 rings of sliding-window layers"):
        driver.step(opens=(driver.open(3, prompt),), segments=(Segment(3, 0, prompt, False),))
    driver.step(idles=(1,), drops=(2,))
    driver.step(opens=(driver.open(3, prompt),), segments=(Segment(3, 0, prompt, False),))
    driver.step(drops=(1, 3))
    assert driver.worker.engine._table._rings.num_free == 2


def test_stores_have_room_for_the_other_layers_alone(model: TinyModel) -> None:
    driver = Driver(model.directory, model.spec)
    stored = len(model.spec.stored_layers)
    assert driver.stores[0].layout.num_layers == max(1, stored)
    assert (
        driver.worker.engine._table._rings.layers.nbytes
        == 8 * driver.worker.engine._table._rings.layout.ring_bytes
    )


def test_a_continued_session_equals_a_fresh_one_as_far_back_as_its_window_is_held(
    model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's own rule says how much is kept; beyond it the worker refuses."""
    monkeypatch.setattr("moorage.workers.spec.window.RING_MARGIN", 100)
    driver, prompt = Driver(model.directory, model.spec), random_prompt(model.spec, 400).tolist()
    windows = WindowLayout.of(model.spec, driver.stores[0].layout)
    driver.generate(prompt, chunks=(130,), num_tokens=4, keep=True)
    first = windows.first_held(403)
    for kept in (400, 399, 310, 304):
        asked = [*prompt[:kept], *random_prompt(model.spec, 20, kept).tolist()]
        stored = StoredKv(TokenIds(prompt), len(prompt), memory(), first)
        layout = driver.stores[0].layout
        assert reusable_tokens(stored, asked, memory(), layout, windows=windows) == kept
        driver.step(idles=(1,))
        found = driver.generate(asked, num_tokens=6, continued=kept, keep=True)
        fresh = driver.generate(asked, num_tokens=6, session_id=2)
        assert [each.token_id for each in found] == [each.token_id for each in fresh]
        assert [each.logprob for each in found] == pytest.approx([each.logprob for each in fresh], abs=1e-4)
    assert driver.worker.engine.sessions[1].ring.first_held == first
    gone = first + windows.window - 2
    with pytest.raises(InvalidRequest, match=f"the window before token {gone} is no longer held"):
        driver.generate(prompt, num_tokens=1, continued=gone)


BACKENDS = ("host", "device", "hybrid", "tables")


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("mistral", memory()),
        ("gemma2", memory()),
        ("gemma2", memory(topk=2, sinks=8, window=24)),
        ("gpt_oss", memory(topk=2, sinks=8, window=24)),
    ],
    ids=["mistral", "gemma2", "gemma2, selected", "gpt_oss, selected"],
)
def test_every_backend_attends_alike(
    family: str, axes: MemorySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows, soft caps and sinks: by the host, by device slots, by both, and by the kernels of a GPU."""
    fields = {"sliding_window": WINDOW} if family == "mistral" else {}
    model = build_tiny_checkpoint(family, tmp_path, **fields)
    prompt, found = random_prompt(model.spec, 80).tolist(), []
    for backend in BACKENDS:
        if backend == "tables":
            pytest.importorskip("triton")
            monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
        settings: dict[str, Any] = {} if backend == "host" else {"in_place": False}
        settings |= {"attend_on": "cpu"} if backend == "hybrid" else {}
        settings |= {"copies": emulated} if backend == "tables" else {}
        driver = Driver(model.directory, model.spec, **settings)
        found.append(driver.generate(prompt, axes.replace(recall_every=1), (64,), 3))
    for other in found[1:]:
        assert [each.token_id for each in other] == [each.token_id for each in found[0]]
        assert [each.logprob for each in other] == pytest.approx(
            [each.logprob for each in found[0]], abs=2e-4
        )
        assert [each.recall for each in other] == pytest.approx([each.recall for each in found[0]], abs=1e-3)
