"""Prints requirements.lock: the exact version of every package that Moorage, its tests and its build need.

Reads what the running environment has installed, so it can say nothing of packages that are not there.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.11", "3.12", "3.13")
HEADER = "# Written by `make lock`. Linux, Python 3.11 to 3.13."


def main() -> None:
    """Print the lock, or say which packages are missing and exit with 1."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    roots = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *extras["server"],
        *extras["http"],
        *extras["otlp"],
        *(name for name in extras["dev"] if not name.startswith("moorage[")),
    ]
    needed = {python: closure(roots, python) for python in PYTHONS}
    names = sorted(set().union(*needed.values()))
    missing = [name for name in names if installed_version(name) is None]
    if missing:
        sys.exit(
            f"requirements.lock: not installed, so not pinned: {', '.join(missing)}; pip install them first"
        )
    print(HEADER)
    for name in names:
        print(pin(name, [python for python in PYTHONS if name in needed[python]]))


def closure(roots: list[str], python: str) -> set[str]:
    """Names of all packages that `roots` bring on this Python version under Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
    }
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(root), "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                waiting += [(child, wanted) for child in dependencies(name)]
    return {name for name, _ in found}


def dependencies(name: str) -> list[Requirement]:
    """What a package asks for; nothing if it is not installed."""
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:
        return []


def installed_version(name: str) -> str | None:
    """The version without its local label, so that any index may serve it: 2.13.0+cpu is written 2.13.0."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def pin(name: str, pythons: list[str]) -> str:
    """One line of the lock, with a marker if only some Python versions need the package."""
    line = f"{name}=={installed_version(name)}"
    if len(pythons) == len(PYTHONS):
        return line
    marker = " or ".join(f"python_version == '{python}'" for python in pythons)
    return f"{line} ; {marker}"


if __name__ == "__main__":
    main()
