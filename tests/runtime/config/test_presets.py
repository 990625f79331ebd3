from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.config.presets import PRESETS, Preset, Settings
from moorage.runtime.config.resolve import kv_layout, resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    HeadSelectMode,
    KvType,
    ModelSpec,
    Positions,
    Preselect,
    RopeSpec,
)


def config(**sections: dict[str, Any]) -> ClusterConfig:
    return ClusterConfig.model_validate({"model": {"path": "m"}, **sections})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_gives_its_own_axes(name: str) -> None:
    memory = resolve_memory(config(memory={"preset": name}))
    assert memory == PRESETS[name].settings().memory
    assert memory.preset == name
    for setting, value in PRESETS[name].differs.items():
        assert PRESETS[name].settings().values()[setting] == value


def test_published_values() -> None:
    def of(name: str, *settings: str) -> tuple[Any, ...]:
        values = PRESETS[name].settings().values()
        return tuple(values[setting] for setting in settings)

    assert of("full", "topk", "scheme", "execution_block") == (None, Positions.ROPE, 0)
    sizes = ("block_size", "window", "topk", "sinks")
    assert of("ktransformers", *sizes) == (128, 4096, 96, 128)
    assert of(
        "ktransformers", "anchor_type", "anchor_space", "head_select_mode", "preselect", "execution_block"
    ) == (AnchorType.DYNAMIC, AnchorSpace.ROTATED, HeadSelectMode.SHARED, Preselect.OFF, 0)
    assert of("inf-llm", "scheme", *sizes) == (Positions.CLAMPED, 128, 4096, 16, 128)
    assert of("inf-llm", "execution_block", "anchor_type") == (512, AnchorType.REPR_TOPK)


def test_own_axes_stand_above_the_preset() -> None:
    chosen = config(
        memory={"preset": "ktransformers", "positions": "clamped", "exc_block_size": 128, "n_init": 0},
        long_context={"second_select_num": 24, "block_size": 32, "local_windows_len": 256, "kv_type": "FP32"},
    )
    memory = resolve_memory(chosen)
    assert (memory.positions.scheme, memory.selection.execution_block, memory.retention.sinks) == (
        Positions.CLAMPED,
        128,
        0,
    )
    assert (memory.selection.topk, memory.retention.window) == (24, 256)
    layout = kv_layout(chosen, MODEL_PRESETS["llama-3-8b"])
    assert (layout.block_size, layout.kv_type, layout.anchor_type) == (32, KvType.FP32, AnchorType.DYNAMIC)
    assert (layout.num_layers, layout.num_kv_heads, layout.head_dim) == (32, 8, 128)


@pytest.mark.parametrize(
    ("memory", "long_context", "keeps"),
    [
        ({"topk_keys": 64, "completion": False}, {"max_seq_len": "64K", "block_size": 32}, True),
        ({"topk_keys": 64, "completion": False}, {"max_seq_len": "32K", "block_size": 32}, False),
        ({"topk_keys": 64}, {"max_seq_len": "64K", "block_size": 32}, False),
        ({"topk": 8, "completion": False}, {"max_seq_len": "64K", "block_size": 32}, False),
        ({"preset": "full"}, {"max_seq_len": "64K", "block_size": 32}, False),
    ],
    ids=["long sessions", "short sessions", "means of all blocks", "blocks", "full"],
)
def test_centres_are_kept_where_sessions_scan_a_part_of_their_blocks(
    memory: dict[str, Any], long_context: dict[str, Any], keeps: bool
) -> None:
    chosen = config(memory={"preset": "moorage", **memory}, long_context=long_context)
    layout = kv_layout(chosen, MODEL_PRESETS["llama-3-8b"])
    assert layout.keeps_centres is keeps
    plain = replace(layout, keeps_centres=False)
    assert layout.page_bytes == plain.page_bytes + layout.num_layers * layout.centre_bytes


def test_topk_and_second_select_num_are_one_axis() -> None:
    for sections in ({"memory": {"topk": 7}}, {"long_context": {"second_select_num": 7}}):
        assert resolve_memory(config(**sections)).selection.topk == 7


