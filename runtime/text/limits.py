"""Time and memory that one job of the text process may take, and what to say of one that took more."""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKET_BYTES = 64 << 10
"""Longest packet between the server and the text process."""
_PAGE_BYTES = resource.getpagesize()
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class JobLimits:
    """CPU seconds and bytes, for a job and for each MiB of its text; some ten times what ordinary models need."""

    base_s: int = 2
    s_per_mib: int = 10
    base_bytes: int = 512 * _MIB
    bytes_per_byte: int = 512
    patience: int = 12
    """Seconds to wait for each CPU second that a job may take: the host may be busy with other work."""

    def cpu_s(self, num_bytes: int) -> int:
        """CPU seconds for so much text."""
        return self.base_s + self.s_per_mib * num_bytes // _MIB

    def wall_s(self, num_bytes: int) -> int:
        """Seconds after which the process counts as stuck."""
        return self.patience * self.cpu_s(num_bytes)

    def memory_bytes(self, num_bytes: int) -> int:
        """Bytes for so much text, beside what the process has before."""
        return self.base_bytes + self.bytes_per_byte * num_bytes

    def reason(self, code: int, stage: Mapping[str, Any]) -> str:
        """Why a child ended before it answered, in one line.

        `code` is its exit code, negative for a signal; `stage` is what it wrote when its last stage began.
        """
        name = stage.get("stage") or "tokenizer.json: the tokenizer"
        num_bytes = stage.get("num_bytes", 0)
        advice = "shorten the text, or send token ids"
        if code == -signal.SIGXCPU:
            return f"{name} needs more than {self.cpu_s(num_bytes)} s of CPU time for this input; {advice}"
        if stage.get("memory") or code == -signal.SIGABRT:
            mebibytes = self.memory_bytes(num_bytes) // _MIB
            return f"{name} needs more than {mebibytes} MiB of memory for this input; {advice}"
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return f"{name} ended with {how} on this input; {advice}"


def limit_stage(limits: JobLimits, num_bytes: int) -> None:
    """Limits this process from now on to what `limits` give for so much text.

    Past its CPU seconds the kernel ends it with SIGXCPU. Past its memory an allocation fails.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(usage.ru_utime + usage.ru_stime) + limits.cpu_s(num_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
    memory_bytes = _virtual_bytes() + limits.memory_bytes(num_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
