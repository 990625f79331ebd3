"""Published tests from local files: what is asked, how it is judged, and what is said of files of another form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.client import Client
from moorage.runtime.evals.files import infinitebench, leval, longbench, scrolls
from moorage.runtime.evals.files.lines import find_files
from moorage.runtime.evals.files.task import FileTask, Reading, Truncate, cut
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite
from moorage.runtime.serving.protocol import GenerateParams
from moorage.workers.errors import InvalidRequest
from tests.answering_engine import AnsweringEngine
from tests.toy_server import toy_server

Make = Callable[[str, Path, Reading], FileTask]
OPTIONS = ["the sea", "the hill", "the town", "the road"]
FUNCTIONS = ["A.load", "B.save", "tools.run", "tools.stop"]


@pytest.fixture(scope="module")
def engine() -> AnsweringEngine:
    return AnsweringEngine()


@pytest.fixture(scope="module")
def targets(engine: AnsweringEngine) -> Iterator[ServerTargets]:
    with toy_server(engine=engine) as running, Client(running.address) as client:
        yield ServerTargets(client)


def write(folder: Path, name: str, *entries: object) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8"
    )
    return path


def few_shot(name: str, path: Path, reading: Reading) -> FileTask:
    return scrolls.scrolls(name, path, reading, 0)


INF, LONG, LEV = infinitebench.infinitebench, longbench.longbench, leval.leval
CASES: list[tuple[Make, str, dict[str, Any], str, str]] = [
    # how, task, entry, a right answer, a wrong one
    (INF, "passkey", {"context": "x", "input": "?", "answer": "01234"}, " 01234.", "1234"),
    (INF, "number_string", {"content": "x", "input": "?", "answer": ["5566"]}, "5566", "556"),
    (INF, "kv_retrieval", {"context": "x", "input": "?", "answer": "ab-1"}, '"ab-1"}', "ab-12"),
    (INF, "math_find", {"context": "[1]", "input": "?", "answer": [2.5]}, "2.50", "2"),
    (INF, "math_find", {"context": "[1]", "input": "?", "answer": [-3]}, "-3.0", "3"),
    (INF, "math_calc", {"context": "1+1", "answer": [[1, -2]]}, "[1, -2]", "[2, 1]"),
    (INF, "code_run", {"context": "x", "input": "f(2)", "answer": [-7]}, "f(2) is -7.", "7"),
    (
        INF, "code_debug",
        {"context": "x", "input": "?", "options": FUNCTIONS, "answer": ["tools.run", "C"]}, "tools.run", "(D)",
    ),
    (
        INF, "longbook_choice_eng",
        {"context": "x", "input": "?", "options": OPTIONS, "answer": ["the hill"]}, "[B] the hill", "C",
    ),
    (
        INF, "longbook_choice_eng",
        {"context": "x", "input": "?", "options": OPTIONS, "answer": "D"}, "the road", "the sea",
    ),
    (INF, "longbook_qa_eng", {"context": "x", "input": "?", "answer": ["A cat", "x y"]}, "cat", "dog"),
    (INF, "longbook_qa_chn", {"context": "x", "input": "?", "answer": ["长江"]}, "长江。", "黄河"),
    (INF, "longbook_sum_eng", {"context": "x", "answer": "They met."}, "They met.", "No one"),
    (INF, "longdialogue_qa_eng", {"context": "x", "answer": ["DR. NO"]}, "Dr. No", "No"),
    (LONG, "qasper", {"context": "x", "input": "?", "answers": ["b", "red fox"]}, "a red fox", "hen"),
    (LONG, "gov_report", {"context": "x", "input": "", "answers": ["It grew."]}, "It grew.", "No"),
    (LONG, "vcsum", {"context": "x", "input": "", "answers": ["会议结束"]}, "会议结束", "没有"),
    (
        LONG, "trec",
        {"context": "x", "input": "?", "answers": ["City"], "all_classes": ["City", "Animal"]},
        "City\nAnimal", "Animal\nCity",
    ),
    (LONG, "triviaqa", {"context": "x", "input": "?", "answers": ["Rome"]}, "\nRome\nPassage: x", "x\nRome"),
    (LONG, "passage_count", {"context": "x", "input": "", "answers": ["12"]}, "12", "13"),
    (
        LONG, "passage_retrieval_en_e",
        {"context": "x", "input": "?", "answers": ["Paragraph 15"]}, "Paragraph 15", "Paragraph 1",
    ),
    (LONG, "passage_retrieval_zh", {"context": "x", "input": "?", "answers": ["段落3"]}, "段落3", "段落4"),
    (LONG, "lcc", {"context": "x", "input": "", "answers": ["return x"]}, "\nreturn x\n", "12345"),
    (
        LONG, "longbench_v2",
        {"context": "x", "question": "?", **{f"choice_{c}": c * 3 for c in "ABCD"}, "answer": "C"},
        "The correct answer is (C)", "The correct answer is (A)",
    ),
    (LEV, "coursera", {"input": "x", "instructions": ["?"], "outputs": ["AC"]}, "A, C", "B"),
    (LEV, "quality", {"input": "x", "instructions": ["?"], "outputs": ["(B) the sea"]}, "the sea", "(C)"),
    (LEV, "tpo", {"input": "x", "instructions": ["?"], "outputs": ["D"]}, "D.", "A"),
    (
        LEV, "topic_retrieval_longchat",
        {"input": "x", "instructions": ["?"], "outputs": ["The sea"]}, "It was the sea.", "The hill",
    ),
    (LEV, "gsm100", {"input": "x", "instructions": ["?"], "outputs": ["so 1,018"]}, "The answer is 1018", "18"),
    (LEV, "codeU", {"input": "x", "instructions": ["?"], "outputs": ["[1, 2]"]}, "It is [1, 2]", "[2, 1]"),
    (
        LEV, "sci_fi",
        {"input": "x", "instructions": ["?"], "outputs": ["True [fact: False]"]},
        "True [fact: False]", "False [fact: True]",
    ),
    (few_shot, "narrative_qa", {"input": "?\n\nx", "output": "a cat"}, "Cat!", "dog"),
    (few_shot, "qmsum", {"context": "x", "input": "?", "answers": ["we met today"]}, "we met today", "no"),
    (few_shot, "quality", {"input": "?\n (A) red\n (B) blue\n\nx", "output": "blue"}, "blue", "red"),
    (few_shot, "quality", {"input": "?\n (A) red\n (B) blue\n\nx", "output": "blue"}, "(B)", "(A)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "name", "entry", "right", "wrong"), CASES)
def test_right_wrong_and_empty_answers(
    engine: AnsweringEngine,
    targets: ServerTargets,
    tmp_path: Path,
    make: Make,
    name: str,
    entry: dict[str, Any],
    right: str,
    wrong: str,
) -> None:
    task = make(name, write(tmp_path, name, entry), Reading())
    scores = []
    for said in (right, wrong, ""):
        engine.answer = lambda _prompt, said=said: said  # type: ignore[misc]
        scores.append(run(Suite("files", (task,)), targets).rows[0].value)
    assert scores == pytest.approx([1, 0, 0])


def test_every_task_has_a_case() -> None:
    asked = {name.removesuffix("_e") for _, name, *_ in CASES}
    assert asked >= set(infinitebench.TASKS) | set(leval.TASKS) | set(scrolls.TASKS)


def test_prompts_hold_the_document_the_question_and_the_options(
    engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path
) -> None:
    seen: list[str] = []
    engine.answer = lambda prompt: seen.append(prompt) or ""  # type: ignore[func-returns-value]
    entry = {"context": "THE {BOOK}", "input": "Where?", "options": OPTIONS, "answer": ["the hill"]}
    task = infinitebench.infinitebench("longbook_choice_eng", write(tmp_path, "x", entry), Reading())
    run(Suite("files", (task,)), targets)
    assert seen[0].index("THE {BOOK}") < seen[0].index("Where?") < seen[0].index("B. the hill")


def test_every_question_of_a_document_is_a_sample(
    engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path
) -> None:
    entry = {"input": "x", "instructions": ["one?", "two?"], "outputs": ["A", "B"]}
    path = write(tmp_path, "tpo", entry, entry)
    engine.answer = lambda prompt: "A" if "one?" in prompt else "C"
    assert run(Suite("files", (leval.leval("tpo", path, Reading()),)), targets).rows[0].value == 0.5
    assert len(leval.leval("tpo", path, Reading(samples=3)).samples) == 3


def test_shots_come_first_and_are_not_asked(
    engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path
) -> None:
    entries = [{"input": f"question {n}", "output": f"answer {n}"} for n in range(4)]
    path = write(tmp_path, "qasper", *entries)
    seen: list[str] = []
    engine.answer = lambda prompt: seen.append(prompt) or "answer 3"  # type: ignore[func-returns-value]
    summary = run(Suite("files", (scrolls.scrolls("qasper", path, Reading(), 2),)), targets)
    assert [record.outcome.score for record in summary.records] == [0.5, 1]
    assert all(
        prompt.index("answer 0") < prompt.index("question 1") < prompt.index("answer 1") for prompt in seen
    )
    assert "question 2" in seen[0]
    with pytest.raises(InvalidRequest, match="all taken by 4 shots"):
        scrolls.scrolls("qasper", path, Reading(), 4)


@pytest.mark.parametrize(
    ("how", "room", "kept"),
    [
        (Truncate.MIDDLE, 10, [0, 1, 2, 3, 4, 995, 996, 997, 998, 999]),
        (Truncate.MIDDLE, 3, [0, 998, 999]),
        (Truncate.MIDDLE, 1, [999]),
        (Truncate.SUFFIX, 4, [0, 1, 998, 999]),
        (Truncate.SUFFIX, 300, [*range(128), *range(828, 1000)]),
        (Truncate.NONE, 1000, list(range(1000))),
        (Truncate.MIDDLE, 1000, list(range(1000))),
    ],
)
def test_cuts(how: Truncate, room: int, kept: list[int]) -> None:
    assert cut(range(1000), room, how) == kept


def test_too_long_a_sample_is_an_error_or_cut(
    engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path
) -> None:
    short = {"context": "x", "input": "?", "answer": "1"}
    path = write(tmp_path, "passkey", short, short | {"context": "y" * 5000})
    engine.answer = lambda _prompt: "1"
    with pytest.raises(
        InvalidRequest, match=r"passkey\.jsonl:2: the prompt has 5\d\d\d tokens and 983 fit beside 16"
    ):
        run(Suite("f", (infinitebench.infinitebench("passkey", path, Reading(max_length=1000)),)), targets)
    for how in (Truncate.MIDDLE, Truncate.SUFFIX):
        reading = Reading(truncate=how, max_length=1000)
        summary = run(Suite("f", (infinitebench.infinitebench("passkey", path, reading),)), targets)
        assert [record.outcome.prompt_tokens for record in summary.records][1] == 984
        assert (summary.rows[0].samples, summary.rows[0].cut_samples, summary.rows[0].length) == (2, 1, 984)
        asked = engine.seen[-1]
        assert isinstance(asked, GenerateParams)
        assert len(asked.prompt) + asked.max_new_tokens == 1000


def test_answers_may_be_kept_short(engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path) -> None:
    path = write(tmp_path, "math_calc", {"context": "1+1-4", "answer": [1, 2, -2]})
    engine.answer = lambda _prompt: "[1, 2, -2]"
    for most, score in ((None, 1), (10, 1), (5, 2 / 3), (1, 0)):
        reading = Reading(max_new_tokens=most, max_length=1000 if most else None)
        task = infinitebench.infinitebench("math_calc", path, reading)
        assert run(Suite("f", (task,)), targets).rows[0].value == pytest.approx(score)


GOOD = {"context": "x", "input": "?", "answer": "12"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("passkey", None, r"passkey\.jsonl: no such file"),
        ("passkey", "", r"passkey\.jsonl: is empty"),
        ("passkey", b"\xff\xfe", "not UTF-8"),
        ("passkey", "{}\n", r"passkey\.jsonl:1: context: is missing"),
        (
            "passkey",
            [GOOD, {**GOOD, "context": 3}],
            r"passkey\.jsonl:2: context: should be text, not a number",
        ),
        ("passkey", [GOOD, {"context": "x", "answer": "1"}], r"passkey\.jsonl:2: input: is missing"),
        ("passkey", [{**GOOD, "answer": "key"}], r"passkey\.jsonl:1: answer: should be a number, not 'key'"),
        ("passkey", [{**GOOD, "answer": []}], r"passkey\.jsonl:1: answer: is an empty list"),
        (
            "passkey",
            [{**GOOD, "answer": [None]}],
            r"passkey\.jsonl:1: answer: should hold texts or numbers, not null",
        ),
        ("code_run", [{**GOOD, "answer": "1.5"}], r"code_run\.jsonl:1: answer: should be a whole number"),
        ("passkey", json.dumps(GOOD) + "\n\n{broken\n", r"passkey\.jsonl:3: is not JSON"),
        ("passkey", "[1, 2]\n", r"passkey\.jsonl:1: should be a JSON object, not a list"),
        (
            "longbook_choice_eng",
            [GOOD],
            r"choice_eng\.jsonl:1: options: is missing; is it a file of this task",
        ),
        ("longbook_choice_eng", [{**GOOD, "options": ["a"]}], r":1: options: should be 4, not 1"),
        ("longbook_choice_eng", [{**GOOD, "options": OPTIONS}], r":1: answer: '12' is none of the options"),
        (
            "trec",
            [{"context": "x", "input": "?", "answers": ["a"]}],
            r"trec\.jsonl:1: all_classes: is missing",
        ),
        ("qasper", [GOOD], r"qasper\.jsonl:1: answers: is missing"),
        (
            "passage_retrieval_en",
            [{"context": "", "input": "", "answers": ["no"]}],
            "'no' names no paragraph",
        ),
        ("longbench_v2", [GOOD], r"longbench_v2\.jsonl:1: choice_A: is missing"),
        ("tpo", [GOOD], r"tpo\.jsonl:1: input|instructions: is missing"),
        (
            "tpo",
            [{"input": "x", "instructions": ["a", "b"], "outputs": ["A"]}],
            ":1: outputs: are 1 to 2 instructions",
        ),
        ("tpo", [{"input": "x", "instructions": ["a"], "outputs": ["E"]}], "'E' names no option"),
        ("gsm100", [{"input": "x", "instructions": ["a"], "outputs": ["many"]}], "'many' has no number"),
        ("narrative_qa", [{"input": "x"}], r"narrative_qa\.jsonl:1: outputs: is missing"),
    ],
)
def test_files_of_another_form_are_named(tmp_path: Path, name: str, content: Any, words: str) -> None:
    path = tmp_path / f"{name}.jsonl"
    if isinstance(content, list):
        write(tmp_path, name, *content)
    elif isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    families = (
        (infinitebench.TASKS, infinitebench.infinitebench),
        (longbench.TASKS, longbench.longbench),
        (leval.TASKS, leval.leval),
        (scrolls.TASKS, few_shot),
    )
    make = next(make for names, make in families if name in names)
    with pytest.raises(InvalidRequest, match=words) as refused:
        make(name, path, Reading())
    assert "\n" not in str(refused.value)


def test_a_json_list_names_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    good = {"context": "x", "question": "?", **{f"choice_{c}": c for c in "ABCD"}, "answer": "C"}
    path.write_text(json.dumps([good, {**good, "answer": "E"}]))
    with pytest.raises(InvalidRequest, match=r"data\.json: entry 2: answer: should be one of A, B, C and D"):
        longbench.longbench("data", path, Reading())
    assert longbench.longbench("data", path, Reading(samples=1)).name == "longbench_v2"


def test_files_are_found_by_name(tmp_path: Path) -> None:
    for name in ("kv_retrieval", "passkey"):
        write(tmp_path, name, GOOD)
    (tmp_path / "README.md").write_text("not data")
    known = infinitebench.TASKS
    assert [name for name, _ in find_files([str(tmp_path)], known)] == ["kv_retrieval", "passkey"]
    assert find_files(["passkey=keys.txt"], known) == [("passkey", Path("keys.txt"))]
    with pytest.raises(InvalidRequest, match="keys is no task here; write TASK=FILE"):
        find_files(["keys.jsonl"], known)
    with pytest.raises(InvalidRequest, match="passkey: given by two files"):
        find_files([str(tmp_path), "passkey=keys.txt"], known)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="no data in it"):
        find_files([str(tmp_path / "empty")], known)


def test_a_chat_goes_through_the_template(engine: AnsweringEngine, tmp_path: Path) -> None:
    seen: list[str] = []
    engine.answer = lambda prompt: seen.append(prompt) or "12"  # type: ignore[func-returns-value]
    task = infinitebench.infinitebench("passkey", write(tmp_path, "passkey", GOOD), Reading())
    with toy_server(engine=engine) as running, Client(running.address) as client:
        summary: Summary = run(Suite("files", (task,)), ServerTargets(client, chat=True))
    assert summary.rows[0].value == 1
    assert seen[0].startswith("<user>This text")
