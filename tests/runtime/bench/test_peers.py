"""One model in several engines: each brings its figures, and equal answers are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moorage.runtime.bench.measure import Sample
from moorage.runtime.bench.peers.dequantised import write_dequantised
from moorage.runtime.bench.peers.figures import Figures, make_figures, ratios_to_peers
from moorage.runtime.bench.peers.peer import PeerSpec
from moorage.runtime.bench.peers.process import PeerProcess
from moorage.runtime.bench.peers.run import PeerPlan, agreement, peer_specs
from moorage.runtime.cli import main
from moorage.runtime.packaged import DEPLOY
from moorage.workers.errors import InvalidModel, Unavailable
from tests.real_model import smollm2

PILOT = DEPLOY / "models" / "moorage-pilot"
REF = DEPLOY / "models" / "moorage-ref"


def plan(**changes: object) -> PeerPlan:
    values: dict[str, object] = {
        "model": REF,
        "gguf": None,
        "lengths": (64, 128),
        "prefill_context": 128,
        "transformers_context": 128,
        "threads": 1,
        "rounds": 1,
        "steps": 2,
        "weights": ("float",),
        "preset": "moorage",
    }
    return PeerPlan(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_table_and_json_have_every_engine_at_every_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the longest prefilled prompt the past is made up: tokens are generated, no prompt is timed."""
    pytest.importorskip("transformers")
    file = tmp_path / "peers.json"
    words = ["bench", "peers", "--model", str(REF), "--lengths", "96,400", "--prefill-context", "128"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *words,
                "--weights",
                "float",
                "--rounds",
                "1",
                "--steps",
                "2",
                "--compare-answers",
                "--json",
                str(file),
            ]
        )
    assert ended.value.code == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    rows = {(row["name"], row["context_tokens"]): row for row in report["rows"]}
    engines = {"transformers", "moorage float full", "moorage float moorage"}
    assert set(rows) >= {(name, length) for name in engines for length in (96, 400)}
    for (name, length), row in rows.items():
        assert row["decode_s"] > 0
        assert row["peak_bytes"] > 10**7
        assert (row["prefill_s"] is None) == (length == 400)
        assert ("transformers" in row["ratio_to"]) == name.startswith("moorage")
    (answers,) = [one for one in report["agreements"] if one["peer"] == "transformers"]
    assert answers["prompts"] == 20
    assert (
        answers["identical"] >= 18
    )  # keys and values are stored in fp16, which decides between equal tokens
    shown = capsys.readouterr()
    assert "moorage float full" in shown.out
    assert "of 20 prompts" in shown.out


def test_engines_that_can_not_run_are_named_in_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.peers.run.installed", lambda _: False)
    specs, notes = peer_specs(plan())
    assert [spec.kind for spec in specs] == ["moorage"]
    assert [note.partition(" is not installed")[0] for note in notes] == ["llama.cpp", "transformers"]
    assert all("pip install" in note for note in notes)


def test_llama_cpp_is_left_out_of_a_directory_without_a_gguf_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.runtime.bench.peers.run.installed", lambda _: True)
    specs, notes = peer_specs(plan())
    assert [spec.kind for spec in specs] == ["transformers", "moorage"]
    assert notes == ["llama.cpp reads GGUF files alone, so its rows are missing: name one with --gguf"]


def test_transformers_needs_accelerate_for_a_gguf_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("moorage.runtime.bench.peers.run.installed", lambda name: name != "accelerate")
    file = tmp_path / "model.gguf"
    file.touch()
    specs, notes = peer_specs(plan(model=file))
    assert [spec.kind for spec in specs] == ["llama.cpp", "moorage"]
    assert [spec.model for spec in specs] == [file, file]
    assert notes == ["transformers reads GGUF files with accelerate alone: pip install accelerate"]


def test_forms_of_weights_are_engines_of_their_own() -> None:
    specs = [spec for spec in peer_specs(plan(weights=("float", "int4")))[0] if spec.kind == "moorage"]
    assert [spec.name for spec in specs] == ["moorage float", "moorage int4"]
    assert [spec.overrides for spec in specs] == [("model.weights=float",), ("model.weights=int4",)]
    assert all(spec.modes == ("full", "moorage") for spec in specs)


def test_ratios_are_speeds() -> None:
    calm = [Sample({"linear": 0.001}, 0.002, disturbed=False)]
    own = make_figures("moorage float full", 100, calm, calm, 5)
    peer = Figures("llama.cpp", 100, 0.004, 5, prefill_s=None)
    found = ratios_to_peers(own, [own, peer, Figures("llama.cpp", 200, 1.0, 5)])["llama.cpp"]
    assert found.prefill is None
    assert found.decode == pytest.approx(2.0)
    assert own.prefill_tokens_per_s == pytest.approx(50_000)
    assert own.decode_part_s == {"linear": 0.001}
    assert ratios_to_peers(peer, [own, peer]) == {}


def test_answers_are_equal_up_to_their_first_other_token() -> None:
    found = agreement("own", "peer", [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 9, 3]])
    assert (found.identical, found.prompts, found.first_differences) == (1, 2, (3, 1))


def test_errors_of_a_peer_reach_the_caller(tmp_path: Path) -> None:
    """A broken model is one line, and a process that dies is told with its exit code."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"config\.json"):
        PeerProcess(PeerSpec("moorage float", "moorage", tmp_path, 1, ("full",), longest=64))
    with PeerProcess(PeerSpec("moorage float", "moorage", PILOT, 1, ("full",), longest=64)) as process:
        process._process.kill()
        with pytest.raises(Unavailable, match="moorage float: its process ended with code -9"):
            process.prefill([1, 2, 3], 8)


@pytest.mark.slow
def test_a_real_model_answers_as_its_peers_do(tmp_path: Path) -> None:
    """SmolLM2 from its GGUF file: the first 32 greedy tokens of 20 answers, computed in float32.

    From the quantised file itself llama.cpp rounds activations to 8 bits, and its answers part from everyone's.
    """
    for package in ("transformers", "accelerate", "llama_cpp"):
        pytest.importorskip(package)
    file = tmp_path / "answers.json"
    words = ["bench", "peers", "--model", str(smollm2()), "--lengths", "64,5000", "--prefill-context", "64"]
    words += ["--rounds", "1", "--steps", "1", "--weights", "float,auto", "--compare-answers"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json", str(file)])
    assert ended.value.code == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    made_up = [row for row in report["rows"] if row["context_tokens"] == 5000]
    assert {"llama.cpp", "transformers"} <= {row["name"] for row in made_up}
    assert all(row["prefill_s"] is None and row["decode_s"] > 0 for row in made_up)
    identical = {(one["name"], one["peer"]): one["identical"] for one in report["agreements"]}
    for name in ("moorage float", "moorage auto"):
        assert identical[name, "transformers"] >= 18
        assert identical[name, "llama.cpp float32"] >= 18
        assert (name, "llama.cpp") in identical


def test_a_dequantised_copy_has_the_same_values_and_keys(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    writer = gguf.GGUFWriter(tmp_path / "packed.gguf", "llama")
    writer.add_context_length(77)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    write_dequantised(tmp_path / "packed.gguf", tmp_path / "copy.gguf")
    copy = gguf.GGUFReader(tmp_path / "copy.gguf")
    (tensor,) = copy.tensors
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(
        tensor.data, gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1).reshape(4, 64)
    )
    assert copy.fields["llama.context_length"].contents() == 77
    assert copy.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert copy.fields["general.architecture"].contents() == "llama"
