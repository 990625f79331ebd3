"""How large the parts of a GGUF header may be, and what the process that reads it may use."""

from __future__ import annotations

from typing import Final

MOST_KEYS: Final = 4096
MOST_TENSORS: Final = 65536
MOST_NAME_BYTES: Final = 1024
"""Most bytes of a key or of a tensor's name."""
MOST_STRING_BYTES: Final = 16 << 20
MOST_ELEMENTS: Final = 4 << 20
"""Most elements of one array; the largest vocabularies have a sixteenth of it."""
MOST_HEADER_BYTES: Final = 64 << 20
MOST_DEPTH: Final = 3
"""Arrays within arrays."""
MOST_DIMENSIONS: Final = 4
MOST_TENSOR_ELEMENTS: Final = 1 << 42
MOST_ALIGNMENT: Final = 1 << 16
MOST_FILES: Final = 1000
"""Into which one model may be split."""

MEMORY_BYTES: Final = 2 << 30
"""Address space of the reading process."""
CPU_S: Final = 30
WALL_S: Final = 60.0
ANSWER_BYTES: Final = 128 << 20
"""Most that it may write."""
