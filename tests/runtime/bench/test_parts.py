"""Every benchmark runs in small and brings the rows that its name promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.runtime.bench.batching import run_batches
from moorage.runtime.bench.decode_layer import run_layer_of_decode
from moorage.runtime.bench.decoding import run_decode
from moorage.runtime.bench.formats import HeadShape, run_format_keys, run_formats
from moorage.runtime.bench.gathering import SHAPES, run_gather
from moorage.runtime.bench.linear import run_linear
from moorage.runtime.bench.measure import installed
from moorage.runtime.bench.pilot import Setup
from moorage.runtime.bench.prefilling import run_prefill
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.sealing import run_seal
from moorage.runtime.bench.selecting import run_link, run_select
from moorage.runtime.bench.single_keys import run_keys
from moorage.runtime.cli import main
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import KvType


def names(rows: list[Row]) -> set[str]:
    assert all(row.median_s >= 0 for row in rows)
    return {row.name for row in rows}


def test_select_and_link_without_ray() -> None:
    assert names(list(run_select(4096, 1, 3, with_ray=False))) == {
        "select-inprocess",
        "select-mailbox",
        "select-mailbox-added",
    }
    assert {"link-mailbox-p50", "link-inprocess-p99"} <= names(list(run_link(1, with_ray=False)))


def test_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.linear.SHAPES", ((64, 96),))
    monkeypatch.setattr("moorage.runtime.bench.linear.COLD_BYTES", 2**16)
    rows = list(run_linear([1], 2))
    assert [row.name for row in rows] == [
        f"linear-64x96-{kind}" for kind in ("int4", "int8", "bfloat16", "float32")
    ]
    assert [list(row.ratio_to) for row in rows] == [[], [], ["torch"], ["torch"]]


def test_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.gathering.ARENA_BYTES", 64 * 2**20)
    rows = list(run_gather([1], 2))
    assert {shape.name for shape in SHAPES} <= names(rows)
    assert all(row.ratio_to_limit is not None for row in rows if row.name == "gather")


def test_formats_stand_beside_fp16() -> None:
    rows = list(run_formats(HeadShape.parse("2x3x64"), 2048, [1], 1, [KvType.INT8, KvType.NUQ3]))
    assert [row.name for row in rows] == [f"formats-2x3x64-{kv_type}" for kv_type in ("FP16", "INT8", "NUQ3")]
    assert [list(row.ratio_to) for row in rows] == [[], ["FP16"], ["FP16"]]
    assert rows[2].values["times_smaller"] > 4.7


def test_single_keys_of_formats_stand_beside_fp16() -> None:
    rows = list(run_format_keys(HeadShape.parse("2x3x64"), 2048, 24, [1], 1, [KvType.NUQ3]))
    assert [row.name for row in rows] == [
        f"keys-2x3x64-{kv_type}{scan}" for kv_type in ("FP16", "NUQ3") for scan in ("", "-scan")
    ]
    assert [list(row.ratio_to) for row in rows] == [[], [], ["FP16"], []]


def test_sealing_stands_beside_reading_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.sealing.ARENA_BYTES", 0)
    rows = list(run_seal([1], 2))
    assert names(rows) == {
        f"seal{ending}{row}" for ending in ("", "-small") for row in ("", "-read", "-token")
    }
    assert [list(row.ratio_to) for row in rows if row.ratio_to_limit is not None] == [["bounds"], ["bounds"]]


def test_layer_of_decode_stands_beside_its_limit() -> None:
    rows = list(run_layer_of_decode(2048, [1, 3], [1], 2))
    assert names(rows) == {"layer-1", "layer-3"}
    assert all(row.ratio_to_limit is not None and "one-by-one" in row.ratio_to for row in rows)


def test_single_keys_stand_beside_a_read_of_their_codes() -> None:
    rows = list(run_keys(4096, [1], 2))
    assert names(rows) == {"keys", "keys-scan", "keys-read"}
    whole, scan, read = rows
    assert whole.bytes > scan.bytes == read.bytes == 4096 * 3 * (8 + 2 + 4)
    assert None not in (whole.ratio_to_limit, scan.ratio_to_limit)


@pytest.mark.parametrize("setup", [Setup(), Setup(shards=2, mailbox=True), Setup(topk_keys=64)])
def test_decode_over_a_made_up_past(setup: Setup) -> None:
    rows = list(run_decode([1500, 4096], 2, 1, setup, peer_tokens=2000))
    found = names(rows)
    assert {"decode", "decode-full", "decode-score", "decode-linear"} <= found
    decode = {row.context_tokens: row for row in rows if row.name == "decode"}
    assert set(decode) == {1500, 4096}
    assert ("transformers" in decode[1500].ratio_to) == installed("transformers")
    assert "transformers" not in decode[4096].ratio_to


@pytest.mark.parametrize("setup", [Setup(), Setup(shards=2, mailbox=True), Setup(topk_keys=64)])
def test_decode_of_several_sessions_stands_beside_one(setup: Setup) -> None:
    rows = list(run_batches([1500, 2048], [3], 2, setup))
    assert {"decode-batch-1", "decode-batch-3", "decode-batch-3-score", "decode-batch-3-attend"} <= names(
        rows
    )
    whole = {(row.name, row.context_tokens): row for row in rows if "tokens_per_s" in row.values}
    assert set(whole) == {(f"decode-batch-{n}", context) for n in (1, 3) for context in (1500, 2048)}
    for context in (1500, 2048):
        one, three = whole["decode-batch-1", context], whole["decode-batch-3", context]
        assert three.values["tokens_per_s"] == pytest.approx(3 / three.median_s)
        assert three.ratio_to == {"decode-batch-1": pytest.approx(3 * one.median_s / three.median_s)}


def test_more_sessions_than_the_host_has_memory_for_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"sessions of 1M tokens take .* lower --batch or --context"):
        list(run_batches([2**20], [100_000], 2, Setup()))


def test_prefill_behind_a_made_up_past() -> None:
    rows = list(run_prefill([1500, 4096], 256, 1, Setup(), exact_tokens=2000, peer_tokens=2000))
    selected = {row.context_tokens: row for row in rows if row.name == "prefill-selected"}
    assert set(selected) == {1500, 4096}
    assert [row.context_tokens for row in rows if row.name == "prefill-exact"] == [1500]


def test_scoring_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.scoring.COLD_BYTES", 2**20)
    file = tmp_path / "scoring.json"
    with pytest.raises(SystemExit) as left:
        main(["bench", "scoring", "--context", "64K", "--threads", "1", "--rounds", "2", "--json", str(file)])
    assert left.value.code in (0, None)
    report = json.loads(file.read_text())
    found = {row["name"]: row for row in report["rows"]}
    assert {"scoring", "scoring-group4", "scoring-anchors4", "topk"} <= set(found)
    assert {"choosing", "choosing-group4"} <= set(found)
    assert {"numpy", "torch-half", "torch-float32"} <= set(found["scoring"]["ratio_to"])
    assert found["scoring"]["ratio_to_limit"] > 0
