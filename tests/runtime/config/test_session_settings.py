"""A request may choose settings of its own; the store, and a window that the file gives, stay the cluster's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.config.load import build_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import (
    SESSION_KEYS,
    asked_config,
    preset_differs,
    resolve_memory,
)
from moorage.runtime.config.source import Source
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import AnchorSpace, AnchorType, Positions


def cluster(**sections: dict[str, Any]) -> ClusterConfig:
    return build_config(Source(Path("cluster.yaml"), {"model": {"path": "m"}, **sections}))


def test_settings_of_a_request_stand_above_the_clusters_and_leave_the_others() -> None:
    config = cluster(memory={"preset": "ktransformers", "n_init": 64}, long_context={"second_select_num": 7})
    own = resolve_memory(config)
    asked = resolve_memory(config, settings={"topk": "64", "positions": "clamped", "dense_until": "4K"})
    assert asked == own.replace(topk=64, scheme=Positions.CLAMPED, dense_until=4096)
    assert resolve_memory(config, settings={"second_select_num": "9"}) == own.replace(topk=9)


def test_settings_of_a_request_stand_above_the_preset_that_it_names() -> None:
    config = cluster(memory={"preset": "moorage", "topk": 3})
    asked = resolve_memory(config, "inf-llm", settings={"n_init": "0"})
    assert asked == resolve_memory(config, "inf-llm").replace(sinks=0)


def test_a_request_selects_blocks_or_single_keys_whatever_the_cluster_selects() -> None:
    coded = {"anchor_type": "KEY_CODES"}
    of_keys = cluster(memory={"topk_keys": 256}, long_context=coded)
    of_blocks = cluster(memory={"topk": 64}, long_context=coded)
    selected = [
        resolve_memory(config, settings=settings).selection
        for config in (of_keys, of_blocks)
        for settings in ({}, {"topk": "5"}, {"topk_keys": "30"})
    ]
    assert [(each.topk, each.topk_keys) for each in selected] == [
        (None, 256), (5, 0), (None, 30), (64, 0), (5, 0), (None, 30),
    ]  # fmt: skip


def test_single_keys_need_codes_of_them_in_the_store() -> None:
    with pytest.raises(InvalidRequest, match="9 needs codes of single keys, but anchor_type is QUEST"):
        resolve_memory(cluster(memory={"preset": "full"}), settings={"topk_keys": "9"})


def test_the_window_is_that_of_the_preset_that_a_request_names() -> None:
    config = cluster(memory={"preset": "moorage"})
    for preset, settings, window in [
        (None, {}, 128),
        ("ktransformers", {}, 4096),
        ("full", {}, 4096),
        ("full", {"topk": "5"}, 4096),
        ("moorage-exact", {}, 128),
        (None, {"topk": "5"}, 128),
        (None, {"token_step": "2"}, 128),
    ]:
        assert resolve_memory(config, preset, settings=settings).retention.window == window


def test_a_window_that_the_file_gives_stays() -> None:
    config = cluster(long_context={"local_windows_len": 512})
    for preset in (None, "ktransformers", "full", "inf-llm"):
        assert resolve_memory(config, preset).retention.window == 512
        assert resolve_memory(config, preset, settings={"n_init": "4"}).retention.window == 512


def test_what_the_store_has_otherwise_than_the_preset_says_is_told() -> None:
    config = cluster(memory={"preset": "moorage"})
    assert preset_differs(config, None) == preset_differs(config, "moorage") == ()
    assert preset_differs(config, "moorage-exact") == ()
    blocks = ("block_size 64, not 128", "anchor_type KEY_CODES, not DYNAMIC")
    assert preset_differs(config, "ktransformers") == blocks
    for attends_all_or_none in ("full", "chunkllama", "stream-llm"):
        assert preset_differs(config, attends_all_or_none) == ()


def test_details_of_anchors_are_compared_under_one_type_alone() -> None:
    store = {"anchor_type": "DYNAMIC", "anchor_num": 2, "local_windows_len": 512}
    config = cluster(memory={"preset": "full", "anchor_space": "plain"}, long_context=store)
    window = "local_windows_len 512, not 4096"
    found = preset_differs(config, "ktransformers")
    assert found == ("anchor_num 2, not 1", "anchor_space plain, not rotated", window)
    assert preset_differs(config, "inf-llm") == ("anchor_type DYNAMIC, not REPR_TOPK", window)


def test_another_preset_selects_blocks_by_the_means_beside_codes() -> None:
    config = cluster(memory={"topk_keys": 256}, long_context={"anchor_type": "KEY_CODES", "block_size": 64})
    found = resolve_memory(config, "ktransformers").selection
    assert (found.topk, found.topk_keys) == (192, 0)
    assert not resolve_memory(config, "full").selection.selects


def test_the_store_stays_the_clusters() -> None:
    config = cluster(memory={"preset": "ktransformers"}, long_context={"block_size": 64})
    for asked in (
        asked_config(config, "inf-llm"),
        asked_config(config, settings={"positions": "clamped"}),
        asked_config(config, "moorage", {"topk": "5"}),
    ):
        found = asked.long_context
        assert (found.block_size, found.anchor_type) == (64, AnchorType.DYNAMIC)
        assert asked.memory.anchor_space is AnchorSpace.ROTATED


@pytest.mark.parametrize("key", SESSION_KEYS)
def test_every_setting_of_a_session_takes_a_value_as_the_file_does(key: str) -> None:
    found = asked_config(cluster(memory={"preset": "inf-llm"}), settings={key: "null"})
    section = SESSION_KEYS[key].partition(".")[0]
    assert getattr(getattr(found, section), key) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"topk": "-1"}, "memory.topk: got -1: should be at least 0"),
        ({"topkk": "1"}, "memory: 'topkk' is no setting of a request; did you mean topk?"),
        ({"x\n": "1"}, r"memory: 'x\\n' is no setting of a request; use one of positions, n_init"),
        ({"block_size": "32"}, "memory: block_size belongs to the cluster and not to a request"),
        ({"local_windows_len": "32"}, "memory: local_windows_len belongs to the cluster"),
        ({"recall_every": "1"}, "memory: recall_every belongs to the cluster"),
        ({"score_on": "cpu"}, "memory: score_on belongs to the cluster"),
        ({"topk": "[1"}, "memory: topk: the value is not YAML"),
        ({"topk": "1", "second_select_num": "2"}, "but both name one setting"),
        ({"positions": "rolling"}, "memory.positions: rolling gives only sinks and window a position"),
        ({"lag": "1"}, "memory: lag: asynchronous selection was removed; leave it out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        resolve_memory(cluster(), settings=settings)
    assert str(caught.value).isprintable()
