"""Time and memory that one job of the text process may take."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

PACKET_BYTES = 64 << 10
"""Longest packet between the server and the text process."""
_PAGE_BYTES = resource.getpagesize()
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class JobLimits:
    """CPU seconds and bytes, for a job and for each MiB of its text; some ten times what ordinary models need."""

    base_s: int = 5
    s_per_mib: int = 10
    base_bytes: int = 512 * _MIB
    bytes_per_byte: int = 512
    patience: int = 12
    """Seconds to wait for each CPU second that a job may take: the host may be busy with other work."""

    def cpu_s(self, num_bytes: int) -> int:
        """CPU seconds for so much text."""
        return self.base_s + self.s_per_mib * num_bytes // _MIB

    def wall_s(self, num_bytes: int) -> int:
        """Seconds after which the process itself must be stuck."""
        return self.patience * self.cpu_s(num_bytes)

    def memory_bytes(self, num_bytes: int) -> int:
        """Bytes for so much text, beside what the process has before."""
        return self.base_bytes + self.bytes_per_byte * num_bytes


def limit_stage(limits: JobLimits, num_bytes: int) -> None:
    """From here on this process may take what `limits` give for so much text; at its end it is killed.

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
