import json
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.cli import main

PILOT = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-pilot"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(("size", *arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def sizes(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    result = json.loads(out)
    assert isinstance(result, dict)
    return result


def test_published_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = sizes(capsys, "--model", "internlm2.5-7b-1m", "--context", "4K,32K,64K,128K,512K,1M,1110000")
    figures = [round(row["kv_bytes"] / 1e9, 2) for row in result["rows"]]
    assert figures == [0.54, 4.29, 8.59, 17.18, 68.72, 137.44, 145.49]
    assert result["rows"][5]["context_tokens"] == 2**20
    assert any("--context 1110000" in note for note in result["notes"])


def test_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", "internlm2.5-7b-1m")
    assert code == 0
    for figure in ("0.54", "4.29", "8.59", "17.18", "68.72", "137.44", "1.11 million"):
        assert figure in " ".join(out.split())
    assert "Largest context: " in out


def test_what_it_prints_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "--model", "llama-3.1-405b", "--context", "128K,1M,10M", "--sessions", "16")
    assert max(map(len, out.splitlines())) <= 80


def test_device_slots_follow_the_sessions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    eight, many = (sizes(capsys, "--model", str(PILOT), "--sessions", n) for n in ("8", "24"))
    slots = [result["rows"][0]["device_slots_bytes"] for result in (eight, many)]
    assert slots[1] == 3 * slots[0]
    assert (eight["max_running"], many["max_running"]) == (8, 24)
    assert sizes(capsys, "--model", str(PILOT))["max_running"] == 1
    path = tmp_path / "cluster.yaml"
    path.write_text(f"model: {{path: {PILOT}}}\nserver: {{max_running: 3}}\n")
    assert sizes(capsys, "--config", str(path))["max_running"] == 3
    assert sizes(capsys, "--config", str(path), "--sessions", "5")["max_running"] == 5


@pytest.mark.parametrize(
    ("override", "tokens", "limit"),
    [
        ("memory.preset=moorage", 512, "how far positions reach (plain RoPE, trained on 512 tokens)"),
        ("long_context.max_seq_len=256", 256, "long_context.max_seq_len = 256"),
        ("long_context.max_seq_len=100M", None, "kv_store.dram = 64.00 MiB"),
    ],
)
def test_the_limit_that_binds_is_named(
    capsys: pytest.CaptureFixture[str], override: str, tokens: int | None, limit: str
) -> None:
    arguments = ("--model", str(PILOT), "--set", "kv_store.dram=64MiB", "--set", override, "--context", "512")
    result = sizes(capsys, *arguments)
    assert result["limited_by"] == limit
    assert result["largest_context_tokens"] == (tokens or result["largest_context_in_memory_tokens"])
    if tokens is None:
        assert any("are more than the 512 that positions reach" in text for text in result["warnings"])
    _, out, _ = run(capsys, *arguments)
    assert f"limited by {limit}." in " ".join(out.split())


def test_too_little_device_memory_for_the_sessions_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "llama-3-8b", "--device", "cuda", "--sessions", "16")
    result = sizes(capsys, *arguments, "--set", "gpu_workers.device_memory=24GiB")
    assert result["sessions_with_slots"] == 5
    assert any("holds the device slots of 5 of 16 sessions" in text for text in result["warnings"])


def test_any_key_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    result = sizes(capsys, "--model", "llama-3-8b", "--set", "long_context.kv_type=FP32")
    assert result["kv_type"] == "FP32"
    code, _, err = run(capsys, "--model", "llama-3-8b", "--set", "memory.topkk=3")
    assert (code, err) == (1, "error: --set memory.topkk=3: memory.topkk: unknown key; did you mean topk?\n")


def test_rows_say_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    result = sizes(capsys, "--model", str(PILOT), "--context", "1,4K,1024M", "--sessions", "2")
    small, middle, huge = result["rows"]
    assert small["fits_host"]
    assert small["max_sessions"] > middle["max_sessions"] > 0
    assert not huge["fits_host"]
    assert huge["max_sessions"] == 0
    assert middle["context_tokens"] < result["largest_context_in_memory_tokens"] < huge["context_tokens"]
    assert (small["fits_max_seq_len"], middle["fits_max_seq_len"]) == (True, False)
    for key in ("anchors_bytes", "device_bytes", "staging_bytes", "total_dram_bytes", "ray_bytes"):
        assert middle[key] > 0, key
    assert middle["disk_bytes"] == 0


