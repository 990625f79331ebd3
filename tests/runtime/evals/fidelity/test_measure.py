"""The comparison on an embedded model: what attends everything says what full attention says, and what less, less."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moorage.runtime.cli import main
from moorage.runtime.evals.fidelity.choices import Frame, choices, full_attention
from moorage.runtime.evals.fidelity.forced_session import ForcedSession
from moorage.runtime.evals.fidelity.measure import divergence
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.packaged import DEPLOY
from moorage.workers.gpu.attention.mass_probe import MassProbe
from moorage.workers.hf_config import read_model_spec

MODEL = DEPLOY / "models" / "moorage-ref"
LENGTH = 320


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["eval", "fidelity", "--model", str(MODEL), *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_command_measures_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    least = "memory.preset=ktransformers,long_context.block_size=32,long_context.anchor_type=BLOCK_MEAN"
    flags = f"--lengths {LENGTH} --tasks copy --passages 2 --sinks 32 --window 64 --budgets 64 --preset full"
    variants = [
        f"{name}:{least},memory.topk={blocks}" for name, blocks in (("all", 64), ("some", 2), ("none", 0))
    ]
    given = [word for variant in variants for word in ("--variant", variant)]
    assert run(*flags.split(), *given, "--output", str(tmp_path)) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "fidelity.json").read_text())
    found = {cell["choice"]: cell for cell in report["cells"]}
    assert set(found) == {"full", "all", "some", "none"}
    assert found["full"]["kl"] == 0
    assert found["all"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["all"]["kl"] < found["some"]["kl"] < found["none"]["kl"]
    assert found["none"]["kl"] > 0.1
    for name in ("full", "all"):
        assert found[name]["agreement"] == 1
        assert found[name]["hits"] == found[name]["full_hits"]
        assert found[name]["mass"] == pytest.approx(1, abs=1e-4)
    assert found["none"]["low_mass"] <= found["none"]["mass"] < found["some"]["mass"] < 1
    assert np.shape(found["some"]["mass_by_head"]) == (4, 4)
    # The sink block, two selected blocks, and a window of 64 that begins anywhere in its first block.
    assert 160 <= found["some"]["attended"] <= 160 + 31
    assert report["retrieval_heads"]
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    assert "rank correlation with KL" in (tmp_path / "fidelity.md").read_text()
    assert "retrieval heads" in printed


def test_json_stands_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        f"--lengths {LENGTH} --tasks continue,retrieve --passages 1 --preset stream-llm --window 64 --json -"
    )
    assert (
        run(*flags.split(), "--variant", "narrow:memory.preset=stream-llm,long_context.local_windows_len=32")
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    first = report["cells"][0]
    assert (first["task"], first["choice"]) == ("continue", "full")
    assert {cell["retrieval_mass"] for cell in report["cells"]} == {None}
    assert all(cell["kl_interval"] is None and cell["kl"] >= 0 for cell in report["cells"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tasks copy,sing", "'sing': should be of copy, continue, retrieve"),
        ("--lengths 100", "'100': at least 256 each"),
        ("--budgets 0", "'0' should be whole numbers of at least 1"),
    ],
)
def test_wrong_use_is_named(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags.split()) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_divergence_is_that_of_the_distributions() -> None:
    truth, said = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    expected = 0.9 * np.log(9) - 0.1 * np.log(9)
    assert divergence(truth.log(), said.log()) == pytest.approx([0, expected], abs=1e-6)
    noisy = truth.log() + 1e-6  # as fp32 leaves them
    assert (divergence(noisy, truth.log()) >= 0).all()


def test_single_keys_estimate_the_mass_that_they_hold() -> None:
    """The means of blocks stand for all other keys, so that a step knows its own share without an exact pass."""
    _, few, many = choices(
        LocalConfig(None, MODEL), read_model_spec(MODEL), ["moorage"], [], [32, 256], Frame(32, 64)
    )
    engine = LocalEngine(many.config, 700, memory=many.memory)
    probe = MassProbe(engine.exact, engine.layout.block_size)
    engine.observe(probe)
    ids = engine.tokenizer.encode((DEPLOY / "documents" / "python_reference.txt").read_text()[:4000])
    session = ForcedSession(engine)
    found = {}
    for choice in (few, many):
        session.prefill(ids[:600], choice.memory)
        probe.samples, probe.enabled = [], True
        session.decode(ids[600])
        probe.enabled = False
        found[choice.budget] = [
            (np.mean(sample.mass), np.mean(sample.estimated))
            for sample in probe.samples
            if sample.estimated is not None
        ]
    for memory in (full_attention(few.memory), few.memory.replace(completion=False)):
        session.prefill(ids[:600], memory)
        probe.samples, probe.enabled = [], True
        session.decode(ids[600])
        assert [sample.estimated for sample in probe.samples] == [None] * engine.model.num_layers
    engine.close()
    for of_layers in found.values():
        assert len(of_layers) == engine.model.num_layers
        assert all(estimated == pytest.approx(mass, abs=0.1) for mass, estimated in of_layers)
        assert all(0 < estimated < 1 for _, estimated in of_layers)
    assert np.mean(found[32]) < np.mean(found[256])


@pytest.mark.parametrize("preset", ["moorage", "ktransformers", "inf-llm"])
def test_a_kept_prompt_decodes_as_a_fresh_one(preset: str) -> None:
    """Whatever decoded before over the same prompt."""
    _, choice = choices(LocalConfig(None, MODEL), read_model_spec(MODEL), [preset], [], [128], Frame(32, 64))
    engine = LocalEngine(choice.config, 700, memory=choice.memory)
    ids = engine.tokenizer.encode((DEPLOY / "documents" / "python_reference.txt").read_text()[:4000])[:660]
    prompt, fed = ids[:600], ids[600:640]

    def decoded(session: ForcedSession, memory: object) -> torch.Tensor:
        session.prefill(prompt, memory)  # type: ignore[arg-type]
        return torch.stack([session.decode(token_id) for token_id in fed])

    session = ForcedSession(engine)
    fresh = decoded(session, choice.memory)
    full = decoded(session, full_attention(choice.memory))
    again = decoded(session, choice.memory)
    again_full = decoded(session, full_attention(choice.memory))
    engine.close()
    assert session.prefilled_tokens < 3 * len(prompt)
    assert divergence(fresh, again).max() < 1e-5
    assert divergence(full, again_full).max() < 1e-5
    assert divergence(full, fresh).mean() > 1e-4
