"""Checks and measures a GPU on a bare machine: Python, torch, Triton, Numba, psutil and rich, and no install.

python3 deploy/benchmarks/gpu.py

First the tests that need a device run, if pytest is there, then `runtime bench gpu`. Each outcome is one line of JSON
in deploy/benchmarks/gpu-CARD.jsonl. Both together take less than eight minutes with the default options.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("tests/kernels/triton", "tests/gpu")
CHECKS_TIMEOUT_S = 160


def main() -> None:
    """Shows this checkout's folders as the package `moorage`, then runs with these arguments."""
    # A process that dies while its memory is pinned leaves the driver minutes of work; so it unpins first.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "moorage"
        package.mkdir()
        for name in ("kernels", "runtime", "workers"):
            (package / name).symlink_to(ROOT / name, target_is_directory=True)
        sys.path.insert(0, folder)
        run(folder)


def run(packages: str) -> None:
    """As the command, with the same options; `packages` is the folder that holds the package `moorage`."""
    from moorage.runtime.bench.gpu.arguments import HELP, Arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Arguments):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help=HELP[field.name])
    parser.add_argument("--json", type=Path, help="Write the rows as JSON.")
    parser.add_argument("--no-checks", action="store_true", help="Measure without the tests before it.")
    given = vars(parser.parse_args())
    file, without_checks = given.pop("json"), given.pop("no_checks")
    if given["device"] == "cuda":
        lines = given["json_lines"] or str(lines_of(card()))
        Path(lines).unlink(missing_ok=True)
        given["json_lines"] = lines
        if not without_checks:
            check(packages, Path(lines))
    measure(given, file)


def card() -> str:
    """The name of the GPU. Ends the program in one line where there is none."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this host has no CUDA device; try it out with --device cpu --shape tiny")
    return torch.cuda.get_device_name()


def lines_of(name: str) -> Path:
    """The file of a card's figures."""
    return Path(__file__).parent / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower())}.jsonl"


def check(packages: str, lines: Path) -> None:
    """Runs the tests that need a device and adds their outcome to `lines`. Failures do not stop the measuring."""
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed, so the checks are left out", file=sys.stderr)
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["-p", "no:cacheprovider", "-rfE", "-m", "not slow", *CHECKS]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4", "--dist", "loadfile"]
    paths = os.pathsep.join([packages, str(ROOT)])
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=CHECKS_TIMEOUT_S, stdout=subprocess.PIPE, text=True
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = str(error.stdout or ""), None
    print(output)
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    summary = next((line for line in reversed(output.splitlines()) if " in " in line), "no summary")
    row = {
        "name": "checks",
        "exit_code": code,
        "seconds": round(time.monotonic() - started, 1),
        "summary": summary.strip("= "),
        "failed": failed,
    }
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def measure(given: dict[str, object], file: Path | None) -> None:
    """Runs the benchmark."""
    from moorage.runtime.bench.gpu.arguments import Arguments
    from moorage.runtime.bench.gpu.report import run_gpu
    from moorage.workers.errors import MoorageError

    try:
        report = run_gpu(Arguments(**given))  # type: ignore[arg-type]
    except (MoorageError, ValueError) as error:
        sys.exit(f"error: {error}")
    if file is not None:
        report.write(file)


if __name__ == "__main__":
    main()
