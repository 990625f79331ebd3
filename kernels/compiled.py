"""Where Numba keeps the compiled kernels, so that they can be counted and removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numba
from numba.core.caching import UserProvidedCacheLocator
from numba.misc.appdirs import AppDirs

_PACKAGE = Path(__file__).resolve().parent
_PATTERNS = ("*.nbi", "*.nbc")
"""Numba's index and code files."""


def compiled_files(package: Path = _PACKAGE) -> list[Path]:
    """Every file of compiled kernels whose sources lie in `package`.

    Numba writes beside the sources where it may, else under NUMBA_CACHE_DIR or the user's cache directory.
    """
    found = {file for folder in _folders(package) for pattern in _PATTERNS for file in folder.glob(pattern)}
    return sorted(found)


def remove_compiled(package: Path = _PACKAGE) -> list[Path]:
    """Removes them, and each folder outside `package` that they leave empty. Returns the folders that held any.

    Running processes are not disturbed, since they have loaded what they use.
    """
    folders = set()
    for file in compiled_files(package):
        file.unlink(missing_ok=True)
        folders.add(file.parent)
    for folder in folders:
        if package not in folder.parents and not any(folder.iterdir()):
            folder.rmdir()
    return sorted(folders)


def _folders(package: Path) -> Iterator[Path]:
    elsewhere = [Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)]
    if numba.config.CACHE_DIR:
        elsewhere.append(Path(numba.config.CACHE_DIR))
    for source in package.rglob("*.py"):
        yield source.parent / "__pycache__"
        subpath = UserProvidedCacheLocator.get_suitable_cache_subpath(str(source))
        yield from (root / subpath for root in elsewhere)
