"""Configurations of other systems, as they are published, become valid cluster files with honest notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.config.import_rules import Imported
from moorage.runtime.config.importers import import_config
from moorage.runtime.config.load import build_config
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.config.source import Source
from moorage.workers.errors import InvalidConfig
from moorage.workers.spec import AnchorType, HeadSelectMode, Positions, Preselect

KTRANSFORMERS = """
log: {dir: logs}
long_context:
  max_seq_len: 32000
  block_size: 128
  local_windows_len: 4096
  second_select_num: 32
  anchor_type: DYNAMIC
  kv_type: FP16
  dense_layer_num: 2
  anchor_num: 1
  preselect_block: true
  head_select_mode: SHARED
  preselect_block_count: 32
  layer_step: 1
  token_step:
ext:
  cpu_infer: 10
"""
INFLLM = """
model:
  type: inf-llm
  path: mistralai/Mistral-7B-Instruct-v0.2
  block_size: 128
  fattn: false
  base: 1000000
  distance_scale: 1.0
  n_init: 128
  n_local: 4096
  topk: 16
  repr_topk: 4
  max_cached_block: 32
  exc_block_size: 512
  cache_strategy: lru
  async_global_stream: true
  faiss: false
  perhead: false
max_len: 2147483647
chunk_size: 8192
conv_type: mistral-inst
"""
LMDEPLOY = """lmdeploy serve api_server internlm/internlm2_5-7b-chat-1m --session-len 1048576 \\
  --rope-scaling-factor 2.5 --cache-max-entry-count=0.7 --tp 4 --max-batch-size 1
"""


def imported(directory: Path, text: str) -> Imported:
    path = directory / "given"
    path.write_text(text)
    return import_config(path)


def is_valid(found: Imported) -> bool:
    build_config(Source(Path("result"), {"model": {"path": "m"}} | found.sections))
    return not any("still to mend" in note for note in found.notes)


def test_a_shipped_ktransformers_file(tmp_path: Path) -> None:
    found = imported(tmp_path, KTRANSFORMERS)
    assert found.system == "ktransformers"
    assert is_valid(found)
    config = build_config(Source(Path("result"), {**found.sections, "model": {"path": "m"}}))
    memory = resolve_memory(config)
    assert (memory.selection.topk, memory.selection.dense_layers, memory.selection.preselect_blocks) == (
        32,
        2,
        32,
    )
    assert memory.selection.head_select_mode is HeadSelectMode.SHARED
    assert memory.selection.preselect is Preselect.PROMPT
    assert config.long_context.anchor_type is AnchorType.DYNAMIC
    assert config.long_context.threads_num == 10
    notes = "\n".join(found.notes)
    for start in (
        "log: concerns",
        "model.path: not named",
    ):
        assert start in notes


def test_an_infllm_file(tmp_path: Path) -> None:
    found = imported(tmp_path, INFLLM)
    assert found.system == "InfLLM"
    assert is_valid(found)
    memory = resolve_memory(build_config(Source(Path("result"), found.sections)))
    assert (memory.positions.scheme, memory.selection.topk, memory.selection.execution_block) == (
        Positions.CLAMPED,
        16,
        512,
    )
    assert found.sections["memory"]["base"] == 1000000
    assert found.sections["memory"]["repr_topk"] == 4
    assert memory.selection.head_select_mode is HeadSelectMode.SHARED
    per_head = imported(tmp_path, INFLLM.replace("perhead: false", "perhead: true"))
    assert per_head.sections["long_context"]["head_select_mode"] == "PERHEAD"
    notes = "\n".join(found.notes)
    for key in ("fattn", "async_global_stream", "conv_type"):
        assert key in notes


@pytest.mark.parametrize("kind", ["infinite-lm", "stream-llm", "origin"])
def test_the_other_types_of_infllm(tmp_path: Path, kind: str) -> None:
    found = imported(tmp_path, f"model: {{type: {kind}, path: m, n_local: 4096, n_init: 128}}")
    assert found.sections["memory"]["preset"] == ("full" if kind == "origin" else kind)
    assert is_valid(found)


@pytest.mark.parametrize(
    "text",
    [
        LMDEPLOY,
        "model_path: internlm/internlm2_5-7b-chat-1m\nsession_len: 1048576\nrope_scaling_factor: 2.5\n"
        "cache_max_entry_count: 0.7\ntp: 4\nmax_batch_size: 1\n",
    ],
    ids=["command", "mapping"],
)
def test_lmdeploy_arguments(tmp_path: Path, text: str) -> None:
    found = imported(tmp_path, text)
    assert is_valid(found)
    assert found.sections == {
        "memory": {"preset": "lmdeploy", "rope_scaling_factor": 2.5},
        "model": {"path": "internlm/internlm2_5-7b-chat-1m"},
        "long_context": {"max_seq_len": 1048576},
        "server": {"max_running": 1},
    }
    assert sorted(note.split(":")[0] for note in found.notes) == ["cache_max_entry_count", "tp"]


@pytest.mark.parametrize(
    "program",
    [
        "python -m ktransformers.local_chat",
        "CUDA_VISIBLE_DEVICES=0 python3 ktransformers/server/main.py",
        "ktransformers",
        "python ./ktransformers/local_chat.py",
    ],
)
def test_a_command_line_of_ktransformers(tmp_path: Path, program: str) -> None:
    found = imported(
        tmp_path,
        f"{program} --model_path internlm/internlm2_5-7b-chat-1m --gguf_path ./internlm2_5-7b-chat-1m-Q4_0.gguf \\\n"
        "  --cpu_infer 10 --cache_lens=32768 --mode long_context --max_new_tokens 500 --port 10002\n",
    )
    assert found.system == "ktransformers"
    assert is_valid(found)
    assert found.sections == {
        "memory": {"preset": "ktransformers"},
        "model": {"path": "./internlm2_5-7b-chat-1m-Q4_0.gguf"},
        "long_context": {"threads_num": 10, "max_seq_len": 32768},
    }
    assert sorted(note.split(":")[0] for note in found.notes) == ["max_new_tokens", "model_path", "port"]


def test_a_command_line_without_a_mode_attends_everything(tmp_path: Path) -> None:
    found = imported(tmp_path, "python -m ktransformers.local_chat ./model --cpu_infer 4")
    assert found.sections == {
        "memory": {"preset": "full"},
        "model": {"path": "./model"},
        "long_context": {"threads_num": 4},
    }


def test_every_key_is_carried_over_or_noted(tmp_path: Path) -> None:
    found = imported(tmp_path, KTRANSFORMERS.replace("anchor_num: 1", "anchor_num: 1\n  brand_new: 7"))
    assert "long_context.brand_new: 7: no such setting here" in found.notes


def test_a_result_that_is_not_valid_says_so(tmp_path: Path) -> None:
    found = imported(tmp_path, INFLLM.replace("chunk_size: 8192", "chunk_size: 700"))
    assert any("still to mend" in note and "exc_block_size" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hello: 1", "neither a ktransformers"),
        ("[1, 2]", "holds no mapping"),
        ("a: [", "not YAML"),
        ("model: {type: stream-lm}", "model.type: stream-lm is not one of inf-llm"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidConfig, match=complaint) as caught:
        imported(tmp_path, text)
    assert "\n" not in str(caught.value)
