"""A GGUF file is planned, tokenised and run as the directory that it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.planning.known_models import find_model
from moorage.runtime.planning.launch_plan import LaunchPlan, plan_launch
from moorage.runtime.planning.memory import weights_bytes
from moorage.runtime.text.body import Body
from moorage.runtime.text.process import TextProcess
from tests import tokenizers
from tests.gguf_files import byte_level_keys, convert
from tests.tiny_models import build_tiny_checkpoint

TEXT = "The capital of France is naïve; 日本語 <|im_end|>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, and beside it the same as `model.gguf` and, of four bits, as `small.gguf`."""
    folder = tmp_path_factory.mktemp("model")
    tokenizers.save(folder, "byte_level")
    keys = byte_level_keys(folder)
    size = len(keys["tokenizer.ggml.tokens"])
    bos, eos = (keys.pop(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    del keys["tokenizer.ggml.eot_token_id"]
    ids = {"vocab_size": size, "bos_token_id": bos, "eos_token_id": eos}
    tiny = build_tiny_checkpoint("llama2", folder, intermediate_size=160, **ids)
    convert(tiny, folder / "model.gguf", "llama", keys=keys)
    convert(tiny, folder / "small.gguf", "llama", {"weight": GGMLQuantizationType.Q4_1}, keys=keys)
    return folder


def plan(model: Path) -> LaunchPlan:
    changes = ("gpu_workers.device=cpu", "kv_store.dram=64MiB", "memory.preset=full", "model.dtype=float32")
    return plan_launch(load_cluster_config(model, changes, {}))


def test_what_a_launch_plans_is_the_same(directory: Path) -> None:
    ours, theirs = plan(directory / "model.gguf"), plan(directory)
    assert ours.spec == theirs.spec
    assert ours.capacity == theirs.capacity
    assert ours.tokenizer is not None
    assert theirs.tokenizer is not None
    assert ours.tokenizer.encode(TEXT) == theirs.tokenizer.encode(TEXT)


def test_it_generates_the_same_tokens(directory: Path) -> None:
    answers = []
    for model in (directory, directory / "model.gguf"):
        engine = LocalEngine(plan(model).config, 64)
        answers.append(list(engine.generate(engine.tokenizer.encode(TEXT), 12)))
        engine.close()
    assert answers[0] == answers[1]
    assert len(answers[0]) > 1


def test_sizes_count_the_codes(directory: Path) -> None:
    small, whole = (plan(directory / name).deployment for name in ("small.gguf", "model.gguf"))
    assert weights_bytes(small) < weights_bytes(whole) / 4
    assert find_model(str(directory / "small.gguf")).stored_matrices


async def test_the_text_process_reads_it(directory: Path) -> None:
    tokenizer = plan(directory).tokenizer
    assert tokenizer is not None
    process = TextProcess(directory / "model.gguf", max_bytes_per_token=32)
    try:
        with Body(TEXT.encode()) as body:
            assert list(await process.encode("prompt", body)) == tokenizer.encode(TEXT)
    finally:
        await process.close()
