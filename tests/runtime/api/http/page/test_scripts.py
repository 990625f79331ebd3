"""The page's scripts that need no browser, run by Node: Markdown, branches, events, progress and figures."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from moorage.runtime.api.http.page.routes import STATIC

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed; it runs the page's scripts")
Evaluated = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The value of an expression over what `imports` names, as JSON."""
    folder = tmp_path_factory.mktemp("page")
    for script in STATIC.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def evaluate(imports: str, expression: str) -> Any:
        names, _, script = imports.partition(" of ")
        test = folder / "test.js"
        test.write_text(
            f'import {{ {names} }} from "./{script}";\nconsole.log(JSON.stringify(await ({expression})));\n',
            encoding="utf-8",
        )
        done = subprocess.run([str(NODE), test], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def blocks_of(evaluated: Evaluated, text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = evaluated("readBlocks of markdown.js", f"readBlocks({json.dumps(text)})")
    return found


def runs_of(evaluated: Evaluated, text: str) -> list[Any]:
    found: list[Any] = evaluated("readRuns of inline.js", f"readRuns({json.dumps(text)})")
    return found


def test_blocks_of_markdown_are_told_apart(evaluated: Evaluated) -> None:
    text = (
        "# Title\n\nA paragraph\nof two lines.\n\n- one\n  - inner\n- [x] two\n\n3. third\n4. fourth\n\n"
        "> quoted\n\n---\n\n| a | b |\n|---|--:|\n| 1 | `x|y` |\n\n```py\nx = 1\n\n# no title\n```"
    )
    blocks = blocks_of(evaluated, text)
    kinds = [block["kind"] for block in blocks]
    assert kinds == ["heading", "paragraph", "list", "list", "quote", "rule", "table", "code"]
    assert (blocks[0]["level"], blocks[0]["text"]) == (1, "Title")
    assert blocks[2]["items"][0]["blocks"][1]["kind"] == "list"
    assert [item["checked"] for item in blocks[2]["items"]] == [None, True]
    assert (blocks[3]["ordered"], blocks[3]["start"], len(blocks[3]["items"])) == (True, 3, 2)
    assert (blocks[6]["header"], blocks[6]["rows"]) == (["a", "b"], [["1", "`x|y`"]])
    assert blocks[6]["aligned"] == [None, "right"]
    assert (blocks[7]["language"], blocks[7]["text"]) == ("py", "x = 1\n\n# no title")


def test_code_that_has_not_ended_is_code(evaluated: Evaluated) -> None:
    (block,) = blocks_of(evaluated, "```\nfor each in all:\n    # still going")
    assert (block["kind"], block["text"]) == ("code", "for each in all:\n    # still going")


def test_runs_of_a_line_are_told_apart(evaluated: Evaluated) -> None:
    runs = runs_of(evaluated, r"a **b *c*** `**d**` snake_case_e \*f\* ~~g~~ 2 * 3 * 4")
    assert runs[0] == "a "
    assert runs[1] == {"kind": "strong", "runs": ["b ", {"kind": "em", "runs": ["c"]}]}
    assert runs[3] == {"kind": "code", "text": "**d**"}
    assert runs[4] == " snake_case_e *f* "
    assert runs[5:] == [{"kind": "strike", "runs": ["g"]}, " 2 * 3 * 4"]


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ("[a](https://example.org/b)", "https://example.org/b"),
        ("see http://example.org/x.", "http://example.org/x"),
        ("<https://example.org>", "https://example.org/"),
        ("[a](javascript:alert(1))", None),
        ("[a](JaVaScRiPt:alert(1))", None),
        ("[a](data:text/html,b)", None),
        ("[a](/v1/models)", None),
        ("[a](file:///etc/passwd)", None),
        ("![a](https://example.org/a.png)", "https://example.org/a.png"),
    ],
)
def test_only_addresses_of_the_web_become_links(evaluated: Evaluated, text: str, href: str | None) -> None:
    links = [
        run["href"] for run in runs_of(evaluated, text) if isinstance(run, dict) and run["kind"] == "link"
    ]
    assert links == ([] if href is None else [href])


def test_markup_stays_text(evaluated: Evaluated) -> None:
    text = "<script>alert(1)</script> <img src=x onerror=alert(1)>"
    assert blocks_of(evaluated, text)[0]["text"] == text
    assert runs_of(evaluated, text) == [text]


def test_hostile_text_is_read_in_time_in_proportion(evaluated: Evaluated) -> None:
    """Twice the text takes about twice the work: the readers end, and nesting has a bound."""
    texts = '["*a ", "[", "`a``", "> ", "**a _b ", "- ", "[a](", "_a", "[x](", "|"]'
    expression = f"""{texts}.map((part) => {{
        const blocks = readBlocks(part.repeat(20000) + "](x)");
        return blocks.length > 0 && blocks.length < 10;
    }})"""
    assert all(evaluated("readBlocks of markdown.js", expression))
    runs = f'{texts}.map((part) => readRuns(part.repeat(20000) + "](x)").length > 0)'
    assert all(evaluated("readRuns of inline.js", runs))


CONVERSATION = """(() => {
    const talk = newConversation();
    const ask = (parent, text) => addMessage(talk, parent, { role: "user", text });
    const answer = (question) => {
        const session = sessionFor(talk, question);
        const fields = { role: "assistant", text: `to ${question.text}`, session: session.name };
        const made = addMessage(talk, question.id, fields);
        talk.heads[session.name] = made.id;
        return { ...session, id: made.id };
    };
    const name = (session) => session && session.replace(talk.id, "");
    %s
})()"""


