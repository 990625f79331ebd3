"""Every benchmark in short form, for a file of ratios and for the comparison with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moorage.runtime.bench.batching import run_batches
from moorage.runtime.bench.decode_layer import run_layer_of_decode
from moorage.runtime.bench.decoding import run_decode
from moorage.runtime.bench.gathering import run_gather
from moorage.runtime.bench.linear import run_linear
from moorage.runtime.bench.pilot import Setup
from moorage.runtime.bench.prefilling import run_prefill
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.scoring import run_scoring
from moorage.runtime.bench.sealing import run_seal
from moorage.runtime.bench.selecting import run_link, run_select
from moorage.runtime.bench.single_keys import run_keys

K = 1024
MEGA = K * K


def run_everything(threads: Sequence[int], with_ray: bool) -> Iterator[tuple[str, Iterable[Row]]]:
    """(name, rows) of each; the rows are measured as they are taken."""
    yield "scoring", run_scoring(MEGA, threads, 15)
    yield "gather", run_gather(threads, 31)
    yield "seal", run_seal(threads, 31)
    yield "linear", run_linear(threads, 31)
    yield "link", run_link(7, with_ray)
    yield "select", run_select(MEGA, 1, 101, with_ray)
    yield "layer", run_layer_of_decode(32 * K, (1, 8), threads, 101)
    yield "keys", run_keys(128 * K, threads, 101)
    yield "decode", run_decode((4 * K, 32 * K, 128 * K, MEGA), 30, 2, Setup(), 32 * K)
    yield "decode --batch", run_batches((32 * K,), (1, 8), 30, Setup())
    yield "prefill", run_prefill((4 * K, 64 * K, MEGA), 2048, 1, Setup(), 4 * K, 4 * K)
