"""A GGUF file with the same values in float32, for answers that no engine rounds on its way.

llama.cpp quantises activations to 8 bits where it multiplies with quantised weights, which decides between likely
tokens.
From a file of float32 it multiplies in float32.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

from moorage.workers.errors import ResourceExhausted

MOST_BYTES = 8 * 10**9
"""Most bytes of the copy."""
_WRITTEN_ANEW = "GGUF."
_ALL_FLOAT32 = 0


def write_dequantised(file: Path, copy: Path) -> None:
    """Writes `copy`. Raises ResourceExhausted, before anything is written, where it would be too large."""
    reader = gguf.GGUFReader(file)
    size = sum(4 * int(tensor.n_elements) for tensor in reader.tensors)
    if size > MOST_BYTES:
        raise ResourceExhausted(
            f"{file}: a copy in float32 takes {size / 1e9:.0f} GB; compare the answers of a smaller model"
        )
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(copy, str(architecture))
    for field in reader.fields.values():
        _copy_field(field, writer)
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_field(field: gguf.ReaderField, writer: gguf.GGUFWriter) -> None:
    """Everything but what the writer says itself."""
    if field.name.startswith(_WRITTEN_ANEW) or field.name == gguf.Keys.General.ARCHITECTURE:
        return
    kind = field.types[0]
    inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    value = _ALL_FLOAT32 if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
    writer.add_key_value(field.name, value, kind, sub_type=inner)
