"""The four packages: what is packaged, what may import what, and what a light import leaves out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

import moorage

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "proto", "runtime", "workers")
HEAVY = ("numba", "ray", "torch", "transformers")
IMPORTS_AS_JSON = """
import json
import grimp
graph = grimp.build_graph("moorage", cache_dir=None, exclude_type_checking_imports=False)
imports = {module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
print(json.dumps(imports))
"""
SHOW_HELP = """
from moorage.runtime.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
"""


def test_every_folder_with_python_is_packaged() -> None:
    """A sub-package missing from the list works from the source tree and vanishes from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    listed = {_folder_of(package, folders) for package in setuptools["packages"]}
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert found - listed == set(), "folders with Python that pyproject.toml does not list"
    assert {folder for folder in listed if not (ROOT / folder).is_dir()} == set(), "listed without a folder"
    assert setuptools["packages"] == sorted(setuptools["packages"])


@pytest.mark.parametrize("package", PACKAGES)
def test_root_folders_have_no_init(package: str) -> None:
    """With an `__init__.py` there, `kernels` and `proto` would shadow others' packages in Ray's workers."""
    assert not (ROOT / package / "__init__.py").exists()
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("folder", ["runtime/client", "runtime/package"])
def test_type_checkers_read_the_public_packages(folder: str) -> None:
    assert (ROOT / folder / "py.typed").exists()


def test_the_package_has_its_installed_version() -> None:
    assert moorage.__version__ == metadata.version("moorage")


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import moorage", id="package"),
        pytest.param("import moorage.client", id="client"),
        pytest.param("import moorage.runtime.cli", id="cli"),
        pytest.param(
            "import moorage.runtime.config.load, moorage.runtime.planning.memory", id="config-sizing"
        ),
        pytest.param(SHOW_HELP, id="help-of-all-commands"),
    ],
)
def test_light_imports_stay_light(code: str) -> None:
    assert _heavy_modules_after(code) == set()


def test_no_module_imports_itself_through_others() -> None:
    """Imports for type checkers count as well."""
    command = [sys.executable, "-c", IMPORTS_AS_JSON]
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".types")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imports = {module: set(found) for module, found in json.loads(done.stdout).items()}
    assert len(imports) > 300
    assert _circles(imports) == []


def test_a_circle_is_noticed() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def _circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves, in groups that reach one another."""
    reached = {module: _reached_from(module, imports) for module in imports}
    found = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return [list(group) for group in sorted(found)]


def _reached_from(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = list(imports[module])
    while ahead:
        found = ahead.pop()
        if found not in seen:
            seen.add(found)
            ahead += imports[found]
    return seen


def test_a_server_loads_torch_in_its_workers_alone() -> None:
    code = "import moorage.runtime.cluster.processes, moorage.workers.gpu.actor, moorage.workers.kv.actor"
    assert "torch" not in _heavy_modules_after(code)


def test_a_heavy_import_is_noticed() -> None:
    assert "numba" in _heavy_modules_after("import moorage.client, numba")


def test_imports_go_one_way() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_an_import_the_wrong_way_is_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module in _modules_of_contracts():
        folder = tmp_path.joinpath(".types", *module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part.py").write_text("", encoding="utf-8")
    before = _lint_imports(tmp_path)
    assert before.returncode == 0, before.stdout
    upward = tmp_path / ".types" / "moorage" / "kernels" / "part.py"
    upward.write_text("import moorage.workers.part\n", encoding="utf-8")
    assert _lint_imports(tmp_path).returncode == 1


def _modules_of_contracts() -> set[str]:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    keys = ("layers", "source_modules", "forbidden_modules")
    return {
        module
        for contract in tools["importlinter"]["contracts"]
        for key in keys
        for module in contract.get(key, ())
    }


def _folder_of(package: str, folders: dict[str, str]) -> str:
    """Where setuptools takes a package from: the longest mapped name, and the rest as sub-folders."""
    mapped = max((name for name in folders if f"{package}.".startswith(f"{name}.")), key=len)
    return "/".join([folders[mapped], *package[len(mapped) :].split(".")[1:]])


def _heavy_modules_after(code: str) -> set[str]:
    report = f"import sys\nprint('loaded', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": ".types"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