def test_contexts_beyond_the_trained_length_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    within = sizes(capsys, "--model", "llama-3-8b", "--context", "4K,8K")
    assert (within["trained_tokens"], within["reach_tokens"], within["max_seq_len"]) == (8192, 8192, 8192)
    assert within["warnings"] == []
    beyond = sizes(capsys, "--model", "llama-3-8b", "--context", "4K,32K")
    assert "more than 8,192 tokens are beyond" in beyond["warnings"][0]
    clamped = sizes(capsys, "--model", "llama-3-8b", "--context", "1M", "--preset", "inf-llm")
    assert (clamped["reach_tokens"], clamped["warnings"]) == (None, [])
    _, out, _ = run(capsys, "--model", "llama-3-8b", "--context", "32K")
    assert "Warning: contexts of more than 8,192 tokens" in out


def test_options_change_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    quest = ("--anchor-type", "QUEST", "--block-size", "32")
    plain = sizes(capsys, "--model", "llama-3-8b", "--context", "8K", *quest)
    other = sizes(
        capsys,
        *("--model", "llama-3-8b", "--context", "8K", "--kv-type", "FP32", "--block-size", "64"),
        *(
            "--anchors",
            "2",
            "--anchor-type",
            "BLOCK_MEAN",
            "--shards",
            "4",
            "--device",
            "cuda",
            "--dtype",
            "float32",
        ),
    )
    assert other["rows"][0]["kv_bytes"] == 2 * plain["rows"][0]["kv_bytes"]
    # Two means of a block take as much as Quest's bounds; twice the type and half the blocks cancel out.
    assert other["rows"][0]["anchors_bytes"] == plain["rows"][0]["anchors_bytes"]
    assert (other["block_size"], other["anchor_type"], other["shards"]) == (64, "BLOCK_MEAN", 4)
    norms = 65 * 4096 * 4  # float32 in both
    weights = [each["rows"][0]["device_weights_bytes"] - norms for each in (plain, other)]
    assert weights[1] == 2 * weights[0]


def test_a_cluster_file_limits_the_room(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"model: {{path: {PILOT}}}\nkv_store: {{dram: 64MiB, actors: 1}}\n")
    result = sizes(capsys, "--config", str(path), "--context", "4K")
    # In each of 4 layers and 2 heads a block has its mean key, the codes of 64 keys, and its mean value.
    page = 64 * 2048 + 4 * 2 * (64 * 2 + 64 * (8 + 2) + 64 * 2)
    assert result["largest_context_in_memory_tokens"] == 64 * 2**20 // page * 64
    assert sizes(capsys, "--config", str(path), "--shards", "2", "--context", "4K")["shards"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        ((), 2, "give --model MODEL or --config FILE"),
        (("--model", "llama-3-8b", "--context", "4X"), 2, "such as 4096, 128K or 1M"),
        (("--model", "llama-3-8b", "--context", "0"), 2, "at least 1 token"),
        (("--model", "llama-9"), 1, "error: llama-9: no such directory or model preset"),
        (
            ("--model", "llama-3-8b", "--block-size", "0"),
            1,
            "error: --block-size 0: long_context.block_size: got 0",
        ),
        (("--model", "llama-3-8b", "--kv-type", "Q8_0"), 1, "error: --kv-type Q8_0: long_context.kv_type"),
        (("--model", "llama-3-8b", "--preset", "x"), 1, "error: --preset x: memory.preset"),
        (("--model", "llama-3-8b", "--anchors", "3"), 1, "anchor_num: 3 does not divide block_size 32"),
        (("--config", "none.yaml"), 1, "error: none.yaml: no such file"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, names: str
) -> None:
    left, out, err = run(capsys, *arguments)
    assert (left, out) == (code, "")
    assert names in err
    if code == 1:
        assert err.count("\n") == 1
