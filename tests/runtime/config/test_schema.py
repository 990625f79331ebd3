"""Loading `cluster.yaml`: defaults, precedence, and one line for everything that is wrong."""

import re
from pathlib import Path

import pytest

from moorage.runtime.config.errors import keys_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.reference import json_schema, reference
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.errors import InvalidConfig
from moorage.workers.spec import AnchorType, KvType, Positions

CONTRACT = """
model: {path: pilot, dtype: float32}
memory: {preset: full}
long_context: {chunk_size: 4096, max_seq_len: 131072, block_size: 128, local_windows_len: 4096}
kv_store: {actors: 2, dram: 8GiB}
gpu_workers: {count: 1, device: auto}
server: {grpc: 127.0.0.1:50051}
ray: {address: local}
"""
KTRANSFORMERS_KEYS = [
    "chunk_size",
    "max_seq_len",
    "threads_num",
    "block_size",
    "local_windows_len",
    "second_select_num",
    "anchor_type",
    "kv_type",
    "dense_layer_num",
    "anchor_num",
    "preselect_block",
    "head_select_mode",
    "preselect_block_count",
    "layer_step",
    "token_step",
]


def load(
    directory: Path, text: str | bytes, *overrides: str, environ: dict[str, str] | None = None
) -> ClusterConfig:
    path = directory / "cluster.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_cluster_config(path, overrides, environ or {})


def refusal(
    directory: Path, text: str | bytes, *overrides: str, environ: dict[str, str] | None = None
) -> str:
    with pytest.raises(InvalidConfig) as caught:
        load(directory, text, *overrides, environ=environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_contract_file_and_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, CONTRACT)
    assert config.model.path == tmp_path / "pilot"
    assert config.kv_store.dram == 8 * 2**30
    least = load(tmp_path, "model: {path: pilot, dtype: float32}\nmemory: {preset: full}\n")
    unset = {"block_size": None, "local_windows_len": None, "max_seq_len": None}
    explicit = config.long_context.model_copy(update=unset)
    assert load(tmp_path, "model: {path: pilot}\n").memory.preset == "moorage"
    assert least == config.model_copy(update={"long_context": explicit})


def test_every_ktransformers_key_is_taken(tmp_path: Path) -> None:
    assert list(ClusterConfig.model_fields["long_context"].annotation.model_fields) == KTRANSFORMERS_KEYS  # type: ignore[union-attr]
    config = load(
        tmp_path,
        """
model: {path: m}
long_context:
  {chunk_size: 4K, max_seq_len: 1M, block_size: 64, local_windows_len: 2048, second_select_num: 32,
   threads_num: 8, anchor_type: BLOCK_MEAN, kv_type: FP32, dense_layer_num: 2, anchor_num: 4,
   preselect_block: true, head_select_mode: SEPARATE, preselect_block_count: 64, layer_step: 2, token_step: 3}
""",
    )
    assert config.long_context.max_seq_len == 2**20
    assert config.long_context.anchor_type is AnchorType.BLOCK_MEAN
    assert config.long_context.kv_type is KvType.FP32