def test_another_preset_of_a_request_leaves_the_clusters_axes_behind() -> None:
    chosen = config(
        memory={"preset": "ktransformers", "positions": "clamped", "topk": 24, "recall_every": 5},
        long_context={"local_windows_len": 256, "layer_step": 2},
    )
    full = resolve_memory(chosen, "full")
    assert (full.preset, full.positions.scheme, full.selection.topk, full.selection.layer_step) == (
        "full",
        Positions.ROPE,
        None,
        1,
    )
    assert (full.retention.window, full.recall_every) == (256, 5)
    assert resolve_memory(chosen, "ktransformers") == resolve_memory(chosen, None)


@pytest.mark.parametrize("name", ["kivi", "ful", ""])
def test_a_preset_that_there_is_not(name: str) -> None:
    with pytest.raises(InvalidRequest, match="available: full, ktransformers, inf-llm"):
        resolve_memory(config(), name)


def test_kvquant_packs_what_every_request_attends() -> None:
    settings = resolve_settings(config(memory={"preset": "kvquant"}))
    assert (settings.store.kv_type, settings.store.n_fp16_sinks) == (KvType.NUQ3, 5)
    assert not settings.memory.selection.selects
    assert settings.memory.positions.scheme is Positions.ROPE
    own = resolve_settings(config(memory={"preset": "kvquant"}, long_context={"kv_type": "NUQ4"}))
    assert own.store.kv_type is KvType.NUQ4
    assert resolve_settings(config()).store.kv_type is KvType.FP16


def test_clamped_positions_take_plain_anchors_unless_told_otherwise() -> None:
    def space(**memory: str) -> AnchorSpace:
        return resolve_settings(config(memory={"preset": "ktransformers", **memory})).store.anchor_space

    assert space() is AnchorSpace.ROTATED
    assert space(positions="clamped") is AnchorSpace.PLAIN
    assert space(positions="clamped", anchor_space="rotated") is AnchorSpace.ROTATED


