"""Files that come with the package: example cluster files, the small models, the document.

They lie in `deploy/` of the source tree, and in `moorage/deploy/` of an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

from moorage.workers.errors import NotFound

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def examples() -> list[str]:
    """Names of the example cluster files."""
    return sorted(path.stem for path in DEPLOY.glob("*.yaml"))


def example_file(name: str) -> Path:
    """The cluster file of an example. Raises NotFound for a name that there is not."""
    if name not in examples():
        raise NotFound(f"--example {name}: no such example; choose one of {', '.join(examples())}")
    return DEPLOY / f"{name}.yaml"
