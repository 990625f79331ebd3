"""`bench gpu` end to end on a CPU in a tiny shape: on a GPU only the figures are new."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moorage.runtime.bench.gpu.cases import Method, cached_blocks, cases_of, groups
from moorage.runtime.bench.gpu.ceilings import Ceilings
from moorage.runtime.bench.gpu.model import TINY, PastStore, WalkingDecoder
from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.bench.gpu.packed import PackedCase, measure_packed
from moorage.runtime.bench.gpu.run import Bench, Clock
from moorage.runtime.cli import main
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvType

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "--device cpu --shape tiny --context 4K,1K --prefill-context 1K,2K --batch 1,2 --chunk 256 --steps 2 "
    "--threads 2"
)


OPTIONS = Options(torch.device("cpu"), "tiny", [1024], [1024], [1, 2], 1 << 30, 256, 1, 60, 2)


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        main(["bench", "gpu", *arguments])
    return left.value.code


def test_every_case_brings_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert run(*SMALL.split(), "--json", str(file)) in (0, None)
    rows = {(row["name"], row.get("context_tokens")): row for row in json.loads(file.read_text())["rows"]}
    assert {"ceiling-device-copy", "ceiling-host-to-device", "ceiling-host-read"} <= {
        name for name, _ in rows
    }
    for method in (
        "moorage",
        "moorage-device-scored",
        "moorage-misses-on-cpu",
        "ktransformers",
        "inf-llm",
    ):
        for batch in (1, 2):
            for context in (1024, 4096):
                values = rows[f"decode-{method}-b{batch}", context]["values"]
                assert values["tokens_per_s"] > 0
                assert 0 < values["hit_rate"] <= 1
    assert rows["decode-full-resident-b1", 4096]["values"]["hit_rate"] > 0.9
    assert rows["decode-full-resident-b1", 4096]["values"]["moved_mb_per_token"] < 0.1
    streamed = rows["decode-full-streamed-b1", 4096]["values"]["moved_mb_per_token"]
    token_mb = 2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 2 / 1e6
    assert streamed == pytest.approx((4096 - 256) * token_mb, rel=0.05)
    for name in ("exact", "selected"):
        assert rows[f"prefill-{name}", 2048]["values"]["tokens_per_s"] > 0
    assert "random walk" in capsys.readouterr().out


def test_rows_are_kept_as_they_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "gpu.jsonl"
    only = ("--only", "decode-moorage-b1,prefill-exact", "--host-memory", "1GiB", "--json-lines", str(file))
    assert run(*SMALL.split(), *only) in (0, None)
    first, *rows, last = (json.loads(line) for line in file.read_text().splitlines())
    assert first["machine"]["cores"] >= 1
    assert last["notes"]
    names = [row["name"] for row in rows]
    assert {name for name in names if not name.startswith("ceiling-")} == {
        "fill-moorage",
        "decode-moorage-b1",
        "prefill-exact",
    }


def test_the_most_telling_cases_come_first_and_none_comes_twice() -> None:
    options = replace(OPTIONS, contexts=[4096, 1024], batches=[1, 16, 4], prefill_contexts=[1024, 4096])
    cases = cases_of(groups(TINY, 16)[0], options)
    assert len(set(cases)) == len(cases)
    names = [(case.row_name, case.context) for case in cases]
    assert names[:8] == [
        ("decode-moorage-device-scored-b1", 4096),
        ("decode-moorage-b1", 4096),
        ("decode-full-resident-b1", 4096),
        ("prefill-exact", 0),
        ("prefill-exact", 1024),
        ("prefill-exact", 4096),
        ("decode-moorage-device-scored-b16", 4096),
        ("decode-moorage-b16", 4096),
    ]
    assert [case.streamed for case in cases if case.method.name == "full-streamed"] == [True, True]


@pytest.mark.parametrize(("budget", "most"), [(0, 5), (40, 9)])
def test_it_stops_in_time_with_what_it_has(budget: int, most: int) -> None:
    """By a clock that goes on by ten seconds whenever somebody looks."""
    options = replace(OPTIONS, budget_s=budget)
    notes: list[str] = []
    rows = list(Bench(options, notes.append, Clock(budget, itertools.count(0, 10).__next__)).rows())
    assert 5 <= len(rows) <= most
    assert any(note.startswith("time is over before") for note in notes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA device" in line
    assert "--device cpu" in line


def test_the_script_needs_nothing_but_the_bare_packages() -> None:
    """No Ray, no gRPC, no pydantic: as on a machine that has torch, Triton, Numba and transformers alone."""
    absent = ("ray", "grpc", "pydantic", "structlog", "yaml", "jinja2", "tokenizers")
    script = str(ROOT / "deploy" / "benchmarks" / "gpu.py")
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({absent!r})); "
        f"sys.argv = ['gpu.py', {SMALL!r}.split()]; sys.argv[1:] = sys.argv[1] + ['--budget', '1']; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ceiling-host-read" in done.stdout


def test_sessions_take_stretches_of_one_past_and_give_back_their_own() -> None:
    group = groups(TINY, 16)[0]
    store = PastStore(group.layout, 1024, 512, 2)
    free = store.stats().free_pages
    size = group.layout.block_size
    store.share(512, 2)
    assert store.distinct_share(512, 2) == 1
    assert store.distinct_share(1024, 4) == 0.25
    for session_id in (1, 2):
        store.open(session_id, group.layout.num_blocks(600))
    out = np.zeros((4, *store.arena.kv.shape[2:]), store.arena.kv.dtype)
    half = 512 // size
    for row, (session_id, block) in enumerate([(store.PAST, 3), (1, 3), (store.PAST, 3 + half), (2, 3)]):
        store.shard.gather(session_id, 1, np.array([block], np.int32), out, np.array([row], np.int32))
    assert (out[0] == out[1]).all()
    assert (out[2] == out[3]).all()
    assert (out[0] != out[2]).any()
    rows = np.ones((1, TINY.num_kv_heads, TINY.head_dim), np.float32)
    store.append(1, 0, 512, rows, rows)
    for session_id in (1, 2):
        store.drop(session_id)
    assert store.stats().free_pages == free
    store.check_integrity()


def test_what_the_host_attends_does_not_count_as_moved(tmp_path: Path) -> None:
    """So little device memory has no slot for each block, so that some are always missing."""
    file = tmp_path / "gpu.json"
    case = "--only decode-moorage-misses-on-cpu-b1 --device-memory 24MiB --context 4K"
    assert run(*SMALL.split(), *case.split(), "--json", str(file)) in (0, None)
    rows = json.loads(file.read_text())["rows"]
    (values,) = (row["values"] for row in rows if row["name"].startswith("decode"))
    assert values["host_attended_mb_per_token"] > 0
    assert values["moved_mb_per_token"] >= 0


def test_queries_walk() -> None:
    decoder = WalkingDecoder.random(TINY, torch.device("cpu"))
    decoder.start(2)
    seen: list[torch.Tensor] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        del k, v
        if layer == 0:
            seen.append(q.clone())
        return q

    for _ in range(30):
        decoder.forward(torch.tensor([3, 4]), attend)
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in itertools.pairwise(seen)]
    assert float(torch.stack(cosines).mean()) == pytest.approx(0.95, abs=0.02)
    assert float(seen[-1].pow(2).mean()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("batch", [1, 4])
def test_slots_fit_the_room_that_is_asked_for(batch: int) -> None:
    group = groups(TINY)[0]
    method, layout = group.methods[0], group.layout
    assert method.memory.selection.topk is not None
    for room in (0, 2000, 12000, 40000, 10**6):
        cached = cached_blocks(method, layout, 10**5, batch, room)
        if cached is not None:
            assert method.memory.selection.topk <= cached <= layout.num_blocks(10**5) + 2
            assert batch * layout.num_layers * slots_per_layer(method.memory, layout, cached) <= room
    assert cached_blocks(method, layout, 10**5, batch, 0) is None
    resident = Method("all", method.memory, resident=True)
    assert cached_blocks(resident, layout, 3200, 1, 10**6) == 102


def test_packed_blocks_stand_beside_those_of_fp16() -> None:
    """By the interpreter; on a GPU a run measures them after its ceilings."""
    pytest.importorskip("triton")
    ceilings = Ceilings(1e12, 5e10, 1e12)
    only = replace(OPTIONS, only=("gather-by-dma", "attend-FP16", "attend-NUQ3"))
    rows = {row.name: row for row in measure_packed(only, TINY, ceilings, 64, 32, [KvType.NUQ3])}
    assert set(rows) == {
        f"packed-{name}-{kind}" for name in ("gather-by-dma", "attend") for kind in ("FP16", "NUQ3")
    }
    sizes = [rows[f"packed-gather-by-dma-{kind}"].bytes for kind in ("FP16", "NUQ3")]
    assert sizes[0] == 2 * 2 * TINY.num_kv_heads * 32 * TINY.head_dim * 2
    assert sizes[1] is not None
    assert 3 < sizes[0] / sizes[1] < 5
    assert set(rows["packed-attend-NUQ3"].ratio_to) == {"FP16"}


def test_every_way_of_packed_blocks_to_a_result_is_the_same() -> None:
    pytest.importorskip("triton")
    case = PackedCase(OPTIONS, TINY, 2, 32)
    exact = case.attend(case.blocks(KvType.FP16))
    for kv_type in (KvType.INT8, KvType.NUQ4):
        blocks, found = case.blocks(kv_type), []
        for bring in (case.read, case.copy):
            case.slots.fill_(torch.nan)
            bring(blocks)
            found.append(case.slots.clone())
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
        packed = case.attend(blocks)
        torch.testing.assert_close(case.attend(blocks, from_host=True), packed, rtol=0, atol=0)
        torch.testing.assert_close(packed, exact, rtol=0, atol=0.1)
