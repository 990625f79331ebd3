"""A calibration from beginning to end: a model and a text in, a file of quantizers out."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Protocol

from moorage.runtime.calibrate.fitting import FitSettings, LayerFit
from moorage.runtime.calibrate.header import header_of
from moorage.runtime.calibrate.layer_bits import coding_cost, spread_bits
from moorage.runtime.calibrate.records import record_windows
from moorage.runtime.calibrate.samples import sample
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.formats.quantizer_file import BITS, QuantizerHeader, write_quantizers

_PIECE_CHARACTERS = 1 << 18


class Watcher(Protocol):
    """Learns how a calibration goes on."""

    def loading(self, read: int, total: int) -> None:
        """Bytes of the weights that are read, and all."""

    def gradients(self, window: int, total: int, loss: float) -> None:
        """Windows whose gradients are computed, and all; the mean loss of the last one, in nats per token."""

    def levels(self, layer: int, total: int) -> None:
        """Layers whose levels are found, and all."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text as windows of token ids, spread evenly over it, and windows in which records are looked up."""

    name: str
    digest: str
    windows: Sequence[Sequence[int]]
    records: Sequence[Sequence[int]] = ()

    @property
    def all_windows(self) -> list[Sequence[int]]:
        """Those of the text, and then those of records."""
        return [*self.windows, *self.records]

    @classmethod
    def read(
        cls, file: Path, tokenizer: TextTokenizer, num_windows: int, window: int, num_records: int = 0
    ) -> CalibrationText:
        """From a file of UTF-8. Raises InvalidRequest for one that is too short, or no text."""
        try:
            text = file.read_bytes().decode("utf-8")
        except OSError as error:
            raise InvalidRequest(f"{file}: can't be read ({error.strerror or error}); check --text") from None
        except UnicodeDecodeError:
            raise InvalidRequest(f"{file}: not UTF-8 text; convert it or name another file") from None
        pieces = (text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS))
        ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
        if len(ids) < window:
            raise InvalidRequest(
                f"{file}: the text has {counted(len(ids), 'token')} and a window {window}; give a longer text"
            )
        start = tokenizer.encode("", add_special_tokens=True)[:1]
        size = window - len(start)
        most = min(num_windows, max(1, len(ids) // size))
        step = (len(ids) - size) / max(1, most - 1)
        windows = [[*start, *ids[round(index * step) :][:size]] for index in range(most)]
        records = record_windows(tokenizer, num_records, window)
        return cls(file.name, hashlib.sha256(text.encode()).hexdigest()[:16], windows, records)


def check_installed() -> None:
    """Raises InvalidConfig where the library of k-means is not installed."""
    try:
        importlib.import_module("sklearn.cluster")
    except ModuleNotFoundError:
        raise InvalidConfig(
            "calibrate: scikit-learn is not installed; install it with: pip install 'moorage[calibrate]'"
        ) from None


def calibrate_model(
    model: Path,
    text: CalibrationText,
    bits: Sequence[int],
    settings: FitSettings,
    output: Path,
    watcher: Watcher,
    dtype: str = "auto",
    device: str = "cpu",
) -> QuantizerHeader:
    """Writes the quantizers of `model` for each of `bits` to `output`, and returns the file's header."""
    spec = read_model_spec(model)
    if not spec.stored_layers:
        raise InvalidRequest(
            f"{model}: every layer attends a sliding window, so the stores hold nothing to quantise"
        )
    if (device, dtype, spec.dtype) == ("cpu", "auto", "float16"):
        dtype = "float32"  # a CPU multiplies float16 many times slower
    decoder = Decoder.load(model, spec, dtype, device, watcher.loading)
    losses: list[float] = []
    windows = text.all_windows

    def on_window(loss: float) -> None:
        losses.append(loss)
        watcher.gradients(len(losses), len(windows), loss)

    samples = sample(decoder, windows, on_window)
    fitted, layers, costs = _fitted_bits(bits), [], []
    for index, of_layer in enumerate(samples):
        fit = LayerFit(of_layer, settings)
        layers.append([fit.quantizer(each) for each in fitted])
        costs.append({each.bits: coding_cost(of_layer, each, settings.fp16_sinks) for each in layers[-1]})
        watcher.levels(index + 1, len(samples))
    quantizers = [
        Quantizer(each, found) for each, found in zip(fitted, zip(*layers, strict=True), strict=True)
    ]
    spread = {str(each): spread_bits(costs, each) for each in bits}
    about = {"text": text.name, "sha256": text.digest, "windows": len(text.windows)}
    about |= {"tokens": sum(map(len, text.windows)), "records": len(text.records)}
    about |= {"loss": round(fmean(losses[: len(text.windows)]), 4)}
    header = header_of(model, spec, bits, about, {**asdict(settings), "dtype": str(decoder.dtype)})
    header = replace(header, layer_bits={each: own for each, own in spread.items() if len({*own}) > 1})
    write_quantizers(output, header, quantizers)
    return header


def _fitted_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """The bits that layers may have: beside `bits` one more and one less, where a quantizer can have both."""
    most, least = max(BITS), min(BITS)
    near = {other for each in bits if least < each < most for other in (each - 1, each + 1)}
    return tuple(sorted({*bits, *near}))
