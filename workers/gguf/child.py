"""The process that parses headers of GGUF files, under limits of memory and time, without other packages.

python -m moorage.workers.gguf.child MEMORY_BYTES CPU_S ANSWER_BYTES MOST_SHOWN FILE…

It writes one line of JSON for each file: the header, or what is wrong with it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from moorage.workers.gguf.reading import Damaged, parse_header


def main(arguments: list[str]) -> None:
    """Sets the limits, then reads the files."""
    memory_bytes, cpu_s, answer_bytes, most_shown = map(int, arguments[:4])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (answer_bytes, answer_bytes))
    for file in arguments[4:]:
        sys.stdout.write(_answer(file, most_shown) + "\n")
        sys.stdout.flush()


def _answer(file: str, most_shown: int) -> str:
    try:
        with open(file, "rb") as stream:
            header = parse_header(stream, os.fstat(stream.fileno()).st_size)
        lengths = _shorten(header["values"], most_shown)
        return json.dumps({**header, "lengths": lengths})
    except Damaged as error:
        return json.dumps({"damaged": str(error)})
    except MemoryError:
        return json.dumps({"damaged": "its header takes too much memory"})
    except OSError as error:
        return json.dumps({"unreadable": error.strerror or str(error)})


def _shorten(values: dict[str, Any], most_shown: int) -> dict[str, int]:
    """Takes arrays of more than `most_shown` elements out of `values`, and returns how long they are."""
    lengths = {
        key: len(value)
        for key, value in values.items()
        if isinstance(value, list) and len(value) > most_shown
    }
    for key in lengths:
        del values[key]
    return lengths


if __name__ == "__main__":
    main(sys.argv[1:])
