"""What `bench peers` measures of each engine at each length, as JSON for machines and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from moorage.runtime.bench.measure import Sample, median_s, undisturbed
from moorage.runtime.bench.peers.process import Parts
from moorage.runtime.cli.output import format_gb, print_table
from moorage.runtime.config.units import format_tokens

PEERS = ("llama.cpp", "transformers")


@dataclass(frozen=True, slots=True)
class Figures:
    """One engine at one length."""

    name: str
    context_tokens: int
    decode_s: float
    """Seconds of a generated token, a median."""
    peak_bytes: int
    """Most resident memory of the engine's process, weights and cache included."""
    prefill_s: float | None = None
    """Seconds of the whole prompt, a median; None where the past was made up."""
    decode_part_s: dict[str, float] = field(default_factory=dict)
    prefill_part_s: dict[str, float] = field(default_factory=dict)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens of the prompt by its seconds."""
        return None if self.prefill_s is None else self.context_tokens / self.prefill_s


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greedy answers of one engine beside those of another."""

    name: str
    peer: str
    identical: int
    """Prompts whose first `num_tokens` are the same."""
    prompts: int
    num_tokens: int
    first_differences: tuple[int, ...]
    """For each prompt, the number of equal tokens before the first other one."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times as fast as a peer; above 1 is faster."""

    prefill: float | None
    decode: float


def ratios(figures: Figures, peer: Figures) -> Ratios:
    """The ratios of one engine to another at the same length."""
    prefill = None
    if figures.prefill_s is not None and peer.prefill_s is not None:
        prefill = peer.prefill_s / figures.prefill_s
    return Ratios(prefill, peer.decode_s / figures.decode_s)


def ratios_to_peers(figures: Figures, rows: Sequence[Figures]) -> dict[str, Ratios]:
    """The ratios to every peer that was measured at the same length; nothing for a peer itself."""
    if figures.name in PEERS:
        return {}
    return {
        row.name: ratios(figures, row)
        for row in rows
        if row.name in PEERS and row.context_tokens == figures.context_tokens
    }


def median_parts(samples: Sequence[Sample[Parts]]) -> Parts:
    """Median seconds of each part over the undisturbed samples."""
    calm = undisturbed(samples)
    return {part: median(taken.value.get(part, 0.0) for taken in calm) for part in calm[0].value}


def make_figures(
    name: str,
    context_tokens: int,
    prefills: Sequence[Sample[Parts]],
    decodes: Sequence[Sample[Parts]],
    peak_bytes: int,
) -> Figures:
    """Medians of what was sampled."""
    return Figures(
        name,
        context_tokens,
        median_s(decodes),
        peak_bytes,
        median_s(prefills) if prefills else None,
        median_parts(decodes),
        median_parts(prefills) if prefills else {},
    )


@dataclass(slots=True)
class PeerReport:
    """All figures of one run."""

    machine: Mapping[str, Any]
    model: str
    threads: int
    rows: list[Figures] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything by name; seconds and bytes."""
        rows = [
            asdict(row)
            | {
                "prefill_tokens_per_s": row.prefill_tokens_per_s,
                "ratio_to": {peer: asdict(ratio) for peer, ratio in ratios_to_peers(row, self.rows).items()},
            }
            for row in self.rows
        ]
        return {
            "machine": dict(self.machine),
            "model": self.model,
            "threads": self.threads,
            "rows": rows,
            "agreements": [asdict(one) for one in self.agreements],
        }

    def print(self) -> None:
        """The table, the answers that agree, and the notes."""
        peers = [peer for peer in PEERS if any(row.name == peer for row in self.rows)]
        columns = ["context", "engine", "prefill/s", "decode ms", "peak GB", *(f"× {peer}" for peer in peers)]
        cells = []
        for row in self.rows:
            found = ratios_to_peers(row, self.rows)
            speed = row.prefill_tokens_per_s
            cells.append(
                [
                    format_tokens(row.context_tokens),
                    row.name,
                    "–" if speed is None else f"{speed:,.0f}",
                    f"{row.decode_s * 1e3:.1f}",
                    format_gb(row.peak_bytes),
                    *(_shown(found.get(peer)) for peer in peers),
                ]
            )
        notes = [
            "× PEER: how many times as fast, prefill | decode; prefill/s: tokens a second of a whole exact prompt.",
            *(_said(one) for one in self.agreements),
            *self.notes,
            ", ".join(f"{name} {value}" for name, value in self.machine.items()),
        ]
        title = f"{self.model}, {self.threads} threads"
        print_table(
            columns, cells, title=title, right=[name for name in columns if name != "engine"], notes=notes
        )


def _shown(found: Ratios | None) -> str:
    if found is None:
        return ""
    return f"{'–' if found.prefill is None else f'{found.prefill:.2f}'} | {found.decode:.2f}"


def _said(one: Agreement) -> str:
    return (
        f"{one.name}: the first {one.num_tokens} greedy tokens equal those of {one.peer} "
        f"in {one.identical} of {one.prompts} prompts."
    )
