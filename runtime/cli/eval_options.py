"""Options that all evaluations share: who is asked, under which choices of memory, and where results go."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from moorage.client import Client
from moorage.runtime.cli import options as o
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.evals.haystack import DEFAULT_DOCUMENT
from moorage.runtime.evals.targets import ServerTargets, Targets
from moorage.runtime.evals.variants import Variant, parse_variant

Lengths = Annotated[
    str, typer.Option(metavar="N,N,…", help="Tokens of prompt and answer; K is 1024 and M is 1024².")
]
Samples = Annotated[int, typer.Option(min=1, help="Samples of each length, or of each length and depth.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same samples.")]
Document = Annotated[
    Path,
    typer.Option(
        metavar="FILE|DIR",
        help="The text to hide facts in: a file, or a folder of .txt, .md and .rst files.",
        show_default="the shipped Python reference",
    ),
]
Depths = Annotated[
    str | None,
    typer.Option(
        metavar="X,X,…|N",
        help="Places of the fact, 0 to 1, or how many places from 0 to 1; results are kept by place. Spread evenly "
        "if absent.",
    ),
]
OneText = Annotated[
    bool,
    typer.Option(
        "--one-text", help="Ask several questions after one text, which is prefilled once for all of them."
    ),
]
DOCUMENT = DEFAULT_DOCUMENT


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Fields become options of a command that takes them by `takes_run_options`."""

    address: o.Address = None
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run a cluster file's model in this process instead.")
    ] = None
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run this model in this process instead.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key, in this process."),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="Other presets than the cluster's own, side by side."),
    ] = None
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:SECTION.KEY=VALUE,…",
            help="A choice of any keys, in this process, beside the others; {scale} in a value is the length over "
            "the trained length. May be given several times.",
        ),
    ] = None
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Send each prompt as a user's message, through the model's chat template."
        ),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep every finished sample there, go on where a run was broken off, write tables.",
        ),
    ] = None
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None

    @property
    def in_process(self) -> bool:
        """Whether the model runs here rather than in a cluster."""
        return self.config is not None or self.model is not None

    def presets(self) -> list[str]:
        """The presets asked for."""
        return list(dict.fromkeys(name.strip() for name in self.preset.split(","))) if self.preset else []

    @contextmanager
    def targets(
        self, room: int | None = None, variants: list[Variant] | None = None, trained: int | None = None
    ) -> Iterator[Targets]:
        """Who is asked, with room for that many tokens in this process; `variants` if none are given here."""
        asked = [Variant(name, name) for name in self.presets()]
        asked += [parse_variant(text) for text in self.variant or ()]
        if not self.in_process:
            if self.overrides or self.variant or variants:
                raise typer.BadParameter(
                    "needs --config or --model, to run in this process", param_hint="--set, --variant"
                )
            with Client(o.server_address(self.address)) as client:
                yield ServerTargets(client, self.presets(), self.chat)
            return
        if self.address is not None:
            raise typer.BadParameter("give it, or --config and --model, not both", param_hint="--address")
        from moorage.runtime.evals.local_targets import LocalConfig, LocalTargets

        config = LocalConfig(self.config, self.model, self.overrides or ())
        targets = LocalTargets(config, asked or variants or (), room, trained, self.chat)
        try:
            yield targets
        finally:
            targets.close()


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of each parameter that is a dataclass, such as `run: RunOptions`, in its place."""
    signature = inspect.signature(command, eval_str=True)
    bundles: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }
    own = {name: _options_of(bundle) for name, bundle in bundles.items()}
    parameters = [
        option
        for parameter in signature.parameters.values()
        for option in own.get(parameter.name, [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
    ]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: bundle(**{option.name: values.pop(option.name) for option in own[name]})
            for name, bundle in bundles.items()
        }
        command(**made, **values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del call.__wrapped__
    return call


def _options_of(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(bundle)
        if field.default is not MISSING
    ]


def parse_lengths(text: str) -> tuple[int, ...]:
    """Token counts, separated by commas."""
    try:
        lengths = tuple(dict.fromkeys(parse_tokens(part) for part in text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}, separated by commas", param_hint="--lengths") from None
    if min(lengths) < 1:
        raise typer.BadParameter(f"{text!r}: at least 1 each", param_hint="--lengths")
    return lengths


def parse_depths(text: str | None) -> tuple[float, ...] | None:
    """Numbers from 0 to 1, separated by commas, or how many of them, 2 or more; None stays None."""
    if text is None:
        return None
    if text.strip().isdigit() and int(text) > 1:
        last = int(text) - 1
        return tuple(place / last for place in range(last + 1))
    try:
        places = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        places = (-1.0,)
    if not all(0.0 <= place <= 1.0 for place in places):
        raise typer.BadParameter(
            f"{text!r} should be numbers from 0 to 1, separated by commas, or a whole number of places, 2 or more",
            param_hint="--depths",
        )
    return places
