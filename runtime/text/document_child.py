"""Reads the text of one document in a process of its own, which ends when it exceeds its limits.

The file is standard input and the answer standard output, both of them files in memory. The answer is a line of JSON,
`{}` or why there is no text, and then the text in UTF-8.

python -m moorage.runtime.text.document_child NAME PARENT_PID LIMITS_AS_JSON
"""

from __future__ import annotations

import json
import os
import sys

from moorage.runtime.text.body import overwrite, read_all
from moorage.runtime.text.child_setup import NICE, be_quiet, die_first, die_with
from moorage.runtime.text.documents import text_in
from moorage.runtime.text.limits import JobLimits, limit_stage
from moorage.workers.errors import MoorageError


def main(arguments: list[str]) -> None:
    """Reads one document."""
    name, parent, limits_as_json = arguments
    limits = JobLimits(**json.loads(limits_as_json))
    file_fd, answer_fd = os.dup(0), os.dup(1)
    be_quiet()
    die_with(int(parent))
    die_first()
    os.nice(NICE)
    num_bytes = os.fstat(file_fd).st_size
    limit_stage(limits, num_bytes)
    try:
        answer = b"{}\n" + text_in(read_all(file_fd), name).encode("utf-8", "replace")
    except MemoryError:
        limit_stage(limits, num_bytes)  # The limit is set anew, so that the answer can be made.
        answer = b'{"memory": true}\n'
    except MoorageError as error:
        answer = json.dumps({"error": str(error)}).encode() + b"\n"
    except Exception as error:  # noqa: BLE001  the last line before the process ends
        reason = f"{name}: can't be read ({type(error).__name__}); save it anew, or as text"
        answer = json.dumps({"error": reason}).encode() + b"\n"
    overwrite(answer_fd, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
