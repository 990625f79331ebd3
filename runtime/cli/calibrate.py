"""`runtime calibrate`: quantizers of a model for the NUQ formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.calibrate_bar import calibration_bar
from moorage.runtime.cli.output import print_json
from moorage.runtime.config.units import format_bytes, parse_tokens

_BITS = (2, 3, 4)
_LEAST_TOKENS = 64
"""Of a window, beyond its sinks: one block."""


@app.command(
    epilog=examples(
        "runtime calibrate --model ./my-model --text book.txt --output q.safetensors",
        "runtime calibrate --model ./my-model --text book.txt --bits 3 --windows 4 --output q.safetensors",
        "runtime calibrate --model ./llama-7b --import quantizers.pickle --output q.safetensors",
    )
)
def calibrate(
    model: Annotated[Path, typer.Option(metavar="MODEL", help="A model directory or a GGUF file.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, for kv_store.quantizer.")],
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text as the model will read it, UTF-8; --windows times --window tokens of it are used.",
        ),
    ] = None,
    imported: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Take quantizers from KVQuant's pickle instead of a text; may be given once for each number of "
            "bits. Nothing in the file is run.",
        ),
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="N,N,…", help="Bits of a key or value: 4, 3, 2 for NUQ4, NUQ3, NUQ2.")
    ] = "4,3,2",
    windows: Annotated[int, typer.Option(min=1, help="Windows of the text, spread evenly over it.")] = 16,
    records: Annotated[
        int,
        typer.Option(
            min=0,
            help="Windows beside the text in which records are looked up: what retrieval needs of keys.",
        ),
    ] = 4,
    window: Annotated[str, typer.Option(metavar="N", help="Tokens of a window; K is 1024.")] = "2K",
    sinks: Annotated[
        int, typer.Option(min=0, help="First tokens left out, as many as memory.n_fp16_sinks.")
    ] = 5,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="float32, bfloat16, float16, or auto, the checkpoint's own.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model's keys and values on a text, and write the quantizers of the NUQ formats.

    Each layer gets levels for its keys and its values, by k-means weighted with squared gradients of the loss, and a
    range for each key channel (KVQuant). Channels of a key make up for each other's errors (GPTQ). The file is for
    this model alone; kv_store.quantizer names it.
    """
    if (text is None) == (not imported):
        raise typer.BadParameter("give a text or --import, and not both", param_hint="--text")
    if imported:
        from moorage.runtime.calibrate.importing import import_quantizers

        header = import_quantizers(imported, model, output)
    else:
        from moorage.runtime.calibrate.calibration import CalibrationText, calibrate_model, check_installed
        from moorage.runtime.calibrate.fitting import FitSettings
        from moorage.runtime.text.tokenizer import TextTokenizer

        assert text is not None
        wanted, size = _parsed_bits(bits), _parsed_window(window, sinks)
        check_installed()
        read = CalibrationText.read(text, TextTokenizer.load(model), windows, size, records)
        with calibration_bar() as bar:
            settings = FitSettings(fp16_sinks=sinks)
            header = calibrate_model(model, read, wanted, settings, output, bar, dtype, device)
    names = ", ".join(f"NUQ{each}" for each in header.bits)
    if as_json:
        print_json(
            {"file": str(output), "model": header.model, "bits": header.bits, "data": dict(header.data)}
        )
    else:
        print(f"{output}: {names} of {header.model_name}, {format_bytes(output.stat().st_size)}")


def _parsed_bits(text: str) -> tuple[int, ...]:
    """Numbers of bits, each once, as they are asked for."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) in _BITS for word in words) or len(set(words)) != len(words):
        raise typer.BadParameter(
            f"{text!r} should be numbers of bits among 4, 3, 2, separated by commas", param_hint="--bits"
        )
    return tuple(int(word) for word in words)


def _parsed_window(text: str, sinks: int) -> int:
    try:
        window = parse_tokens(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}", param_hint="--window") from error
    if window < sinks + _LEAST_TOKENS:
        raise typer.BadParameter(
            f"{window} tokens are too few beyond {sinks} sinks; give at least {sinks + _LEAST_TOKENS}",
            param_hint="--window",
        )
    return window
