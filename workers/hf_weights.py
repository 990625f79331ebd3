"""Finds the safetensors files of a model directory, and checks their headers against config.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.files import gguf_files
from moorage.workers.gguf.model import read_gguf
from moorage.workers.gguf.weights import check_tensors
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_tensors import checkpoint_tensors, is_redundant, present_name
from moorage.workers.safetensors_header import TensorHeader, read_header, wrong_type
from moorage.workers.spec import ModelSpec

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PIECE_BYTES = 4 << 20


def read_headers(directory: Path, family: str) -> dict[str, TensorHeader]:
    """Headers of all tensors by the name that `family` has for them; no weights are read.

    Raises InvalidModel for a bad or missing file, and for a tensor that two files hold.
    """
    headers: dict[str, TensorHeader] = {}
    for file in weight_files(directory):
        for header in read_header(file):
            name = present_name(header.name, family)
            if name in headers:
                raise InvalidModel(
                    f"{file}: tensor {name} stands in {headers[name].file.name} too; remove the file that is not "
                    "of this model"
                )
            headers[name] = header
    return headers


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights. Raises InvalidModel where there is none, or more than one set."""
    index = directory / INDEX
    listed = _files_of_index(index) if index.is_file() else sorted(directory.glob("model*.safetensors"))
    whole = directory / WHOLE
    if whole.is_file() and listed != [whole]:
        beside = f"{INDEX} and its shards" if index.is_file() else ", ".join(file.name for file in listed[:2])
        raise InvalidModel(
            f"{directory}: holds {WHOLE} beside {beside}, which may be of different weights; remove one of the two "
            f"(transformers reads {WHOLE})"
        )
    if listed:
        return listed
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InvalidModel(
            f"{directory}: holds only pickled weights ({pickles[0]}), which can run code and are "
            "never loaded; convert the model to safetensors"
        )
    raise InvalidModel(f"{directory}: no model*.safetensors file; download the weights, or check model.path")


def check_weights(directory: Path, spec: ModelSpec) -> dict[str, TensorHeader]:
    """Headers, by name, of the tensors that `spec` needs, after a check of all names, types and shapes.

    Raises InvalidModel with the file and the tensor.
    """
    if files := gguf_files(directory):
        return check_tensors(read_gguf(files), spec)
    headers = read_headers(directory, spec.family)
    expected = {
        name: stored
        for tensor in checkpoint_tensors(spec, headers)
        for name, stored in tensor.in_files().items()
    }
    other = FAMILIES[spec.family].other_modalities
    for name, tensor in expected.items():
        if name not in headers:
            raise InvalidModel(
                f"{directory}: tensor {name} is missing; download the weights again, or correct config.json"
            )
        if headers[name].dtype not in tensor.dtypes:
            raise wrong_type(headers[name].file, name, headers[name].dtype)
        if headers[name].shape != tensor.shape and not _are_one(headers[name].shape, tensor.shape):
            raise InvalidModel(
                f"{headers[name].file}: tensor {name} has shape {list(headers[name].shape)} where "
                f"config.json makes it {list(tensor.shape)}; weights and config.json must be of one model"
            )
    for name, header in headers.items():
        if name not in expected and not is_redundant(name, spec) and not name.startswith(other):
            raise InvalidModel(
                f"{header.file}: tensor {name} has no place in a {spec.family} model by config.json; "
                "weights and config.json must be of one model"
            )
    return {name: headers[name] for name in expected}


def _are_one(*shapes: tuple[int, ...]) -> bool:
    """Whether all are of one element, which checkpoints write as [] or [1]."""
    return all(shape in ((), (1,)) for shape in shapes)


def own_head(directory: Path, family: str) -> str | None:
    """The name of the output matrix where the files hold one that differs from the embeddings.

    transformers 5 then keeps the file's, whatever `tie_word_embeddings` says. Equal bytes count as tied; two types of
    the same values count as different, which costs memory alone. Raises InvalidModel for bad files.
    """
    headers = read_headers(directory, family)
    for names in FAMILIES[family].layouts:
        head, embed = (headers.get(f"{names.name_of(part)}.weight") for part in (Part.LM_HEAD, Part.EMBED))
        if head is not None and embed is not None and _differ(head, embed):
            return head.name
    return None


def _differ(head: TensorHeader, embed: TensorHeader) -> bool:
    if (head.dtype, head.shape) != (embed.dtype, embed.shape):
        return True
    return any(ours != theirs for ours, theirs in zip(_pieces(head), _pieces(embed), strict=True))


def _pieces(header: TensorHeader) -> Iterator[bytes]:
    with header.file.open("rb") as stream:
        stream.seek(header.begin)
        for start in range(0, header.num_bytes, _PIECE_BYTES):
            yield stream.read(min(_PIECE_BYTES, header.num_bytes - start))


def _files_of_index(index: Path) -> list[Path]:
    weight_map = Fields.read(index).child("weight_map")
    names = [] if weight_map is None else list(weight_map.values.values())
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InvalidModel(f"{index}: weight_map must map tensors to files of this folder; download it again")
    files = [index.parent / name for name in sorted({str(name) for name in names})]
    for file in files:
        if not file.is_file():
            raise InvalidModel(f"{file}: missing, though {index.name} lists it; download it again")
    return files