def test_automatic_chunk(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {path: m}\nlong_context: {chunk_size: auto}\n")
    assert config.long_context.chunk_size == "auto"
    assert config.max_step_tokens == 4096
    limited = load(
        tmp_path,
        "model: {path: m}\nlong_context: {chunk_size: auto}\nscheduler: {max_step_tokens: 9000}\n",
    )
    assert limited.max_step_tokens == 9000


def test_flag_over_environment_over_file(tmp_path: Path) -> None:
    text = "model: {path: m}\nmemory: {topk: 1}\n"
    environ = {"MOORAGE_MEMORY__TOPK": "2", "MOORAGE_KV_STORE__DRAM": "2GiB", "MOORAGE_HOME": "elsewhere"}
    assert load(tmp_path, text).memory.topk == 1
    assert load(tmp_path, text, environ=environ).memory.topk == 2
    config = load(tmp_path, text, "memory.topk=3", "memory.positions=clamped", environ=environ)
    assert config.memory.topk == 3
    assert config.memory.positions is Positions.CLAMPED
    assert config.kv_store.dram == 2 * 2**30


def test_model_path_is_relative_to_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    text = "model: {path: ../pilot}\n"
    assert load(tmp_path, text).model.path == tmp_path.parent / "pilot"
    assert load(tmp_path, text, "model.path=other").model.path == tmp_path / "cwd" / "other"
    assert load(tmp_path, "model: {path: /abs}\n").model.path == Path("/abs")


def test_the_quantizer_is_relative_to_its_source(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("model: {path: m}\nmemory: {preset: kvquant}\nkv_store: {quantizer: q.safetensors}\n")
    assert load_cluster_config(file).kv_store.quantizer == tmp_path / "q.safetensors"


def test_the_folder_of_saved_sessions_is_relative_to_its_source(tmp_path: Path) -> None:
    text = "model: {path: m}\nsessions: {path: saved, max_bytes: 2GB, ttl: 12h, save_after: 10min}\n"
    sessions = load(tmp_path, text).sessions
    assert sessions.path == tmp_path / "saved"
    assert (sessions.max_bytes, sessions.ttl, sessions.save_after) == (2 * 10**9, 43200, 600)
    assert load(tmp_path, "model: {path: m}\n").sessions.path is None


def test_empty_section_takes_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "model: {path: m}\nmemory:\n").memory.preset == "moorage"


KEYS = "long_context: {anchor_type: KEY_CODES}\nmemory: {topk_keys: 9"
"""Selects single keys; the second line goes on."""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("long_context: {blok_size: 1}", "long_context.blok_size: unknown key; did you mean block_size?"),
        ("long_contxt: {}", "long_contxt: unknown section; did you mean long_context?"),
        ("block_size: 3", "did you mean long_context.block_size?"),
        (
            "sessions: {save_after: 10min}",
            "sessions.save_after: says how sessions are saved, and sessions.path",
        ),
        ("sessions: {ttl: soon}", "sessions.ttl: got 'soon': should be a time such as 90, 30min, 12h or 7d"),
        ("memory: {block_size: 3}", "did you mean long_context.block_size?"),
        ("long_context: {chunk_size: -1}", "long_context.chunk_size: got -1: should be at least 1"),
        ("long_context: {max_seq_len: 0}", "long_context.max_seq_len: got 0: should be at least 1"),
        ("long_context: {local_windows_len: 0}", "long_context.local_windows_len: got 0"),
        ("long_context: {block_size: .nan}", "long_context.block_size: got nan: should be a token count"),
        ("long_context: {chunk_size: true}", "long_context.chunk_size: got True"),
        (
            "long_context: {kv_type: Q4_0}",
            "Q4_0 is not available in this version; use FP16",
        ),
        ("long_context: {anchor_type: MEAN}", "should be 'BLOCK_MEAN', 'BLOCK_MAX', 'QUEST'"),
        ("long_context: {head_select_mode: INDIVIDUAL}", "use SHARED, SEPARATE or PERHEAD"),
        ("long_context: {anchor_num: 3}", "anchor_num: 3 does not divide block_size 32"),
        ("long_context: {preselect_block: 3}", "preselect_block: got 3: should be 'off' or 'prompt'"),
        ("long_context: {layer_step: 0}", "layer_step: got 0"),
        ("long_context: {threads_num: -4}", "threads_num: got -4"),
        (
            "memory: {preset: kivi}",
            "no such preset; available: full, ktransformers, inf-llm",
        ),
        (
            "kv_store: {quantizer: q.safetensors}",
            "kv_store.quantizer: is of no use to kv_type FP16; remove it, or set long_context.kv_type to NUQ4 or",
        ),
        (
            "memory: {preset: kvquant, n_fp16_sinks: 200}",
            "memory.n_fp16_sinks: 200 is more than a block of 128 tokens; use 128 or less",
        ),
        (
            "long_context: {kv_type: INT4, block_size: 40, anchor_type: QUEST}\nmemory: {preset: full}",
            "long_context.block_size: 40 is not a multiple of 16 tokens, which kv_type INT4 packs; use 48",
        ),
        ("memory: {preset: inf-lm}", "did you mean inf-llm?"),
        ("memory: {topk: nan}", "memory.topk: got 'nan': should be a whole number"),
        ("memory: {topk: -1}", "memory.topk: got -1: should be at least 0"),
        ("memory: {topk: 3}\nlong_context: {second_select_num: 4}", "memory.topk: is 3 and"),
        ("memory: {preset: inf-llm, max_cached_block: 3}", "max_cached_block: 3 is less than the 16 blocks"),
        (
            "memory: {preset: inf-llm}\nlong_context: {chunk_size: 1000}",
            "chunk_size: 1000 is not a multiple of",
        ),
        (
            "memory: {preset: inf-llm, exc_block_size: 96}\nlong_context: {chunk_size: auto}",
            "chunk_size: 2048 is not a multiple of exc_block_size 96",
        ),
        ("long_context: {chunk_size: automatic}", "chunk_size: got 'automatic': should be a token count"),
        ("memory: {lag: 1}", "memory.lag: asynchronous selection was removed; leave it out"),
        (
            "memory: {anchor_codes: true}",
            "memory.anchor_codes: four-bit codes of anchors were removed; leave it",
        ),
        (
            "long_context: {anchor_type: QUEST_HADAMARD}",
            "QUEST_HADAMARD was removed, since single keys by KEY_CODES",
        ),
        (
            "long_context: {preselect_block: step}",
            "step was removed, since single keys replace it; select these by",
        ),
        ("memory: {lag_cosine: 0.9}", "memory.lag_cosine: asynchronous selection was removed; leave it out"),
        (
            "memory: {topk_keys: 9, preset: full}",
            "memory.topk_keys: 9 needs codes of single keys, but anchor_type is QUEST",
        ),
        (
            "long_context: {anchor_type: KEY_CODES, block_size: 24}",
            "block_size: 24 is not a multiple of 16, as KEY_CODES anchors need it; use 32 or",
        ),
        (
            "long_context: {anchor_type: KEY_CODES, anchor_num: 2}",
            "anchor_num: 2 is more than the one mean of a block",
        ),
        (f"{KEYS}, topk: 3}}", "memory.topk_keys: 9 selects single keys, but topk 3 selects blocks; remove"),
        (
            f"{KEYS}, preset: inf-llm}}",
            "memory.exc_block_size: 512 lets prompts select blocks, and memory.prefill_blocks is 0; set how many",
        ),
        (f"{KEYS}, prefill_blocks: 4}}", "memory.prefill_blocks: 4 needs a selection in prefill"),
        ("memory: {prefill_blocks: 4}", "memory.prefill_blocks: 4 is of single keys, and topk_keys is 0"),
        (
            "long_context: {anchor_type: KEY_CODES, token_step: 2}\nmemory: {topk_keys: 9}",
            "long_context.token_step: 2 belongs to selections of blocks, but topk_keys 9 selects single keys",
        ),
        (f"{KEYS}, head_pool: max}}", "memory.head_pool: max belongs to selections of blocks"),
        (f"{KEYS}, anchor_pool: sum}}", "memory.anchor_pool: sum belongs to selections of blocks"),
        (f"{KEYS}, scorer: faiss}}", "memory.scorer: faiss belongs to selections of blocks"),
        (
            f"gpu_workers: {{score_on: device}}\n{KEYS}}}",
            "gpu_workers.score_on: device belongs to selections",
        ),
        (
            f"{KEYS}, anchor_space: plain}}",
            "memory.anchor_space: topk_keys 9 needs codes of the keys as",
        ),
        (
            f"{KEYS}, positions: clamped, anchor_space: rotated}}",
            "as positions clamped see them, and anchor_space is rotated; use plain",
        ),
        (f"{KEYS}, positions: rolling}}", "memory.positions: rolling gives only sinks and window a position"),
        (
            "memory: {preset: inf-llm, verify: 4}",
            "memory.verify: 4 gives the answer of full attention, but",
        ),
        (
            "memory: {preset: stream-llm, verify: 4}",
            "memory.verify: 4 attends all keys, but memory.topk 0",
        ),
        *(
            (
                f"memory: {{topk_keys: 9}}\nlong_context: {{anchor_type: KEY_CODES, {key}: {value}}}",
                f"long_context.{key}: {value} belongs to selections of blocks",
            )
            for key, value in [
                ("layer_step", 2),
                ("token_step", 2),
                ("preselect_block", "prompt"),
                ("head_select_mode", "SEPARATE"),
            ]
        ),
        ("memory: {cache_strategy: lru-t}", "should be 'lru', 'fifo' or 'lru-s'"),
        ("kv_store: {dram: -3}", "kv_store.dram: got -3"),
        ("kv_store: {dram: 8XB}", "should be a size such as 8GiB"),
        ("kv_store: {actors: 0}", "kv_store.actors: got 0"),
        ("kv_store: 3", "kv_store: should be a mapping of keys, got 3"),
        ("gpu_workers: {count: 2}", "several GPU workers are not available in this version; use 1"),
        ("gpu_workers: {device: tpu}", "should be 'auto', 'cuda' or 'cpu'"),
        (
            "scheduler: {max_step_tokens: 8192}",
            "max_step_tokens: 8192 is more than long_context.chunk_size 4096",
        ),
        (
            "server: {max_running: 10000}",
            "server.max_running: 10000 sessions at once can't each have a token of a step of 4096",
        ),
        ("server: {grpc: 127.0.0.1}", "should be HOST:PORT"),
        ("server: {grpc: 'localhost:70000'}", "port from 0 to 65535"),
        ("ray: {address: nowhere}", "should be local, auto or HOST:PORT"),
        ("ray: {object_store_memory: 1MiB}", "object_store_memory: got '1MiB': should be at least"),
        ("3: 4", "got 3 as a key"),
    ],
)
def test_one_line_names_the_place_and_the_fix(tmp_path: Path, text: str, names: str) -> None:
    message = refusal(tmp_path, f"model: {{path: m}}\n{text}\n")
    assert re.match(rf"{re.escape(str(tmp_path))}/cluster.yaml:[23]: ", message)
    assert names in message


