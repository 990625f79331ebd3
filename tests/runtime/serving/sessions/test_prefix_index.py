"""The hashes of blocks, and what is found by them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from moorage.runtime.serving.sessions.prefix_index import PrefixIndex
from moorage.runtime.serving.sessions.prefixes import BlockChain
from moorage.workers.spec import KvLayout, KvType, MemorySpec, Positions
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import FULL, memory

LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, block_size=4)
PROMPT = (5, 6, 7, 8, 1, 2, 3, 4, 9)


def digests(
    prompt: tuple[int, ...] = PROMPT,
    secret: bytes = b"secret",
    tenant: str = "ann",
    axes: MemorySpec = FULL,
    **layout: Any,
) -> tuple[bytes, ...]:
    changed = dataclasses.replace(LAYOUT, **layout)
    return BlockChain(secret, tenant, axes, changed, TokenIds(prompt)).digests


def test_each_full_block_has_a_hash_of_256_bits() -> None:
    found = digests()
    assert [len(digest) for digest in found] == [32, 32]
    assert found == digests(), "it follows from the content alone"
    assert digests(PROMPT[:3]) == ()


@pytest.mark.parametrize("place", range(8))
def test_every_token_changes_its_block_and_all_after_it(place: int) -> None:
    changed = [*PROMPT]
    changed[place] += 1
    alike = [one == other for one, other in zip(digests(), digests(tuple(changed)), strict=True)]
    assert alike == [place >= 4, False]


def test_the_same_block_after_another_one_is_another_block() -> None:
    same = digests((1, 2, 3, 4, 1, 2, 3, 4))
    assert same[0] != same[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "bob"},
        {"secret": b"other"},
        {"kv_type": KvType.FP32},
        {"num_layers": 2},
        {"axes": memory(scheme=Positions.CLAMPED)},
        {"axes": memory(topk=0, sinks=4, window=24)},
        {"axes": memory(topk=2, window=24, execution_block=8)},
        {"axes": memory(topk=3, window=24, execution_block=8)},
    ],
    ids=str,
)
def test_all_that_shapes_keys_and_values_changes_every_hash(changes: dict[str, Any]) -> None:
    prompt = tuple(range(400))
    axes = changes.get("axes", FULL)
    before = digests(
        prompt, axes=memory(topk=4, window=24, execution_block=8) if axes.selection.topk else FULL
    )
    assert not set(before) & set(digests(prompt, **changes))


def test_tokens_after_the_prompt_go_on_with_its_chain() -> None:
    chain = BlockChain(b"secret", "ann", FULL, LAYOUT, TokenIds(PROMPT[:5]))
    assert chain.of(TokenIds(PROMPT)) == digests()
    assert chain.of(TokenIds(PROMPT[:4])) == digests()[:1], (
        "a prefill that was cut short has less than its prompt"
    )


@dataclass(frozen=True)
class Held:
    session_id: int
    digests: tuple[bytes, ...]


def test_the_longest_chain_is_found_and_of_equal_ones_the_latest() -> None:
    index = PrefixIndex()
    one, two, three = Held(1, (b"a", b"b")), Held(2, (b"a", b"b", b"c")), Held(3, (b"a", b"b", b"d"))
    for held in (one, two, three):
        index.add(held)
    found = index.longest((b"a", b"b", b"d", b"e"), (one, two, three))
    assert found == [three]
    assert index.longest((b"a", b"b", b"x"), (one, two, three)) == [three, two, one]
    assert index.longest((b"x",), (one, two, three)) == index.longest((), (one, two, three)) == []


def test_nothing_is_found_of_a_session_that_was_removed() -> None:
    index = PrefixIndex()
    one, two = Held(1, (b"a", b"b")), Held(2, (b"a",))
    index.add(one)
    index.add(two)
    index.remove(one)
    assert index.longest((b"a", b"b"), (two,)) == [two]
    index.remove(two)
    assert len(index) == 0
