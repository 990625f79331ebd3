"""Single keys whose rows the stores send: the choice and the attention of their definition, on every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from moorage.kernels.key_codes import reference as key_codes
from moorage.kernels.key_select.cpu import key_values
from moorage.kernels.key_select.reference import best_keys, complete, log_sum_exp, unpack_codes
from moorage.kernels.merge_lse.reference import merge_lse
from moorage.workers.errors import MoorageError, NotFound
from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.device_slots import DeviceSlotAttention
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.positions.reference import pair_positions
from moorage.workers.gpu.selection.queries import attention_scale
from moorage.workers.gpu.selection.reuse import selects_keys
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.messages import KeyReply, KeyRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    KvType,
    MemorySpec,
    OpenSession,
    Positions,
    SamplingSpec,
    Segment,
    StepPlan,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import FarLink, check_same, emulated

KEYS = memory(topk_keys=20, sinks=16)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def driver_of(model: TinyModel, **options: Any) -> Driver:
    options = {
        "anchor_type": AnchorType.KEY_CODES,
        "anchor_space": AnchorSpace.ROTATED,
        "in_place": False,
    } | options
    return Driver(model.directory, model.spec, **options)


class ByDefinition:
    """Compares a layer of decode with the definition, computed from the rows that the stores hold."""

    def __init__(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        self._driver, self._layout = driver, driver.stores[0].layout
        self.compared = 0
        self._outs: torch.Tensor | None = None
        forward = DeviceSlotAttention.forward

        def kept(backend: DeviceSlotAttention, *arguments: Any) -> torch.Tensor:
            self._outs = forward(backend, *arguments)
            return self._outs

        monkeypatch.setattr(DeviceSlotAttention, "forward", kept)
        driver.worker.engine.observe(self)

    def __call__(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        if not selects_keys(step, layer):
            assert step.row not in attended.keys
            return
        (keys, values), size, ranges = self._rows(step, layer), self._layout.block_size, step.ranges
        query = attended.queries.plain[step.row].double().numpy()
        exact = self._exact_logits(step, layer, query, keys)
        first, end = ranges.num_sinks * size, ranges.near_block * size
        always = np.concatenate((np.arange(first), np.arange(end, ranges.position + 1)))
        codes, means = self._codes(step, keys[first:end], values[first:end], first)
        scale, num_kv_heads = attention_scale(step.session, layer), self._layout.num_kv_heads
        mean_values = unpack_codes(codes, num_kv_heads, size, self._layout.head_dim).mean_values
        blocks = [slice(at, at + 1) for at in range(len(codes))]
        meeting = [self._meeting(step, query, first + at * size) for at in range(len(codes))]
        how = {"block_size": size, "scale": scale}
        near = log_sum_exp(exact[:, always])
        positions = self._best(step, codes, means, meeting, near, scale, first)
        np.testing.assert_array_equal(attended.keys[step.row], positions)
        rests = [
            complete(means[b], mean_values[b], q, positions, **how, first=first + b.start * size)
            for b, q in zip(blocks, meeting, strict=True)
        ]
        rest, rest_lse = merge_lse(*(np.array(each) for each in zip(*rests, strict=True)))
        assert self._outs is not None
        for head in range(len(query)):
            of_group = head // (len(query) // num_kv_heads)
            seen = np.concatenate((always, positions[of_group]))
            lse = float(log_sum_exp(exact[head, seen]))
            assert float(attended.lse[step.row, head]) == pytest.approx(lse, abs=1e-4)
            whole = np.logaddexp(lse, rest_lse[head])
            out = np.exp(exact[head, seen] - whole) @ values[seen, of_group]
            out += np.exp(rest_lse[head] - whole) * rest[head]
            np.testing.assert_allclose(self._outs[step.row, head], out, atol=1e-4)
        self.compared += 1

    def _rows(self, step: DecodeStep, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values, each [T, Hkv, D] in fp64."""
        size, count = self._layout.block_size, step.ranges.position + 1
        blocks = np.arange(-(-count // size), dtype=np.int32)
        stored = np.dtype(np.uint16 if self._layout.element == "float16" else np.float32)
        out = np.zeros((len(blocks), 2, *self._layout.block_shape), stored)
        self._driver.worker._kv.gather(step.session.session_id, layer, blocks, out, blocks)
        rows = out.view(np.float16 if stored == np.uint16 else np.float32).astype(np.float64)
        keys, values = rows.transpose(1, 0, 3, 2, 4).reshape(2, -1, *rows.shape[2::2])[:, :count]
        return keys, values

    def _codes(
        self, step: DecodeStep, keys: np.ndarray, values: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(codes, means [n, Hkv, D]) of whole blocks from token `first` on."""
        layout, size = self._layout, self._layout.block_size
        rows = np.stack((keys, values)).reshape(2, -1, size, *keys.shape[1:]).transpose(1, 0, 3, 2, 4)
        kv = np.ascontiguousarray(rows, np.float32)
        if layout.element == "float16":
            kv = kv.astype(np.float16).view(np.uint16)
        means = np.zeros((len(kv), layout.num_kv_heads, 1, layout.head_dim), kv.dtype)
        codes = np.zeros((len(kv), layout.code_bytes), np.uint8)
        turns = None
        if layout.anchor_space is AnchorSpace.ROTATED:
            angles = np.outer(first + np.arange(len(keys)), step.session.rotations.view.inv_freq)
            angles = angles.reshape(len(kv), size, -1)
            turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        key_codes.encode_keys(kv, means, codes, np.arange(len(kv), dtype=np.int32), turns)
        halves = means.view(np.float16) if means.dtype == np.uint16 else means
        return codes, halves[:, :, 0]

    def _best(
        self,
        step: DecodeStep,
        codes: np.ndarray,
        means: np.ndarray,
        meeting: list[np.ndarray],
        near: np.ndarray,
        scale: float,
        first: int,
    ) -> np.ndarray:
        """[Hkv, k] positions of the best keys, each block met by its own queries, by the stores' kernel."""
        layout, size = self._layout, self._layout.block_size
        values = np.zeros((layout.num_kv_heads, len(codes) * size), np.float32)
        stored = means[:, :, None].view(np.uint16) if means.dtype == np.float16 else means[:, :, None]
        for block, query in enumerate(meeting):
            key_values(
                np.ascontiguousarray(stored), codes, np.array([block], np.int32), query.astype(np.float32),
                near.astype(np.float32), scale=scale, block_size=size, out=values, first=block * size,
            )  # fmt: skip
        return first + np.array([best_keys(of_head, step.selection.topk_keys) for of_head in values])

    def _meeting(self, step: DecodeStep, query: np.ndarray, key: int) -> np.ndarray:
        """The query [Hq, D] as it meets the code of the key at a position."""
        pair = pair_positions(step.memory, self._layout.block_size, step.ranges.position, key)
        assert pair is not None
        if step.memory.positions.scheme is Positions.CLAMPED:
            return turned(step, query, np.full(len(query), pair[0]))
        if self._layout.anchor_space is AnchorSpace.PLAIN:
            return query
        return turned(step, query, np.full(len(query), pair[0] - pair[1] + key))

    def _exact_logits(self, step: DecodeStep, layer: int, query: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[Hq, T]: every key as the scheme's definition shows it to the query."""
        session, position, count = step.session, step.ranges.position, len(keys)
        found = [pair_positions(step.memory, self._layout.block_size, position, at) for at in range(count)]
        pairs = np.array([pair for pair in found if pair is not None])
        group = len(query) // keys.shape[1]
        products = []
        for head, one in enumerate(query):
            seen = turned(step, np.tile(one, (count, 1)), pairs[:, 0])
            products.append((seen * turned(step, keys[:, head // group], pairs[:, 1])).sum(1))
        logits = attention_scale(session, layer) * np.array(products)
        cap = session.softcap
        return cap * np.tanh(logits / cap) if cap else logits


def turned(step: DecodeStep, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x [n, D] in fp64 with row i at positions[i]."""
    angles = np.outer(positions, step.session.rotations.view.inv_freq)
    half = angles.shape[1]
    pairs = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * angles)
    return np.concatenate((pairs.real, pairs.imag, x[:, 2 * half :]), axis=1)


@pytest.mark.parametrize("space", list(AnchorSpace))
@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
def test_the_choice_and_the_attention_of_the_definition(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch, positions: Positions, space: AnchorSpace
) -> None:
    axes = KEYS.replace(scheme=positions, pretraining_length=60, dca_chunk=48)
    driver = driver_of(llama, anchor_space=space, num_shards=1)
    compare = ByDefinition(driver, monkeypatch)
    driver.generate(prompt_of(llama, 180), axes, (64,), 6)
    assert compare.compared == 5 * llama.spec.num_layers


@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32])
@pytest.mark.parametrize("link", [LocalLink, FarLink])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_stores_of_this_host_and_of_others(
    llama: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    kv_type: KvType,
    link: Callable[[KvStore], LocalLink],
    num_shards: int,
) -> None:
    driver = driver_of(llama, link=link, num_shards=num_shards, kv_type=kv_type)
    compare = ByDefinition(driver, monkeypatch)
    driver.generate(prompt_of(llama, 180), KEYS, (64,), 4)
    assert compare.compared == 3 * llama.spec.num_layers


@pytest.mark.parametrize("options", [{"attend_on": "cpu"}, {"copies": emulated}, {"prefetch": True}])
def test_every_way_of_blocks_to_the_device(llama: TinyModel, options: dict[str, Any]) -> None:
    check_same(driver_of(llama, **options), driver_of(llama), prompt_of(llama, 180), KEYS)


@pytest.mark.parametrize(
    ("positions", "space"),
    [
        (Positions.ROPE, AnchorSpace.ROTATED),
        (Positions.ROPE, AnchorSpace.PLAIN),
        (Positions.CLAMPED, AnchorSpace.PLAIN),
        (Positions.DCA, AnchorSpace.ROTATED),
    ],
)
def test_the_compiled_call_in_mapped_memory_attends_the_same_keys(
    llama: TinyModel, positions: Positions, space: AnchorSpace
) -> None:
    axes = KEYS.replace(scheme=positions, pretraining_length=60, dca_chunk=48)
    found = []
    for in_place in (True, False):
        driver = driver_of(llama, in_place=in_place, anchor_space=space, kv_type=KvType.FP16)
        seen: list[tuple[int, np.ndarray, np.ndarray]] = []

        def told(step: DecodeStep, layer: int, attended: Attended, seen: list[Any] = seen) -> None:
            seen.append((layer, attended.keys[step.row].copy(), attended.lse[step.row].numpy().copy()))

        driver.worker.engine.observe(told)
        found.append((driver.generate(prompt_of(llama, 180), axes, (64,), 5), seen))
    (got, of_call), (want, of_slots) = found
    for (layer, keys, lse), (same_layer, same_keys, same_lse) in zip(of_call, of_slots, strict=True):
        assert layer == same_layer
        np.testing.assert_array_equal(keys, same_keys)
        np.testing.assert_allclose(lse, same_lse, atol=1e-4)
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-4)  # type: ignore[arg-type]
    assert [r.token_id for r in got] == [r.token_id for r in want]
    assert got[-1].num_selected_keys == want[-1].num_selected_keys


def test_as_many_keys_as_there_are_give_full_attention(llama: TinyModel) -> None:
    """Where all candidates are selected nothing is left to complete, so that none are selected at all."""
    every = KEYS.replace(topk_keys=1000)
    got, want = (
        driver_of(llama).generate(prompt_of(llama, 140), axes, (64,), 6) for axes in (every, memory())
    )
    assert [each.token_id for each in got] == [each.token_id for each in want]
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-4)  # type: ignore[arg-type]


def test_dense_layers_and_short_contexts_attend_everything(llama: TinyModel) -> None:
    driver, layers = driver_of(llama), set[int]()

    def told(_step: DecodeStep, layer: int, attended: Attended) -> None:
        layers.update({layer} if attended.keys else ())

    driver.worker.engine.observe(told)
    driver.generate(prompt_of(llama, 150), KEYS.replace(dense_layers=1), (64,), 3)
    assert layers == set(range(1, llama.spec.num_layers))
    layers.clear()
    driver.generate(prompt_of(llama, 150), KEYS.replace(dense_until=152), (64,), 3)
    assert layers == set()


def test_what_was_attended_is_counted_in_blocks(llama: TinyModel) -> None:
    results = driver_of(llama).generate(prompt_of(llama, 180), KEYS, (64,), 3)
    assert [result.num_selected_keys for result in results[-2:]] == [20] * 2


def test_recall_is_of_sinks_window_and_keys(llama: TinyModel) -> None:
    few, most = (
        driver_of(llama).generate(
            prompt_of(llama, 180), KEYS.replace(topk_keys=keys, recall_every=1), (64,), 4
        )
        for keys in (4, 100)
    )
    shares = [[result.recall for result in results if result.recall is not None] for results in (few, most)]
    assert all(0 < low < high <= 1 + 1e-5 for low, high in zip(*shares, strict=True))


def step_of(driver: Driver, number: int, **plan: Any) -> list[Any]:
    return list(driver.worker.step(StepPlan(number, **plan)).segments)


def prefilled(driver: Driver, prompts: dict[int, Sequence[int]], axes: MemorySpec) -> dict[int, int]:
    """Opens sessions and prefills them; their first tokens."""
    first = {}
    for number, (session_id, prompt) in enumerate(prompts.items()):
        opening = OpenSession(session_id, len(prompt) + 9, len(prompt), axes, SamplingSpec())
        segment = Segment(session_id, 0, tuple(prompt), sample=True)
        (result,) = step_of(driver, number, opens=(opening,), segments=(segment,))
        first[session_id] = result.token_id
    return first


@pytest.mark.parametrize("link", [LocalLink, FarLink])
def test_sessions_of_one_step_get_what_each_gets_alone(
    llama: TinyModel, link: Callable[[KvStore], LocalLink]
) -> None:
    prompts = {1: prompt_of(llama, 180), 2: prompt_of(llama, 130, 1), 3: prompt_of(llama, 90, 2)}
    alone = {
        session_id: [r.token_id for r in driver_of(llama).generate(prompt, KEYS, (), 4)]
        for session_id, prompt in prompts.items()
    }
    driver = driver_of(llama, link=link)
    tokens = {session_id: [token] for session_id, token in prefilled(driver, prompts, KEYS).items()}
    for place in range(3):
        segments = tuple(
            Segment(session_id, len(prompts[session_id]) + place, (found[-1],), sample=True)
            for session_id, found in tokens.items()
        )
        for result in step_of(driver, 10 + place, segments=segments):
            assert result.error is None
            tokens[result.session_id].append(result.token_id)
    assert tokens == alone


def test_a_session_whose_store_fails_fails_alone(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {1: prompt_of(llama, 180), 2: prompt_of(llama, 130, 1)}
    driver = driver_of(llama, num_shards=1)
    tokens = prefilled(driver, prompts, KEYS)
    shard = driver.stores[0].shard
    answer = shard.select_keys

    def failing(requests: Sequence[KeyRequest]) -> list[KeyReply]:
        if any(request.session_id == 2 for request in requests):
            raise NotFound("session 2 is gone")
        return answer(requests)

    monkeypatch.setattr(shard, "select_keys", failing)
    segments = tuple(
        Segment(session_id, len(prompt), (tokens[session_id],), sample=True)
        for session_id, prompt in prompts.items()
    )
    results: dict[int, MoorageError | None] = {
        result.session_id: result.error for result in step_of(driver, 10, segments=segments)
    }
    assert results[1] is None
    assert isinstance(results[2], NotFound)
