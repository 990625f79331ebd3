"""What the pages of other systems show can be imported as it stands there: keys alone, Python, whole pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.config.import_rules import Imported
from moorage.runtime.config.importers import import_config
from moorage.runtime.config.load import build_config
from moorage.runtime.config.source import Source
from moorage.workers.errors import InvalidConfig

FLAT = """
chunk_size: 4096 # prefill chunk size
max_seq_len: 100000 # KVCache length
block_size: 128 # KVCache block size
local_windows_len: 4096
second_select_num: 96
threads_num: 64 # CPU thread num
anchor_type: DYNAMIC
kv_type: FP16
dense_layer_num: 0
anchor_num: 1
preselect_block: False # Whether to preselect.
head_select_mode: SHARED
preselect_block_count: 96
layer_step: 1
token_step: 1
"""
CALL = """TurbomindEngineConfig(
        rope_scaling_factor=2.5,
        session_len=1000000,
        max_batch_size=1,
        cache_max_entry_count=0.7,
        tp=4)"""
SNIPPET = f"""
from lmdeploy import pipeline, GenerationConfig, TurbomindEngineConfig

backend_config = {CALL}
pipe = pipeline('internlm/internlm2_5-7b-chat-1m', backend_config=backend_config)
gen_config = GenerationConfig(top_p=0.8, top_k=40, temperature=0.8, max_new_tokens=1024)
print(pipe('a prompt', gen_config=gen_config))
"""
LMDEPLOY_SECTIONS = {
    "memory": {"preset": "lmdeploy", "rope_scaling_factor": 2.5},
    "long_context": {"max_seq_len": 1000000},
    "server": {"max_running": 1},
}


def imported(directory: Path, text: str) -> Imported:
    path = directory / "given"
    path.write_text(text)
    return import_config(path)


def keys_of_notes(found: Imported) -> list[str]:
    return sorted(note.split(":")[0] for note in found.notes)


def test_the_keys_alone_as_the_page_of_ktransformers_lists_them(tmp_path: Path) -> None:
    found = imported(tmp_path, FLAT)
    assert found.system == "ktransformers"
    config = build_config(Source(Path("result"), {**found.sections, "model": {"path": "m"}}))
    long_context = config.long_context
    assert (long_context.threads_num, long_context.second_select_num, long_context.max_seq_len) == (
        64,
        96,
        100000,
    )
    assert keys_of_notes(found) == ["model.path"]


def test_the_names_of_its_introduction(tmp_path: Path) -> None:
    found = imported(
        tmp_path, "second_block_count: 8\nrepresentative_type: BLOCK_MEAN\nrepresentative_num: 1\n"
    )
    assert found.sections["long_context"] == {
        "second_select_num": 8,
        "anchor_type": "BLOCK_MEAN",
        "anchor_num": 1,
    }


@pytest.mark.parametrize(
    "text",
    [
        SNIPPET,
        f"pipe = pipeline('internlm/internlm2_5-7b-chat-1m', backend_config={CALL})",
        "import lmdeploy\nlmdeploy.pipeline(model_path='internlm/internlm2_5-7b-chat-1m', "
        f"backend_config=lmdeploy.{CALL})",
        f"session_len = 1000000\nmodel = 'internlm/internlm2_5-7b-chat-1m'\npipeline(model, "
        f"backend_config={CALL.replace('=1000000', '=session_len')})",
        f"# Usage\n\nSome words.\n\n```bash\npip install lmdeploy\n```\n\n```python\n{SNIPPET}```\n",
    ],
    ids=["page", "inline", "keywords", "names", "markdown"],
)
def test_a_snippet_of_lmdeploy(tmp_path: Path, text: str) -> None:
    found = imported(tmp_path, text)
    assert found.system == "LMDeploy"
    assert found.sections == {**LMDEPLOY_SECTIONS, "model": {"path": "internlm/internlm2_5-7b-chat-1m"}}
    assert keys_of_notes(found) == ["cache_max_entry_count", "tp"]


def test_the_call_alone_names_no_model(tmp_path: Path) -> None:
    found = imported(tmp_path, CALL)
    assert found.sections == LMDEPLOY_SECTIONS
    assert "model.path" in keys_of_notes(found)


def test_a_snippet_is_parsed_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "was_run"
    text = f"""
open({str(trace)!r}, 'w')
pipeline(choose(), backend_config=TurbomindEngineConfig(
    open({str(trace)!r}, 'w'), session_len=int(open({str(trace)!r}, 'w').write('1')), tp=2 ** 3, **more))
"""
    found = imported(tmp_path, text)
    assert not trace.exists()
    assert found.sections == {"memory": {"preset": "lmdeploy"}}
    notes = "\n".join(found.notes)
    for note in (
        "session_len: int(open(",
        "tp: 2 ** 3: is not a literal; set it by hand",
        "**more: is not a literal",
        "model_path: choose(): is not a literal",
        "TurbomindEngineConfig: arguments without a name are left out",
    ):
        assert note in notes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("TurbomindEngineConfig(", "given:1: not Python"),
        ("x = 1\nTurbomindEngineConfig(" + "(" * 5000, "not Python"),
        ("x = TurbomindEngineConfig(tp=" + "-" * 50_000 + "1)", "not Python"),
        ("'TurbomindEngineConfig(tp=1)'", "has no TurbomindEngineConfig(...) call outside text"),
        ("lmdeploy serve api_server 'm", "not a command line (No closing quotation)"),
        ("model: {path: m}\nlong_context: {block_size: 32}\n", "is a Moorage cluster file already"),
        ("model: {path: m, dtype: float32}\n", "is a Moorage cluster file already"),
        ("a: &a [*a]", "stands inside"),
        ("#" * (2 << 20), "is larger than 1 MiB"),
        ("```\nnothing: 1\n```\n", "neither a ktransformers config.yaml"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        imported(tmp_path, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "kv_type"), [(8, "INT8"), (4, "INT4"), (0, None)])
@pytest.mark.parametrize(
    "text",
    [
        "lmdeploy serve api_server m --quant-policy {}",
        "TurbomindEngineConfig(session_len=8, quant_policy={})",
    ],
)
def test_bits_of_keys_and_values(tmp_path: Path, text: str, bits: int, kv_type: str | None) -> None:
    found = imported(tmp_path, text.format(bits))
    assert found.sections.get("long_context", {}).get("kv_type") == kv_type
    assert not [note for note in found.notes if "quant_policy" in note]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidConfig,
        match="no such file or directory; give a configuration of ktransformers, InfLLM or LMDeploy",
    ):
        import_config(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "anchor_type: {}",
        "long_context: {{kv_type: {}}}",
        "model: {{type: {}}}",
        "model: {{type: inf-llm, cache_strategy: {}}}",
        "TurbomindEngineConfig(tp='{}')",
        "lmdeploy serve api_server m --quant-policy {}",
    ],
)
def test_long_values_are_clipped_in_notes_and_errors(tmp_path: Path, text: str) -> None:
    try:
        lines = imported(tmp_path, text.format("x" * 5000)).notes
    except InvalidConfig as error:
        lines = [str(error)]
    assert all(len(line) < 400 and "\n" not in line for line in lines)
