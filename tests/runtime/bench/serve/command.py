"""Commands of `runtime bench` that ask a server, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_bench(words: str, file: Path, address: str) -> subprocess.CompletedProcess[str]:
    """Runs `runtime bench WORDS --json FILE --address ADDRESS`, whatever comes of it."""
    code = "from moorage.runtime.cli import main; main()"
    given = ["bench", *words.split(), "--json", str(file), "--address", address]
    return subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
