"""What `pip install moorage` gives without the extra `server`: the client and the commands that talk to a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moorage.runtime.cli.failures import SERVER_PACKAGES
from tests.toy_server import ToyServer

ROOT = Path(__file__).resolve().parents[3]
LIGHT = f"import sys; sys.modules.update(dict.fromkeys({SERVER_PACKAGES!r})); "
LOADED_FILES = """
import sys
before = set(sys.modules)
import moorage.client
from moorage.runtime.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
loaded = [module for name, module in list(sys.modules.items()) if name not in before]
sys.stdout.write("\\n".join(str(getattr(module, "__file__", "")) for module in loaded))
"""
COMMAND = LIGHT + "from moorage.runtime.cli import main; main()"
Light = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def light(tmp_path: Path) -> Light:
    """Runs Python in a process that finds none of the server's packages."""

    def run(code: str, words: Sequence[object] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "MOORAGE_RUN_DIR": str(tmp_path)},
            check=False,
        )

    return run


def test_the_extra_holds_what_commands_call_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light, server = (
        {re.split(r"[<>=;]", need)[0].replace("-", "_").replace("grpcio_", "grpc_") for need in needs}
        for needs in (project["dependencies"], project["optional-dependencies"]["server"])
    )
    # llvmlite comes with numba; numpy is in both, with an upper bound in the extra.
    assert server - {"numpy"} == set(SERVER_PACKAGES) - {"llvmlite"}
    assert not light & set(SERVER_PACKAGES)


def test_what_the_client_and_commands_load_is_installed_with_them(light: Light) -> None:
    """Blocking the server's packages alone would miss one that comes with them, as google.rpc does."""
    done = light(LIGHT + LOADED_FILES)
    assert done.returncode == 0, done.stderr
    files = set(done.stdout.split("\n"))
    loaded = {
        canonicalize_name(found.metadata["Name"])
        for found in metadata.distributions()
        if any(str(found.locate_file(path)) in files for path in found.files or ())
    }
    assert {"grpcio", "googleapis-common-protos", "typer"} <= loaded
    # grpc and rich import these by themselves where they happen to be installed.
    optional = {"attrs", "grpcio-tools"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert loaded - {"moorage"} - optional <= _installed_with(project["dependencies"])


def _installed_with(requirements: Sequence[str]) -> set[str]:
    """The distributions that `requirements` bring, what those need included, without extras."""
    found: set[str] = set()
    ahead = list(requirements)
    while ahead:
        need = Requirement(ahead.pop())
        name = canonicalize_name(need.name)
        if name not in found and (need.marker is None or need.marker.evaluate({"extra": ""})):
            found.add(name)
            ahead += metadata.requires(name) or ()
    return found


def test_the_client_generates(light: Light, server: ToyServer) -> None:
    code = (
        "from moorage.client import Client\n"
        f"with Client({server.address!r}) as client:\n"
        "    print(client.generate('abc', max_new_tokens=3).result().text)"
    )
    done = light(LIGHT + "\n" + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("presets",),
        ("size", "--model", "internlm2.5-7b-1m", "--context", "128K"),
        ("--version",),
    ],
    ids=lambda words: words[0],
)
def test_commands_without_a_server(light: Light, words: tuple[str, ...]) -> None:
    done = light(COMMAND, words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["generate", "score", "tokenize"])
def test_commands_that_ask_a_server(light: Light, server: ToyServer, command: str) -> None:
    done = light(COMMAND, (command, "abc", "--address", server.address))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("launch", "local.yaml"), ("demo",), ("bench", "scoring")], ids=" ".join)
def test_commands_that_need_the_server_say_what_to_install(light: Light, words: tuple[str, ...]) -> None:
    if words[0] == "launch":
        words = ("launch", str(ROOT / "deploy" / "local.yaml"))
    done = light(COMMAND, words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {words[0]} needs the packages of the server")
    assert "pip install 'moorage[server]'" in line