@pytest.mark.parametrize(
    ("text", "line", "names"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("just text", 1, "not a mapping of sections"),
        ("- a\n- b\n", 1, "not a mapping of sections"),
        ("model: {path: m}\nmemory: [1\n", 3, "not YAML"),
        ("model: {path: m}\n\tmemory: 1\n", 2, "not YAML"),
        ("model: {path: m}\n--- \nmemory: {}\n", 2, "not YAML"),
        ("model: {path: m}\nmodel: {path: n}\n", 2, "model is given twice"),
        ("model: {path: 3}\n", 1, "model.path: got 3: should be a path"),
        ("model:\n", 1, "model.path: missing"),
        ("\x00", 1, "not YAML"),
    ],
)
def test_broken_files_are_told_by_line(tmp_path: Path, text: str, line: int, names: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path}/cluster.yaml:{line}: ")
    assert names in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "not UTF-8 text at byte 0" in refusal(tmp_path, b"\xff\xfe")
    assert "model: missing" in refusal(tmp_path, "memory: {preset: full}\n")
    for path, names in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(InvalidConfig, match=names):
            load_cluster_config(path)


def test_flags_and_variables_are_named(tmp_path: Path) -> None:
    text = "model: {path: m}\n"
    assert refusal(tmp_path, text, "memory.topk").startswith("--set memory.topk: should be section.key=value")
    assert refusal(tmp_path, text, "memory.topk=-1").startswith("--set memory.topk=-1: memory.topk: got -1")
    assert "the value is not YAML" in refusal(tmp_path, text, "memory.topk=[1")
    message = refusal(tmp_path, text, environ={"MOORAGE_KV_STORE__DRM": "1GiB"})
    assert message == "environment MOORAGE_KV_STORE__DRM: kv_store.drm: unknown key; did you mean dram?"
    assert "unknown section" in refusal(tmp_path, text, environ={"MOORAGE_FOO__BAR": "1"})


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    assert refusal(tmp_path, "model: {path: m}\nmemory: {a: 1, b: 2}\n").endswith("(and 1 more)")


