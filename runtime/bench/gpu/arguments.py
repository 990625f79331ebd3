"""Arguments of `bench gpu`, for its command line and for the script of a bare machine; light."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arguments:
    """The options as people write them."""

    shape: str = "internlm2.5-7b"
    device: str = "cuda"
    device_memory: str = "24GiB"
    context: str = "128K,512K,32K,256K"
    prefill_context: str = "32K,128K,512K"
    batch: str = "1,16,4"
    chunk: int = 8192
    steps: int = 24
    budget: int = 300
    host_memory: str = ""
    only: str = ""
    json_lines: str = ""
    threads: int = len(os.sched_getaffinity(0))


HELP = {
    "shape": "internlm2.5-7b or llama-3-8b; tiny to try it out.",
    "device": "cuda, or cpu to try it out.",
    "device_memory": "Device memory that selected blocks make do with.",
    "context": "Tokens before the new one.",
    "prefill_context": "Tokens of a prefilled prompt.",
    "batch": "Sessions that decode together.",
    "chunk": "Tokens of a prefill chunk.",
    "steps": "Measured steps of each case.",
    "budget": "Seconds after which it stops with what it has.",
    "host_memory": "Host memory that a filled store may take; without it, 80 % of what is free.",
    "only": "Parts of row names, separated by commas; other rows are left out.",
    "json_lines": "File to which each row is added as one line of JSON as soon as it is measured.",
    "threads": "CPU threads of the stores.",
}
DEFAULTS = Arguments()
