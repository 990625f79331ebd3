"""Mistakes that are told before anything is started."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moorage.runtime.cluster import registry
from moorage.runtime.cluster.os_processes import ProcessId
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.preflight import check_host
from moorage.workers.errors import InvalidConfig, InvalidModel

PILOT = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"
Load = Callable[..., ClusterConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A cluster file with the model and one more line, loaded."""

    def loaded(model: Path = PILOT, *overrides: str) -> ClusterConfig:
        file = tmp_path / "cluster.yaml"
        file.write_text(f"model: {{path: {model}}}\nkv_store: {{dram: 1GiB}}\n")
        return load_cluster_config(file, ["server.grpc=127.0.0.1:0", *overrides])

    return loaded


def test_good_cluster(load: Load) -> None:
    check_host(load())


def test_a_model_without_a_tokenizer_is_told_before_a_request_meets_it(load: Load, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(PILOT, model)
    model.chmod(0o755)
    (model / "tokenizer.json").unlink()
    said: list[str] = []
    check_host(load(model), said.append)
    (warning,) = said
    assert warning.startswith(f"warning: {model / 'tokenizer.json'}: missing; requests can send token ids")


def test_missing_model(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"model\.path"):
        check_host(load(tmp_path / "nowhere"))


@pytest.mark.parametrize("keep_bytes", [0, 7, 8, 100, 100_000])
def test_truncated_weights(load: Load, tmp_path: Path, keep_bytes: int) -> None:
    model = tmp_path / "model"
    shutil.copytree(PILOT, model)
    model.chmod(0o755)
    file = model / "model.safetensors"
    kept = file.read_bytes()[:keep_bytes]
    file.unlink()
    file.write_bytes(kept)
    with pytest.raises(InvalidModel, match=r"model\.safetensors: .*download it again"):
        check_host(load(model))


def test_more_memory_than_the_host_has(load: Load) -> None:
    with pytest.raises(
        InvalidConfig, match=r"kv_store\.dram: 4096.00 TiB, .* don't fit this host, which has"
    ):
        check_host(load(PILOT, "kv_store.dram=4096TiB"))


def test_port_in_use(load: Load) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InvalidConfig, match=f"server.grpc: {address} can't be bound"):
            check_host(load(PILOT, f"server.grpc={address}"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("gpu_workers.num_threads=1000", "gpu_workers.num_threads: 1000 is more than the"),
        (
            "kv_store.cpus=[0, 8000]",
            "kv_store.cpus: CPU 8000 is not one that this process may run on; allowed are",
        ),
        ("kv_store.dram=1KiB", "has no room for one block"),
        ("server.grpc=256.1.1.1:5", "server.grpc: 256.1.1.1:5 can't be bound"),
        (f"server.grpc={'x' * 100}.com:5", "can't be bound (no such host name)"),
        ("memory.rope_scaling={rope_type: x}", "rope_type 'x' is not supported"),
        ("kv_store.actors=900", "lower kv_store.actors or ray.object_store_memory"),
        (
            "long_context.local_windows_len=1024M",
            "lower server.max_running, memory.topk or long_context.local",
        ),
        ("long_context.chunk_size=1M", "lower long_context.chunk_size"),
        ("gpu_workers.device_memory=1MiB", "gpu_workers.device_memory: 1.00 MiB is too little"),
    ],
)
def test_what_this_host_cannot_do_is_refused_with_the_key(load: Load, override: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        check_host(load(PILOT, override))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cuda_without_a_gpu_is_refused_at_once(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The devices of this host are the test's to choose; on one with a GPU it would be accepted."""
    monkeypatch.setattr("moorage.runtime.planning.gpu_presence._DEVICES", tmp_path)
    with pytest.raises(
        InvalidConfig, match=r"gpu_workers\.device: cuda can't be used, since this host has no NVIDIA"
    ):
        check_host(load(PILOT, "gpu_workers.device=cuda"))
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(InvalidConfig, match="since CUDA_VISIBLE_DEVICES hides every GPU"):
        check_host(load(PILOT, "gpu_workers.device=cuda"))


def test_a_broken_tokenizer_is_refused(load: Load, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(PILOT, model)
    model.chmod(0o755)
    (model / "tokenizer.json").unlink()
    check_host(load(model))
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"tokenizer\.json: not a tokenizer"):
        check_host(load(model))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("chat_template.jinja", "{% for %}", r"chat_template\.jinja: the chat template can't be read"),
        ("tokenizer_config.json", '{"eos_token": 1}', r"tokenizer_config\.json: eos_token is 1"),
        ("generation_config.json", '{"temperature": -1}', r"generation_config\.json: temperature is -1"),
    ],
)
def test_a_broken_file_beside_the_model_is_refused_by_its_name(
    load: Load, tmp_path: Path, name: str, text: str, words: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(PILOT, model, copy_function=shutil.copyfile)
    model.chmod(0o755)
    (model / name).write_text(text)
    with pytest.raises(InvalidModel, match=words):
        check_host(load(model))


def test_a_port_that_other_hosts_reach_is_said(load: Load) -> None:
    said: list[str] = []
    check_host(load(PILOT, "server.grpc=127.0.0.1:0"), said.append)
    assert said == []
    check_host(load(PILOT, "server.grpc=0.0.0.0:0", "server.keys=none"), said.append)
    (warning,) = said
    assert warning.startswith("warning: server.grpc: 0.0.0.0:0 can be reached by other hosts")


@pytest.mark.parametrize("key", ["server.grpc", "server.http"])
def test_a_port_that_other_hosts_reach_needs_keys(load: Load, key: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{key}: 0.0.0.0:0 can be reached .* no API keys are set"):
        check_host(load(PILOT, "server.grpc=127.0.0.1:0", f"{key}=0.0.0.0:0"))


def test_files_of_keys_and_certificates_are_read_before_anything_starts(load: Load, tmp_path: Path) -> None:
    for text, settings, words in (
        (None, ["server.keys={file}"], "no such file; make a key"),
        ("{}", ["server.keys={file}"], "is no file of API keys"),
        ("x", ["server.tls_cert={file}", "server.tls_key={file}"], "are no certificate with its key"),
    ):
        file = tmp_path / "file"
        if text is not None:
            file.write_text(text)
        given = [one.format(file=file) for one in settings]
        with pytest.raises(InvalidConfig, match=words):
            check_host(load(PILOT, "server.grpc=127.0.0.1:0", *given))


def test_a_port_that_a_cluster_of_ours_holds_is_told_with_the_way_to_stop_it(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path / "run"))
    own = ProcessId.of(os.getpid())
    assert own is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        registry.save(registry.ClusterRecord(address, "serving", "cluster.yaml", None, (own,)))
        with pytest.raises(InvalidConfig, match=f"serves at {address} already; stop it with `runtime stop"):
            check_host(load(PILOT, f"server.grpc={address}"))


def rewritten(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of the embedded model with other tensors."""
    model = tmp_path / "model"
    shutil.copytree(PILOT, model)
    model.chmod(0o755)
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)
    return model


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"), r"up_proj\.weight is missing"),
        (lambda tensors: tensors.update({"model.norm.weight": np.ones(3, np.float32)}), r"has shape \[3\]"),
        (lambda tensors: tensors.update({"model.norm.weight": np.ones(256, np.int8)}), "has type I8"),
        (lambda tensors: tensors.update({"model.extra.weight": np.ones(2, np.float32)}), "has no place"),
    ],
    ids=("missing", "shape", "type", "extra"),
)
def test_weights_that_do_not_fit_the_configuration_are_told_before_anything_starts(
    load: Load, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], complaint: str
) -> None:
    with pytest.raises(InvalidModel, match=complaint):
        check_host(load(rewritten(tmp_path, change)))


def test_a_longer_session_than_the_trained_length_is_let_through_with_a_warning(load: Load) -> None:
    assert check_host(load()).warnings == ()
    (warning,) = check_host(load(PILOT, "long_context.max_seq_len=4096")).warnings
    assert "4,096 tokens are more than the 512" in warning
