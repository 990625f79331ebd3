"""`runtime bench gpu` on a bare machine: needs Python, torch, Triton, Numba, psutil and rich, and no install.

python3 deploy/benchmarks/gpu.py --budget 540 --json gpu.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Shows this checkout's folders as the package `moorage`, then runs with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "moorage"
        package.mkdir()
        for name in ("kernels", "runtime", "workers"):
            (package / name).symlink_to(ROOT / name, target_is_directory=True)
        sys.path.insert(0, folder)
        run()


def run() -> None:
    """As the command, with the same options."""
    from moorage.runtime.bench.gpu_arguments import HELP, Arguments
    from moorage.runtime.bench.gpu_report import run_gpu
    from moorage.workers.errors import MoorageError

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Arguments):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help=HELP[field.name])
    parser.add_argument("--json", type=Path, help="Write the rows as JSON.")
    given = vars(parser.parse_args())
    file = given.pop("json")
    try:
        report = run_gpu(Arguments(**given))
    except (MoorageError, ValueError) as error:
        sys.exit(f"error: {error}")
    if file is not None:
        report.write(file)


if __name__ == "__main__":
    main()
