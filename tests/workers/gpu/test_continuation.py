"""A request means the same whatever was cached: every continued session equals a fresh one, token by token.

The coordinator's own rule (`runtime.reuse`) says how much of the stored KV the second request keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.workers.spec import (
    KEY_CODE_TOKENS,
    AnchorPool,
    AnchorSpace,
    AnchorType,
    ContinueSession,
    HeadPool,
    HeadSelectMode,
    MemorySpec,
    OpenSession,
    Positions,
    Preselect,
    RopeSpec,
    SamplingSpec,
    Segment,
    SegmentResult,
)
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import Driver, memory, spans
from tests.tiny_models import TinyModel, build_tiny_checkpoint

BLOCK, CHUNK = 8, 96
CHOOSING = {"topk": 2, "sinks": 8, "window": 24}
DYNAMIC_NTK = RopeSpec("dynamic", 10000.0, 64, 160, factor=2.0)

PRESETS: dict[str, MemorySpec] = {
    "full": memory(),
    "ktransformers": memory(**CHOOSING, importance_queries=20),
    "inf-llm": memory(**CHOOSING, scheme=Positions.CLAMPED, execution_block=24),
    "chunkllama": memory(
        scheme=Positions.DCA, pretraining_length=60, dca_chunk=48, mscale=0.1, mscale_length=60
    ),
    "chunkllama-plain": memory(scheme=Positions.DCA, pretraining_length=60, dca_chunk=48),
    "lmdeploy": memory(rope=DYNAMIC_NTK),
    "stream-llm": memory(scheme=Positions.ROLLING, topk=0, sinks=4, window=24),
    "infinite-lm": memory(scheme=Positions.CLAMPED, topk=0, sinks=10, window=24),
    "moorage": memory(**CHOOSING, last_tokens_alone=1),
    "moorage, selected": memory(**CHOOSING, execution_block=24, last_tokens_alone=1, dense_until=70),
    "preselected": memory(**CHOOSING, preselect=Preselect.PROMPT, preselect_blocks=6, importance_queries=20),
    "reusing": memory(**CHOOSING, layer_step=2, token_step=3, head_select_mode=HeadSelectMode.SEPARATE),
    "short": memory(topk=2, sinks=8, window=24, dense_until=400),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


class Talk:
    """One session on an engine, continued as the coordinator continues it."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.stored = driver, None
        self.cached = 0

    stored: StoredKv | None

    def ask(
        self,
        prompt: Sequence[int],
        axes: MemorySpec,
        num_tokens: int = 8,
        sampling: SamplingSpec | None = None,
        fresh: bool = False,
    ) -> list[SegmentResult]:
        """The answer; `fresh` asks in a session of its own, which leaves this one alone."""
        driver, ids = self.driver, tuple(prompt)
        drawn, session_id = sampling or SamplingSpec(), 2 if fresh else 1
        opening: OpenSession | ContinueSession = driver.open(session_id, ids, axes, num_tokens, drawn)
        kept = 0
        if self.stored is not None and not fresh:
            layout, rope = driver.stores[0].layout, driver.spec.rope
            kept = self.cached = reusable_tokens(self.stored, ids, axes, layout, rope)
            total = len(ids) + num_tokens
            counted = ids[:kept] if drawn.counts_tokens else ()
            opening = ContinueSession(session_id, kept, total, len(ids), axes, drawn, counted)
        opens: tuple[OpenSession | ContinueSession, ...] = (opening,)
        results: list[SegmentResult] = []
        first = min(len(ids), (kept // CHUNK + 1) * CHUNK) - kept
        for start, end in spans(len(ids), (first, CHUNK), kept):
            segment = Segment(session_id, start, ids[start:end], sample=end == len(ids))
            results = driver.step(opens=opens, segments=(segment,))
            opens = ()
        for place in range(len(ids), len(ids) + num_tokens - 1):
            token_id = results[-1].token_id
            assert token_id is not None
            results += driver.step(segments=(Segment(session_id, place, (token_id,), sample=True),))
        if fresh:
            driver.step(drops=(session_id,))
        else:
            self.stored = StoredKv(TokenIds(ids + tokens_of(results)[:-1]), len(ids), axes)
        return results


def tokens_of(results: Sequence[SegmentResult]) -> tuple[int, ...]:
    return tuple(result.token_id for result in results if result.token_id is not None)


def ids_of(model: TinyModel, length: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(2, model.spec.vocab_size, length).tolist()
    return found


def assert_same(got: Sequence[SegmentResult], want: Sequence[SegmentResult]) -> None:
    assert tokens_of(got) == tokens_of(want)
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-4)


def follow_ups(model: TinyModel, first: list[int], answer: tuple[int, ...], seed: int) -> list[list[int]]:
    """The next turn; the same prompt twice more, but for its end; another end from a cut in answer and prompt."""
    new = ids_of(model, 37, seed + 50)
    said = [*first, *answer]
    cuts = [said[: len(first) + 3], first[:-1], first[:121], first[:40]]
    return [[*said, *new], first, [*first[:146], 5], [*first[:146], 6, 7], *([*cut, *new] for cut in cuts)]


ANCHORS = (AnchorType.QUEST, AnchorType.DYNAMIC, AnchorType.REPR_TOPK)
CASES = [
    *(
        (name, anchor_type)
        for name in PRESETS
        for anchor_type in ANCHORS[:: 1 if PRESETS[name].selection.topk else 2]
    ),
    *(("moorage, selected", anchor_type) for anchor_type in AnchorType if anchor_type not in ANCHORS),
    ("single keys", AnchorType.KEY_CODES),
    ("single keys, selected", AnchorType.KEY_CODES),
    ("single keys, last tokens alone", AnchorType.KEY_CODES),
]
"""Every preset by anchors of keys and by those of attention; what selects, by all of them."""
SINGLE_KEYS = {
    "single keys": memory(sinks=8, window=24, topk_keys=16),
    "single keys, selected": memory(
        sinks=8, window=24, topk_keys=16, prefill_blocks=2, execution_block=24, dense_until=70
    ),
    "single keys, last tokens alone": memory(
        sinks=8,
        window=24,
        topk_keys=24,
        prefill_blocks=1,
        execution_block=24,
        last_tokens_alone=20,
        dense_until=70,
    ),
}


def driver_of(model: TinyModel, anchor_type: AnchorType, space: AnchorSpace = AnchorSpace.PLAIN) -> Driver:
    return Driver(
        model.directory,
        model.spec,
        block_size=KEY_CODE_TOKENS if anchor_type.codes_keys else BLOCK,
        anchor_type=anchor_type,
        anchor_space=space,
        num_pages=256,
    )


@pytest.mark.parametrize(("name", "anchor_type"), CASES)
def test_a_continued_session_equals_a_fresh_one(llama: TinyModel, name: str, anchor_type: AnchorType) -> None:
    axes, seed = (PRESETS | SINGLE_KEYS)[name], list(AnchorType).index(anchor_type)
    rotated = name in ("ktransformers", "lmdeploy", *SINGLE_KEYS)
    driver = driver_of(llama, anchor_type, AnchorSpace.ROTATED if rotated else AnchorSpace.PLAIN)
    first = ids_of(llama, 150, seed)
    talk = Talk(driver)
    answer = tokens_of(talk.ask(first, axes))
    for prompt in follow_ups(llama, first, answer, seed):
        want = talk.ask(prompt, axes, fresh=True)
        assert_same(talk.ask(prompt, axes), want)


@pytest.mark.parametrize("anchor_type", ANCHORS)
def test_a_session_may_change_its_preset_at_every_turn(llama: TinyModel, anchor_type: AnchorType) -> None:
    talk = Talk(driver_of(llama, anchor_type))
    names = np.random.default_rng(0).permutation(list(PRESETS)).tolist()
    said = ids_of(llama, 90, 1)
    cached = 0
    for turn, name in enumerate(names):
        want = talk.ask(said, PRESETS[name], 4, fresh=True)
        assert_same(talk.ask(said, PRESETS[name], 4), want)
        cached += talk.cached
        said += [*tokens_of(want), *ids_of(llama, 7, turn)]
    assert cached > 0


@pytest.mark.parametrize("name", ["full", "ktransformers", "moorage, selected"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSpec(repetition_penalty=1.3),
        SamplingSpec(presence_penalty=1.5, frequency_penalty=0.7),
        SamplingSpec(temperature=1.0, seed=5),
        SamplingSpec(temperature=0.8, seed=6, repetition_penalty=1.2, frequency_penalty=-0.5, top_p=0.9),
    ],
    ids=str,
)
def test_penalties_and_seeds_do_not_see_what_was_cached(
    llama: TinyModel, name: str, sampling: SamplingSpec
) -> None:
    """Cached prompt tokens count as prompt, an earlier turn's answer too; generation starts at its first draw."""
    axes = PRESETS[name]
    for seed in range(2):
        driver = driver_of(llama, AnchorType.DYNAMIC)
        talk = Talk(driver)
        first = ids_of(llama, 120, seed)
        answer = tokens_of(talk.ask(first, axes, 12, sampling))
        for prompt in ([*first, *answer, *ids_of(llama, 25, seed + 9)], [*first, *answer[:5], 7, 8, 9]):
            want = talk.ask(prompt, axes, 12, sampling, fresh=True)
            assert_same(talk.ask(prompt, axes, 12, sampling), want)
            assert name != "full" or talk.cached >= len(first)


SELECTED = memory(**CHOOSING, execution_block=24)
DUAL = PRESETS["chunkllama"]
FIELDS: dict[str, tuple[MemorySpec, object, bool]] = {
    "preset": (SELECTED, "another", False),
    "sinks": (SELECTED, 24, True),
    "window": (SELECTED, 40, True),
    "topk": (SELECTED, 5, True),
    "topk_keys": (memory(sinks=8, window=24), 16, False),
    "completion": (memory(sinks=8, window=24, topk_keys=16), False, False),
    "prefill_blocks": (SINGLE_KEYS["single keys, selected"], 3, True),
    "execution_block": (SELECTED, 48, True),
    "last_tokens_alone": (SELECTED, 9, True),
    "dense_layers": (SELECTED, 2, False),
    "preselect": (SELECTED.replace(preselect_blocks=6, importance_queries=1), Preselect.PROMPT, False),
    "head_select_mode": (SELECTED, HeadSelectMode.SEPARATE, True),
    "preselect_blocks": (
        SELECTED.replace(preselect=Preselect.PROMPT, preselect_blocks=4, importance_queries=1), 9, False,
    ),
    "layer_step": (SELECTED, 2, False),
    "token_step": (SELECTED, 3, False),
    "dense_until": (SELECTED, 400, True),
    "head_pool": (SELECTED, HeadPool.SOFTMAX, True),
    "anchor_pool": (SELECTED, AnchorPool.SUM, True),
    "importance_queries": (SELECTED, 9, False),
    "scheme": (SELECTED, Positions.CLAMPED, True),
    "rope": (SELECTED, RopeSpec("linear", 10000.0, 64, factor=3.0), True),
    "pretraining_length": (DUAL, 56, True),
    "dca_chunk": (DUAL, 40, True),
    "mscale": (DUAL, 0.2, True),
    "mscale_length": (DUAL, 30, True),
    "rebase_every": (memory(rope=DYNAMIC_NTK), 9, False),
    "verify": (memory(**CHOOSING), 3, False),
    "recall_every": (SELECTED, 1, False),
    "inspect": (SELECTED, True, False),
}  # fmt: skip
"""(a selection of memory, another value of the field, whether that changes what a prompt stores)."""


def test_every_field_of_memory_is_looked_at() -> None:
    assert list(FIELDS) == list(SELECTED.settings())


@pytest.mark.parametrize("name", FIELDS)
def test_kv_is_reused_just_where_another_choice_of_memory_stores_the_same(
    llama: TinyModel, name: str
) -> None:
    axes, value, shapes = FIELDS[name]
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK, anchor_num=2, num_shards=1)
    prompt = ids_of(llama, 145, 3)  # its last token is run again in any case
    other = axes.replace(**{name: value})
    made, wanted = (stored_kv(driver, prompt, each) for each in (axes, other))
    kept = reusable_tokens(
        StoredKv(TokenIds(prompt), len(prompt), axes), prompt, other, driver.stores[0].layout, llama.spec.rope
    )
    np.testing.assert_allclose(made[..., :kept, :], wanted[..., :kept, :], atol=1e-4)
    assert (kept < 144) == shapes
    if shapes:
        assert np.abs(made - wanted).max() > 1e-2


def stored_kv(driver: Driver, prompt: list[int], axes: MemorySpec) -> NDArray[np.float32]:
    """[layers, 2, heads, tokens, D] of the prompt, as the store holds it."""
    segments = (
        Segment(1, start, tuple(prompt[start:end]), sample=False)
        for start, end in spans(len(prompt), (CHUNK,))
    )
    opens: tuple[OpenSession, ...] = (driver.open(1, prompt, axes),)
    for segment in segments:
        driver.step(opens=opens, segments=(segment,))
        opens = ()
    store, num_blocks = driver.stores[0], -(-len(prompt) // BLOCK)
    blocks = np.arange(num_blocks, dtype=np.int32)
    layers = []
    for layer in range(driver.spec.num_layers):
        out = np.empty((num_blocks, *store.arena.kv.shape[2:]), np.float32)
        store.shard.gather(1, layer, blocks, out, blocks)
        layers.append(
            out.transpose(1, 2, 0, 3, 4).reshape(*out.shape[1:3], -1, out.shape[-1])[:, :, : len(prompt)]
        )
    driver.step(drops=(1,))
    return np.stack(layers)