@pytest.fixture
def keys_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset `keys` that selects single keys."""
    differs = {"topk_keys": 256, "block_size": 64, "anchor_type": AnchorType.KEY_CODES}
    otherwise = {"topk": 128, "anchor_type": AnchorType.QUEST}
    monkeypatch.setitem(PRESETS, "keys", Preset("keys", "", differs, otherwise))


def selected(found: Settings) -> tuple[int | None, int, AnchorType, AnchorSpace]:
    selection, store = found.memory.selection, found.store
    return selection.topk, selection.topk_keys, store.anchor_type, store.anchor_space


@pytest.mark.usefixtures("keys_preset")
@pytest.mark.parametrize(
    ("memory", "store", "space"),
    [
        ({}, {}, AnchorSpace.ROTATED),
        ({"positions": "clamped"}, {}, AnchorSpace.PLAIN),
        ({"positions": "dca"}, {}, AnchorSpace.ROTATED),
        ({"n_init": 4}, {"block_size": 128, "dense_layer_num": 2}, AnchorSpace.ROTATED),
    ],
)
def test_codes_are_of_keys_as_positions_see_them(
    memory: dict[str, Any], store: dict[str, Any], space: AnchorSpace
) -> None:
    found = resolve_settings(config(memory={"preset": "keys", **memory}, long_context=store))
    assert selected(found) == (None, 256, AnchorType.KEY_CODES, space)


@pytest.mark.usefixtures("keys_preset")
@pytest.mark.parametrize(
    ("memory", "store"),
    [
        ({"exc_block_size": 128}, {}),
        ({}, {"token_step": 2}),
        ({"head_pool": "max"}, {}),
        ({}, {"head_select_mode": "SEPARATE"}),
        ({}, {"preselect_block": "prompt"}),
        ({}, {"block_size": 8}),
        ({}, {"anchor_num": 2}),
        ({"anchor_space": "plain"}, {}),
    ],
)
def test_a_preset_of_single_keys_selects_blocks_where_the_configuration_is_of_blocks(
    memory: dict[str, Any], store: dict[str, Any]
) -> None:
    found = resolve_settings(config(memory={"preset": "keys", **memory}, long_context=store))
    blocks = 128 * 64 // store.get("block_size", 64)
    assert selected(found) == (blocks, 0, AnchorType.QUEST, AnchorSpace.PLAIN)


@pytest.mark.usefixtures("keys_preset")
def test_a_request_for_single_keys_selects_blocks_where_the_store_has_no_codes() -> None:
    assert resolve_memory(config(memory={"preset": "full"}), "keys").selection.topk == 64
    coded = config(memory={"preset": "keys"})
    assert resolve_memory(coded, "full").selection.selects is False
    assert resolve_memory(coded, settings={"positions": "clamped"}).selection.topk == 128
    assert resolve_memory(coded, settings={"n_init": "3"}).selection.topk_keys == 256
    assert resolve_memory(coded, "ktransformers").selection.topk == 192


@pytest.mark.usefixtures("keys_preset")
def test_single_keys_stay_within_the_trained_length_too() -> None:
    memory = resolve_memory(config(memory={"preset": "keys"}), model=trained_on(512))
    assert memory.retention.window + memory.selection.topk_keys <= 512
    assert memory.selection.topk_keys == 256
    memory = resolve_memory(config(memory={"preset": "keys"}), model=trained_on(256))
    assert memory.retention.window + memory.selection.topk_keys == 256


@pytest.mark.parametrize(
    ("differs", "otherwise"), [({"topk_keys": 3}, {}), ({}, {"topk": 3}), ({"topk": 3}, {"topk": 4})]
)
def test_what_a_preset_selects_otherwise_belongs_to_single_keys(
    differs: dict[str, Any], otherwise: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="what selects single keys says what it selects otherwise"):
        Preset("own", "", differs, otherwise)


def trained_on(trained: int) -> ModelSpec:
    rope = RopeSpec(rotary_dim=128, max_position_embeddings=trained)
    return replace(MODEL_PRESETS["llama-3-8b"], rope=rope, max_position_embeddings=trained)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("trained", [512, 2048, 8192])
def test_no_preset_attends_more_keys_at_once_than_the_model_was_trained_on(name: str, trained: int) -> None:
    chosen = config(memory={"preset": name})
    memory = resolve_memory(chosen, model=trained_on(trained))
    size = resolve_settings(chosen).store.block_size
    sinks = -(-memory.retention.sinks // size) * size
    assert memory.selection.dense_until <= trained
    assert memory.retention.window <= trained
    if memory.selection.topk is not None:
        assert sinks + memory.retention.window + memory.selection.topk * size <= trained
        assert memory.selection.topk > 0 or PRESETS[name].settings().memory.selection.topk == 0
    asked = resolve_memory(config(memory={"preset": "full"}), name, trained_on(trained))
    if memory.selection.topk is not None:
        assert 32 * (asked.selection.topk or 0) + asked.retention.window + asked.retention.sinks <= trained


def test_a_long_trained_model_keeps_the_published_budgets() -> None:
    for name, preset in PRESETS.items():
        memory = resolve_memory(config(memory={"preset": name}), model=trained_on(131072))
        own = preset.settings().memory
        assert (memory.selection.topk, memory.retention.window, memory.selection.dense_until) == (
            own.selection.topk, own.retention.window, own.selection.dense_until,
        )  # fmt: skip


def test_axes_of_the_configuration_do_not_follow_the_trained_length() -> None:
    own = {"memory": {"topk": 300, "dense_until": 4096}, "long_context": {"local_windows_len": 2048}}
    memory = resolve_memory(config(**own), model=trained_on(512))
    assert (memory.selection.topk, memory.selection.dense_until, memory.retention.window) == (300, 4096, 2048)


def test_moorage_exact_is_moorage_whose_drafts_are_verified() -> None:
    exact, drafting = (PRESETS[name].settings().values() for name in ("moorage-exact", "moorage"))
    assert exact["verify"] > 0
    assert {name for name in exact if exact[name] != drafting[name]} == {"preset", "verify"}
