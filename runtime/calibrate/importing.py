"""A file of quantizers from those that KVQuant's release has made, one for each number of bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moorage.runtime.calibrate.header import header_of
from moorage.runtime.calibrate.published import import_quantizer
from moorage.workers.errors import InvalidRequest
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.formats.quantizer_file import QuantizerHeader, write_quantizers


def import_quantizers(files: Sequence[Path], model: Path, output: Path) -> QuantizerHeader:
    """Writes what `files` hold for `model` to `output`, and returns its header.

    Raises InvalidRequest for a file that is no such pickle or of another model, and for two of the same bits.
    """
    spec = read_model_spec(model)
    found = [import_quantizer(file, spec) for file in files]
    bits = [each.bits for each in found]
    for index, each in enumerate(bits):
        if each in bits[:index]:
            raise InvalidRequest(
                f"{files[index]}: {files[bits.index(each)].name} has {each} bits too; give one of them"
            )
    header = header_of(model, spec, bits, {"imported": [file.name for file in files]}, {})
    write_quantizers(output, header, found)
    return header
