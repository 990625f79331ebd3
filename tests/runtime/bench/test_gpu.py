"""`bench gpu` end to end on a CPU in a tiny shape: on a GPU only the figures are new."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moorage.runtime.bench.gpu import Bench, Clock, Options
from moorage.runtime.bench.gpu_cases import Method, cached_blocks, groups
from moorage.runtime.bench.gpu_model import TINY, SharedPastStore, WalkingDecoder
from moorage.runtime.cli import main
from moorage.workers.sizes import slots_per_layer

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "--device cpu --shape tiny --context 4K,1K --prefill-context 1K,2K --batch 1,2 --chunk 256 --steps 2 "
    "--threads 2"
)


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
        "moorage-lagged",
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


@pytest.mark.parametrize(("budget", "most"), [(0, 5), (40, 9)])
def test_it_stops_in_time_with_what_it_has(budget: int, most: int) -> None:
    """By a clock that goes on by ten seconds whenever somebody looks."""
    options = Options(torch.device("cpu"), "tiny", [1024], [1024], [1, 2], 1 << 30, 256, 1, budget, 2)
    notes: list[str] = []
    rows = list(Bench(options, notes.append, Clock(budget, itertools.count(0, 10).__next__)).rows())
    assert 5 <= len(rows) <= most
    assert notes[-1].startswith("time is over before")


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


def test_sessions_share_one_past_and_give_back_their_own() -> None:
    group = groups(TINY, 16)[0]
    store = SharedPastStore(group.layout, 1024, 512, 2)
    free = store.stats().free_pages
    store.share(512)
    for session_id in (1, 2):
        store.open(session_id, group.layout.num_blocks(600))
    out = np.zeros((3, *store.arena.kv.shape[2:]), store.arena.kv.dtype)
    for row, session_id in enumerate((store.PAST, 1, 2)):
        store.gather(session_id, 1, np.array([3], np.int32), out, np.array([row], np.int32))
    assert (out[0] == out[1]).all()
    assert (out[0] == out[2]).all()
    rows = np.ones((1, TINY.num_kv_heads, TINY.head_dim), np.float32)
    store.append(1, 0, 512, rows, rows)
    for session_id in (1, 2):
        store.drop(session_id)
    assert store.stats().free_pages == free
    store.check_integrity()


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
    assert method.memory.topk is not None
    for room in (0, 2000, 12000, 40000, 10**6):
        cached = cached_blocks(method, layout, 10**5, batch, room)
        if cached is not None:
            assert method.memory.topk <= cached <= layout.num_blocks(10**5) + 2
            assert batch * layout.num_layers * slots_per_layer(method.memory, layout, cached) <= room
    assert cached_blocks(method, layout, 10**5, batch, 0) is None
    resident = Method("all", method.memory, resident=True)
    assert cached_blocks(resident, layout, 3200, 1, 10**6) == 102
