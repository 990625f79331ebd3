"""Real processes that are stopped, continued and killed, and what is said of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from moorage.runtime.cluster.os_processes import ProcessId, ProcessState
from moorage.runtime.cluster.process_watch import GIVE_UP_S, PATIENCE_S, ProcessWatch, Watched
from moorage.runtime.serving.health import ClusterHealth


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def watch(process: subprocess.Popen[bytes]) -> tuple[ProcessWatch, ClusterHealth, Clock]:
    """A watch over one child, which is called KV actor kv-0."""
    found = ProcessId.of(process.pid)
    assert found is not None
    health, clock = ClusterHealth(), Clock()
    return ProcessWatch([Watched("KV actor kv-0", found, "and with it all KV")], health, clock), health, clock


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signals the child and waits until the kernel has acted on it."""
    process.send_signal(number)
    event = {signal.SIGSTOP: os.WSTOPPED, signal.SIGCONT: os.WCONTINUED, signal.SIGKILL: os.WEXITED}[number]
    os.waitid(os.P_PID, process.pid, event | os.WNOWAIT)


def test_a_stop_is_told_at_the_second_look_and_taken_back_when_the_process_goes_on(
    child: subprocess.Popen[bytes],
) -> None:
    watching, health, clock = watch(child)
    watching.look()
    send(child, signal.SIGSTOP)
    watching.look()
    assert health.problem is None
    clock.now_s += 0.5
    watching.look()
    assert health.problem is not None
    assert not health.problem.fatal
    assert not health.problem.fails_requests
    assert f"KV actor kv-0 (pid {child.pid}) is stopped (state T)" in health.problem.message
    assert f"kill -CONT {child.pid}" in health.problem.message
    assert watching.state_of(child.pid) is ProcessState.STOPPED
    send(child, signal.SIGCONT)
    watching.look()
    assert health.problem is None
    assert watching.state_of(child.pid) is ProcessState.RUNNING


def test_a_debugger_s_moment_is_no_stop(child: subprocess.Popen[bytes]) -> None:
    watching, health, _ = watch(child)
    for _ in range(3):
        send(child, signal.SIGSTOP)
        watching.look()
        send(child, signal.SIGCONT)
        watching.look()
        assert health.problem is None


def test_requests_fail_after_a_long_stop_and_the_cluster_after_a_very_long_one(
    child: subprocess.Popen[bytes],
) -> None:
    watching, health, clock = watch(child)
    send(child, signal.SIGSTOP)
    watching.look()
    clock.now_s += PATIENCE_S
    watching.look()
    assert health.problem is not None
    assert health.problem.fails_requests
    assert not health.problem.fatal
    clock.now_s += GIVE_UP_S
    watching.look()
    assert health.problem.fatal
    assert "has been stopped for 600 s" in health.problem.message


def test_a_stop_of_what_no_step_needs_costs_no_request(child: subprocess.Popen[bytes]) -> None:
    found = ProcessId.of(child.pid)
    assert found is not None
    health, clock = ClusterHealth(), Clock()
    watching = ProcessWatch([Watched("raylet", found, "", in_steps=False)], health, clock)
    send(child, signal.SIGSTOP)
    watching.look()
    clock.now_s += 2 * PATIENCE_S
    watching.look()
    assert health.problem is not None
    assert not health.problem.fails_requests


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_process_is_gone_before_anybody_waits_for_it(
    child: subprocess.Popen[bytes], stopped: bool
) -> None:
    watching, health, clock = watch(child)
    if stopped:
        send(child, signal.SIGSTOP)
        watching.look()
        clock.now_s += 1
        watching.look()
    send(child, signal.SIGKILL)  # A zombie, since this test has not waited for it.
    watching.look()
    assert health.problem is not None
    assert health.problem.fatal
    assert f"KV actor kv-0 (pid {child.pid}) is gone, and with it all KV" in health.problem.message
    assert "runtime launch" in health.problem.message
    assert watching.state_of(child.pid) is ProcessState.GONE


def test_a_clock_that_is_set_makes_no_process_another(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start in seconds since the epoch moves with the clock, since the kernel counts it from the boot."""
    watching, health, _ = watch(child)
    booted_s = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted_s + 1)
    watching.look()
    assert health.problem is None


def test_another_process_of_the_same_pid_counts_as_gone(child: subprocess.Popen[bytes]) -> None:
    assert ProcessId(child.pid, 1.0).state is ProcessState.GONE