def test_a_session_goes_on_and_a_branch_forks_it(evaluated: Evaluated) -> None:
    steps = """
    const one = answer(ask(null, "one"));
    const two = answer(ask(one.id, "two"));
    const edited = answer(ask(one.id, "edited"));
    const again = answer(talk.messages[talk.messages[two.id].parent]);
    const further = answer(ask(edited.id, "further"));
    const first = answer(ask(null, "another beginning"));
    return [one, two, edited, again, further, first].map(({ name: own, from }) => [name(own), name(from)]);
    """
    imports = "newConversation, addMessage, sessionFor of tree.js"
    assert evaluated(imports, CONVERSATION % steps) == [
        ["page--0", None],
        ["page--0", None],
        ["page--1", "page--0"],
        ["page--2", "page--0"],
        ["page--1", None],
        ["page--3", "page--0"],
    ]


def test_documents_are_sent_before_their_question(evaluated: Evaluated) -> None:
    steps = """
    const documents = [{ name: "a.txt", text: "first" }, { name: "b.pdf", text: "second" }];
    addMessage(talk, null, { role: "user", text: "Which?", documents });
    return asSent(pathTo(talk), "Be short.");
    """
    sent = evaluated("newConversation, addMessage, pathTo, asSent of tree.js", CONVERSATION % steps)
    assert sent == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a.txt:\nfirst\n\nb.pdf:\nsecond\n\nWhich?"},
    ]


def test_another_version_is_shown_to_its_newest_end(evaluated: Evaluated) -> None:
    steps = """
    const one = ask(null, "one"), first = answer(one), second = answer(ask(first.id, "two"));
    answer(ask(null, "other"));
    showVersion(talk, one);
    return [pathTo(talk).map((message) => message.text), versionsOf(talk, one).length];
    """
    imports = "newConversation, addMessage, sessionFor, showVersion, versionsOf, pathTo of tree.js"
    assert evaluated(imports, CONVERSATION % steps) == [["one", "to one", "two", "to two"], 2]


def test_events_are_read_wherever_they_are_cut(evaluated: Evaluated) -> None:
    expression = """(async () => {
        const frames = ['data: {"a":"é"}', ": ping", "event: x\\ndata: 2", "data: [DONE]", ""];
        const bytes = new TextEncoder().encode(frames.join("\\n\\n"));
        const stream = new ReadableStream({
            start(out) {
                for (const one of bytes) out.enqueue(new Uint8Array([one]));
                out.close();
            },
        });
        const found = [];
        for await (const data of readEvents(stream)) found.push(data);
        return found;
    })()"""
    assert evaluated("readEvents of events.js", expression) == ['{"a":"é"}', "2", "[DONE]"]


def test_progress_says_how_much_and_how_long(evaluated: Evaluated) -> None:
    expression = """(() => {
        const prefill = new Prefill();
        const said = [prefill.sentence];
        for (const [processed, time_ms] of [[1000, 1000], [3000, 2000]]) {
            prefill.note({ total: 123000, processed, time_ms });
            said.push(prefill.sentence);
        }
        return said;
    })()"""
    assert evaluated("Prefill of prefill.js", expression) == [
        "Waiting for the server …",
        "Reading 1,000 of 123,000 tokens, 0 %",
        "Reading 3,000 of 123,000 tokens, 2 %, 1 min 0 s left",
    ]


def test_figures_are_as_people_read_them(evaluated: Evaluated) -> None:
    expression = """[duration(0.034), duration(9), duration(59.6), duration(7300),
        bytes(999), bytes(3.24e6), bytes(1.4e9), rate(74.71), rate(1182),
        counted(1, "token"), counted(1234, "token")]"""
    assert evaluated("duration, bytes, rate, counted of figures.js", expression) == [
        *("0.03 s", "9.0 s", "1 min 0 s", "2 h 2 min", "999 B", "3.2 MB", "1.4 GB"),
        *("74.7", "1,182", "1 token", "1,234 tokens"),
    ]


def test_the_strip_has_few_cells_and_its_scale_leaves_the_sink_out(evaluated: Evaluated) -> None:
    expression = """(() => {
        const shares = Array(1000).fill(0.00005);
        [shares[0], shares[500]] = [0.9, 0.05];
        const cells = cellsOf({ block_size: 64, shares });
        const hot = cells.find((cell) => cell.heat === 1 && cell.start > 0);
        const holds = hot.start <= 500 * 64 && 501 * 64 <= hot.end;
        return [cells.length <= 160, cells.at(-1).end, holds, cells[1].heat < 0.2];
    })()"""
    assert evaluated("cellsOf of strip.js", expression) == [True, 64000, True, True]


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (
            {"budget_tokens": 960, "chosen_keys": 768, "recall": 0.9891},
            "at most 960 tokens attended · recall 0.989",
        ),
        ({"budget_tokens": 960, "chosen_keys": 0, "recall": None}, "7 tokens"),
        ({"budget_tokens": 0, "chosen_keys": None, "recall": None}, "7 tokens"),
    ],
    ids=["selected", "short prompt", "full"],
)
def test_a_line_under_an_answer_says_what_was_attended(
    evaluated: Evaluated, measured: dict[str, Any], said: str
) -> None:
    usage = {
        "prompt_tokens": 5000,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4000},
        "moorage": [measured],
    }
    line = evaluated("usageLine of figures.js", f"usageLine({json.dumps(usage)})")
    assert line.startswith("5,000 prompt tokens, 4,000 cached · 7 tokens")
    assert line.endswith(said)
