"""The calls between the decoder and the kernel are those of the table in workers/README.md, and few."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from moorage.kernels.decode_layer import cpu
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.host_step import HostStep
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint

WORKERS = Path(__file__).resolve().parents[2] / "workers"
MOST_CALLS, MOST_FILES = 15, 10
Call = tuple[str, Path]
"""Name of a function without its class, and its file."""


def shown_calls() -> list[Call]:
    """The rows of the table in the section "The way of a query"."""
    text = (WORKERS / "README.md").read_text(encoding="utf-8")
    section = text.split("## The way of a query\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)`.*\]\(([^)]+)\) \|$", section, re.MULTILINE)
    return [(name.split(".")[-1], (WORKERS / link).resolve()) for name, link in rows]


def calls_of(frame: FrameType | None) -> list[Call]:
    """The calls on a stack, the first one first, after that of the decoder's forward pass."""
    calls: list[Call] = []
    passes = (Decoder.forward.__code__, HostStep.forward.__code__)
    while frame is not None and frame.f_code not in passes:
        calls.append((frame.f_code.co_name, Path(inspect.getfile(frame)).resolve()))
        frame = frame.f_back
    return calls[::-1] if frame is not None else []


def test_a_query_reaches_the_compiled_call_by_the_calls_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny_checkpoint("llama3", tmp_path)
    driver = Driver(model.directory, model.spec)
    stacks: list[list[Call]] = []
    run_layer = cpu.run_layer

    def seen(*arguments: Any) -> Any:
        stacks.append(calls_of(sys._getframe(1)))
        return run_layer(*arguments)

    monkeypatch.setattr(cpu, "run_layer", seen)
    driver.generate(list(range(3, 120)), memory(topk=2), num_tokens=2)
    names = [name for name, _ in shown_calls()]
    assert stacks[-1] == shown_calls()[: names.index("run_layer")]


def test_each_compiled_function_of_the_table_calls_the_next_one() -> None:
    calls = shown_calls()
    compiled = calls[[name for name, _ in calls].index("run_layer") :]
    for (name, file), (called, _) in pairwise(compiled):
        assert called in called_by(name, file)


def test_the_way_is_short() -> None:
    calls = shown_calls()
    files = {Path(inspect.getfile(Decoder)).resolve(), *(file for _, file in calls)}
    assert 8 <= len(calls) <= MOST_CALLS
    assert len(files) <= MOST_FILES


def called_by(name: str, file: Path) -> set[str]:
    """Names of the functions that one function of `file` calls, or has called for each unit of some work."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    given = [
        call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "unit_call"
    ]
    return names | {node.id for node in given if isinstance(node, ast.Name)}
