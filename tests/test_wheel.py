"""The wheel, installed into an environment of its own: what it says, serves and measures outside the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCAL = "LOCAL"
"""Stands for deploy/local.yaml of the installed package."""
Installed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Runs a console script of a fresh environment, in an empty directory; other packages come from this one."""
    home = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", home / "dist", ROOT]
    subprocess.run(build, check=True)
    environment = home / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (wheel,) = (home / "dist").glob("moorage-*.whl")
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", wheel], check=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    others = [path for path in sys.path if path.endswith("site-packages")]
    Path(paths["purelib"], "zz_other_packages.pth").write_text("\n".join(others) + "\n")
    local = str(Path(paths["purelib"], "moorage", "deploy", "local.yaml"))
    empty = home / "empty"
    empty.mkdir()

    def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [environment / "bin" / script, *(local if word == LOCAL else word for word in words)],
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "MOORAGE_RUN_DIR": str(home / "run"), "COLUMNS": "120"},
            check=False,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("script", ["runtime", "moorage"])
def test_both_console_scripts_are_there(installed: Installed, script: str) -> None:
    done = installed(script, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("moorage ")


@pytest.mark.slow
@pytest.mark.ray
def test_the_demo_finds_its_fact(installed: Installed) -> None:
    done = installed("runtime", "demo", "--tokens", "1024")
    assert done.returncode == 0, done.stderr
    assert "The answer is right" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("eval", "passkey", "--config", LOCAL, "--lengths", "512", "--samples", "1"),
        ("bench", "decode", "--context", "512", "--steps", "2", "--full-steps", "1", "--peer-context", "512"),
    ],
    ids=["eval", "bench"],
)
def test_evaluation_and_benchmark(installed: Installed, words: tuple[str, ...]) -> None:
    done = installed("runtime", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_inspect(installed: Installed, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("word " * 1500)
    done = installed("runtime", "inspect", "--prompt-file", str(prompt), "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_chat_page_is_in_it(installed: Installed) -> None:
    names = "from moorage.runtime.api.http.page.routes import page_files; print(*page_files())"
    done = installed("python", "-c", names)
    assert done.returncode == 0, done.stderr
    pages = (ROOT / "runtime" / "api" / "http" / "page" / "static").iterdir()
    assert set(done.stdout.split()) == {path.name for path in pages}
