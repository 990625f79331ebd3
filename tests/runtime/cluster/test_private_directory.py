"""A directory that nobody else can enter, and what is left of killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.runtime.cluster.private_directory import PrivateDirectory, remove_leftovers

_KILLED = """
import os, signal
from moorage.runtime.cluster.private_directory import PrivateDirectory
print(PrivateDirectory().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
LONGEST_SOCKET = 107


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: ARG001  made first
    """A temporary directory of the test's own, with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mt") as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(path)
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_only_its_user_can_enter_it_and_it_goes_with_all_it_holds(temporary: Path) -> None:
    directory = PrivateDirectory()
    assert directory.path.parent == temporary
    assert directory.path.stat().st_mode & 0o777 == 0o700
    (directory.path / "deep").mkdir()
    (directory.path / "deep" / "file").write_text("x")
    directory.remove()
    directory.remove()
    assert list(temporary.iterdir()) == []


def test_the_sockets_of_a_ray_session_have_room_in_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    directory = PrivateDirectory()
    session = f"{directory.path}/r/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store"
    directory.remove()
    assert len(session) <= LONGEST_SOCKET


def test_what_a_killed_process_left_is_removed_and_a_running_one_s_stays(temporary: Path) -> None:
    own = PrivateDirectory()
    done = subprocess.run([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.decode().strip())
    stranger = temporary / "moorage-ray-no-lock"
    stranger.mkdir()
    assert left.is_dir()
    assert remove_leftovers() == [left]
    assert sorted(temporary.iterdir()) == sorted([own.path, stranger])
    own.remove()


def test_a_link_that_leads_elsewhere_is_left_alone(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    os.symlink(tmp_path, temporary / "moorage-ray-link")
    assert remove_leftovers() == []
    assert (tmp_path / "lock").exists()
