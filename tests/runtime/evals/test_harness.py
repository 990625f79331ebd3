"""lm-evaluation-harness on a target: the same samples come to the same score as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moorage.client import Client
from moorage.runtime.cli import main
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.ruler import ruler_tasks
from moorage.runtime.evals.runner import run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Place, Suite
from moorage.runtime.serving.protocol import GenerateParams
from tests.answering_engine import AnsweringEngine
from tests.toy_engine import VOCAB_SIZE
from tests.toy_server import ToyServer, toy_server

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")

TASK = """
task: our_needles
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{outputs}}}}"
process_results: !function scoring.process_results
metric_list:
  - metric: share
    aggregation: mean
    higher_is_better: true
generation_kwargs: {{do_sample: false, max_gen_toks: 128, until: []}}
metadata: {{version: 1.0}}
"""
SCORING = """
from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all


def process_results(doc, results):
    return {"share": string_match_all(postprocess_pred(results), [doc["outputs"]])}
"""


@dataclass
class Request:
    args: tuple[Any, ...]


def reads_some(prompt: str) -> str:
    """Finds the number of a key whose name has an even number of letters."""
    key = re.findall(r"for (\S+) mentioned", prompt)[-1]
    value = re.findall(rf"for {re.escape(key)} is: (\d+)\.", prompt)[0]
    return f" {value}." if len(key) % 2 else " I do not know."


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server(engine=AnsweringEngine(reads_some)) as running:
        yield running


def test_the_same_samples_come_to_the_same_score(
    server: ToyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (task,) = ruler_tasks(["niah_single_1"], text_haystack(), (3000,), 12, 0, {})
    with Client(server.address) as client:
        ours = run(Suite("ruler", (task,)), ServerTargets(client))
    asked = [params for params in server.engine.seen if isinstance(params, GenerateParams)]
    samples = tmp_path / "samples.jsonl"
    with samples.open("w") as file:
        for record, params in zip(ours.records, asked, strict=True):
            entry = {
                "input": server.engine.tokenizer.decode(params.prompt),
                "outputs": record.outcome.answers,
            }
            file.write(json.dumps(entry) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "scoring.py").write_text(SCORING)
    (tmp_path / "tasks" / "our_needles.yaml").write_text(TASK.format(file=samples))
    result = tmp_path / "out.json"
    flags = ["--include-path", str(tmp_path / "tasks"), "--json", str(result)]
    with pytest.raises(SystemExit) as left:
        main(["eval", "harness", "our_needles", "--address", server.address, *flags])
    assert left.value.code == 0
    theirs = json.loads(result.read_text())["results"]["our_needles"]["share,none"]
    assert theirs == pytest.approx(ours.rows[0].value)
    assert 0 < theirs < 1
    assert [params.prompt for params in server.engine.seen[12:] if isinstance(params, GenerateParams)] == [
        params.prompt for params in asked
    ]
    assert "our_needles" in capsys.readouterr().out


def test_likelihoods_and_stop_strings(server: ToyServer) -> None:
    from moorage.runtime.evals.harness import HarnessModel

    assert isinstance(server.engine, AnsweringEngine)
    with Client(server.address) as client:
        model = HarnessModel(ServerTargets(client).at("full", None))
        server.engine.answer = lambda prompt: " b" if prompt.endswith("a") else "one. two\n\nthree"
        (best,) = model.loglikelihood([Request(("a", " b"))])
        (space_before,) = model.loglikelihood([Request(("a ", "b"))])
        (other,) = model.loglikelihood([Request(("a", " c"))])
        assert best == (pytest.approx(-(ord(" ") + ord("b")) / VOCAB_SIZE), True)
        assert space_before == best
        assert other == (pytest.approx(-(ord(" ") + ord("c")) / VOCAB_SIZE), False)
        assert model.loglikelihood_rolling([Request(("ab",))]) == [pytest.approx(-(97 + 98) / VOCAB_SIZE)]
        cut = [{"until": [". ", "\n\n"]}, {"until": "\n\n"}, {"max_gen_toks": 3}, {}]
        assert model.generate_until([Request(("x", options)) for options in cut]) == [
            "one",
            "one. two",
            "one",
            "one. two\n\nthree",
        ]


def test_a_seed_place_is_the_same_problem() -> None:
    """What the harness was given can be made again."""
    (task,) = ruler_tasks(["niah_single_1"], text_haystack(), (3000,), 1, 0, {})
    assert task.problem(Place(0, 3000), 20) == task.problem(Place(0, 3000), 20)
