import json
from pathlib import Path

import pytest
import yaml

from moorage.runtime.cli import main
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.workers.hf_config import read_model_spec

PILOT = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-pilot"


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    return capsys.readouterr().out


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        f"model: {{path: {PILOT}}}\nmemory: {{preset: inf-llm, topk: 4}}\nkv_store: {{dram: 64MiB}}\n"
        "server: {grpc: '127.0.0.1:0'}\n"
    )
    return path


def test_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str], cluster: Path) -> None:
    values = yaml.safe_load(output(capsys, "config", str(cluster)))
    assert values["memory"]["topk"] == values["long_context"]["second_select_num"] == 4
    assert values["memory"]["positions"] == "clamped"
    assert values["long_context"]["anchor_type"] == "REPR_TOPK"
    assert values["scheduler"]["max_step_tokens"] == 4096
    as_json = json.loads(output(capsys, "config", str(cluster), "--json", "--set", "memory.topk=5"))
    assert as_json["memory"]["topk"] == 5


def test_what_it_prints_can_be_loaded_again(
    capsys: pytest.CaptureFixture[str], cluster: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(output(capsys, "config", str(cluster)))
    pilot = read_model_spec(PILOT)
    first, second = (resolve_memory(load_cluster_config(file), model=pilot) for file in (cluster, again))
    assert first == second


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"memory.preset={name}"] for name in PRESETS),
        ["kv_store.cpus=[0, '0']"],
        ["memory.rope_scaling={rope_type: yarn, factor: 4}", "gpu_workers.device_memory=20GiB"],
        ["long_context.chunk_size=auto", "long_context.preselect_block=prompt"],
    ],
    ids=str,
)
def test_printing_what_it_printed_changes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str]
) -> None:
    first = tmp_path / "first.yaml"
    first.write_text(f"model: {{path: {PILOT}}}\n")
    flags = [word for text in overrides for word in ("--set", text)]
    printed = output(capsys, "config", "--file-only", str(first), *flags)
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert output(capsys, "config", "--file-only", str(again)) == printed


def test_the_session_length_follows_the_model_and_a_longer_one_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster = tmp_path / "pilot.yaml"
    cluster.write_text(
        f"model: {{path: {PILOT}}}\nkv_store: {{dram: 64MiB}}\nserver: {{grpc: '127.0.0.1:0'}}\n"
    )
    values = yaml.safe_load(output(capsys, "config", str(cluster)))
    assert values["long_context"]["max_seq_len"] == 512
    with pytest.raises(SystemExit):
        main(("config", str(cluster), "--set", "long_context.max_seq_len=4096"))
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["long_context"]["max_seq_len"] == 4096
    assert "warning: long_context.max_seq_len: 4,096 tokens are more than the 512" in printed.err


def test_explain_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "config", "--explain")
    for section, field in ClusterConfig.model_fields.items():
        assert f"{section}: " in text
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            assert key in text
    schema = json.loads(output(capsys, "config", "--explain", "--json"))
    assert schema["additionalProperties"] is False


def test_explain_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, output(capsys, "config", "--explain").splitlines())) <= 80


def test_explain_gives_the_defaults_of_the_preset_in_force(
    capsys: pytest.CaptureFixture[str], cluster: Path
) -> None:
    assert "topk_keys = 768 (preset moorage)\n" in output(capsys, "config", "--explain")
    other = ("--set", "memory.preset=ktransformers")
    assert "topk = 96 (preset ktransformers)\n" in output(capsys, "config", "--explain", *other)
    # Budgets are of the same tokens in blocks of another size.
    half = (*other, "--set", "long_context.block_size=64")
    assert "topk = 192 (preset ktransformers)\n" in output(capsys, "config", "--explain", *half)
    of_file = output(capsys, "config", "--explain", str(cluster))
    assert "topk = 16 (preset inf-llm); given: 4\n" in of_file
    assert "positions = clamped (preset inf-llm)\n" in of_file
    assert "dram = 8GiB; given: 64MiB\n" in of_file