def test_a_misspelt_key_is_named_before_the_key_that_it_leaves_missing(tmp_path: Path) -> None:
    assert "model.pth: unknown key; did you mean path? (and 1 more)" in refusal(tmp_path, "model: {pth: m}\n")


def test_every_key_is_documented() -> None:
    rows = reference()
    assert [(row.section, row.key) for row in rows] == [(s, k) for s, k, _ in keys_of(ClusterConfig)]
    for row in rows:
        assert row.description.endswith("."), row
        assert row.default, row
    assert [row.key for row in rows if row.default == "required"] == ["path"]
    assert set(json_schema()["properties"]) == set(ClusterConfig.model_fields)


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {path: m}\n")
    with pytest.raises(ValueError, match="frozen"):
        config.memory.topk = 3  # type: ignore[misc]


def test_cpus_of_actors_are_lists_and_ranges_one_for_each(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: {path: x}\nkv_store: {actors: 2, cpus: [0-2, '4,6-7']}\n")
    assert load_cluster_config(path).kv_store.cpus == [(0, 1, 2), (4, 6, 7)]
    for cpus, hint in (
        ("[0-2]", "1 list for 2 actors"),
        ("[0, x]", "CPU numbers"),
        ("[3-1, 0]", "CPU numbers"),
    ):
        path.write_text(f"model: {{path: x}}\nkv_store: {{actors: 2, cpus: {cpus}}}\n")
        with pytest.raises(InvalidConfig, match=hint):
            load_cluster_config(path)