def test_explain_of_sections_and_keys(capsys: pytest.CaptureFixture[str], cluster: Path) -> None:
    text = output(capsys, "config", "--explain", "memory.topk", str(cluster), "scheduler")
    assert "topk = 16 (preset inf-llm); given: 4" in text
    assert "decode_prefill_tokens = 512" in text
    assert "max_step_tokens = unset" in text
    assert "n_init" not in text
    assert "dram" not in text
    with pytest.raises(SystemExit) as left:
        main(["config", "--explain", "memry"])
    assert left.value.code == 2
    assert "memry is neither a section, a key nor a file" in capsys.readouterr().err


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(output(capsys, "presets", "--json"))["presets"]
    assert [row["name"] for row in rows] == list(PRESETS)
    assert rows[0]["topk"] is None
    one = json.loads(output(capsys, "presets", "inf-llm", "--json"))["presets"]
    assert [row["name"] for row in one] == ["inf-llm"]


def test_presets_fit_80_columns_and_say_what_sets_each_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = output(capsys, "presets").splitlines()
    assert max(map(len, lines)) <= 80
    names = [
        line.removesuffix(" (the default)") for line in lines if line and " " not in line.partition(" (")[0]
    ]
    assert names == list(PRESETS)
    own = lines[lines.index("inf-llm") + 1 : lines.index("chunkllama")]
    assert "positions=clamped, n_init=128, topk=16, exc_block_size=512," in " ".join(" ".join(own).split())
    assert "window=" not in " ".join(own)
    assert "topk=all" in " ".join(lines)
    every = output(capsys, "presets", "inf-llm")
    assert all(axis in every for axis in PRESETS["inf-llm"].axes())
    with pytest.raises(SystemExit) as left:
        main(["presets", "inf-lm"])
    assert left.value.code == 2
    assert "did you mean inf-llm?" in capsys.readouterr().err


def test_needs_a_file_or_explain(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["config"])
    assert left.value.code == 2
    assert "give one cluster file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "broken",
    [
        "model.path=/nowhere",
        "kv_store.dram=4096TiB",
        "gpu_workers.num_threads=1000",
        "server.grpc=256.1.1.1:5",
    ],
)
def test_config_and_launch_refuse_the_same_in_the_same_words(
    capsys: pytest.CaptureFixture[str], cluster: Path, broken: str
) -> None:
    told = []
    for command in ("config", "launch"):
        with pytest.raises(SystemExit) as left:
            main((command, str(cluster), "--set", broken))
        assert left.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        told.append(printed.err.partition(", which has")[0])
    assert told[0] == told[1]
    assert told[0].startswith("error: ")


def test_a_file_alone_can_be_checked_for_another_host(
    capsys: pytest.CaptureFixture[str], cluster: Path
) -> None:
    arguments = (
        "config",
        str(cluster),
        "--file-only",
        "--set",
        "model.path=/nowhere",
        "--set",
        "kv_store.dram=9TiB",
    )
    assert yaml.safe_load(output(capsys, *arguments))["model"]["path"] == "/nowhere"


@pytest.mark.parametrize("name", ["x" * 300, "/dev/null/x", ""])
@pytest.mark.parametrize("command", ["config", "launch"])
def test_a_path_that_no_system_takes_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main((command, name))
    assert left.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "give" in printed.err


@pytest.mark.parametrize("command", ["config", "launch", "size --model"])
def test_a_file_of_weights_is_called_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    for name, words in (
        ("m.gguf", "not a complete GGUF file (the version ends beyond the file); download it again"),
        ("m.safetensors", "is a file and not"),
    ):
        (tmp_path / name).write_bytes(b"GGUF" if name == "m.gguf" else b"\0" * 16)
        with pytest.raises(SystemExit) as left:
            main((*command.split(), str(tmp_path / name)))
        assert left.value.code == 1
        assert words in capsys.readouterr().err
