"""How much of a session's KV another prompt may use. Pure.

The next turn of a session pays only for its new tokens, but what a request means does not depend on what was cached:
only KV is used again that a fresh prefill would have stored as well. So each stored token is compared by the *shape*
of the attention that computed it: all settings on which its keys and values depend beside the tokens before it.

- Exact prefill attends all earlier keys: its shape is the position scheme and the rotary view (`attention_shape`).
- Selected prefill attends the blocks selected for each execution block (`selection_shape`). Its results are used
  again in whole execution blocks: where the end of a prompt cut one short, fewer queries had selected its blocks.
  The last tokens of a prompt may select for themselves; their results serve no other prompt.
- A generated token equals a prefilled one only while its step attended every key under the view of the prompt.

Prefill goes on at a point from which everything else that a prompt leaves can be made again. The prompt's last
queries run again where they decide on blocks, and a whole window where the attention is counted that keys receive.
A sliding-window layer holds the last tokens alone: prefill goes on only where the window before it is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from moorage.runtime.serving.session_cache import StoredKv
from moorage.workers.sizes import near_block, sink_blocks
from moorage.workers.spec import (
    AnchorType,
    KvLayout,
    MemorySpec,
    Positions,
    Preselect,
    RopeSpec,
    WindowLayout,
)

Shape = tuple[object, ...]
"""Equal shapes give equal keys and values for equal tokens."""


def reusable_tokens(
    stored: StoredKv,
    prompt: Sequence[int],
    memory: MemorySpec,
    layout: KvLayout,
    model_rope: RopeSpec | None = None,
    windows: WindowLayout | None = None,
) -> int:
    """First tokens of `prompt` that need no prefill under `memory`; fewer than all, since its end must be run.

    `model_rope` stands for a `memory` that names no rotary embedding of its own. `windows` are the rings of the
    model's sliding-window layers, which must still hold the window before the first token that is run.
    """
    length = len(prompt)
    held_shape = attention_shape(stored.memory, layout, stored.prompt_tokens, model_rope)
    if held_shape != attention_shape(memory, layout, length, model_rope):
        return 0
    alike = min(_computed_alike(stored, memory, layout, length, model_rope), length - 1)
    if memory.selection.topk and _needs_last_queries(memory, layout):
        alike = min(alike, max(0, length - memory.selection.importance_queries))
    shared = stored.token_ids.shared(prompt, alike)
    kept = _aligned(shared, stored, memory, layout, length)
    if layout.is_packed:  # An idle session has packed blocks alone.
        step = memory.selection.execution_block if memory.selection.in_prefill(length) else 1
        whole = math.lcm(step, layout.block_size)
        kept = kept // whole * whole
    return kept if windows is None or windows.continues_at(kept, stored.first_held) else 0


def attention_shape(
    memory: MemorySpec, layout: KvLayout, num_tokens: int, model_rope: RopeSpec | None = None
) -> Shape:
    """What shapes the KV of a prompt of `num_tokens` where every key is attended, and anchors made of attention."""
    rope = memory.positions.rope or model_rope or RopeSpec()
    window, sinks = memory.retention.window, sink_blocks(memory, layout.block_size)
    geometry: Shape = ()
    if memory.selection.topk == 0 or memory.positions.scheme is Positions.ROLLING:
        geometry = (window, sinks)
    elif memory.positions.scheme is Positions.CLAMPED:
        geometry = (window,)
    if memory.positions.scheme is Positions.DCA:
        geometry += (memory.positions.pretraining_length, memory.positions.dca_chunk)
    counted = window if layout.anchor_type is AnchorType.REPR_TOPK else None
    view = (rope, rope.length_class(num_tokens), memory.positions.attention_growth(num_tokens))
    return (memory.positions.scheme, memory.selection.topk == 0, geometry, view, counted)


def selection_shape(memory: MemorySpec, layout: KvLayout) -> Shape:
    """What beside `attention_shape` shapes the KV of tokens whose execution block selected what it attends."""
    return (
        memory.selection.topk_of_prefill,
        memory.selection.execution_block,
        sink_blocks(memory, layout.block_size),
        memory.retention.window,
        memory.selection.head_select_mode,
        memory.selection.head_pool,
        memory.selection.anchor_pool,
    )


def _needs_last_queries(memory: MemorySpec, layout: KvLayout) -> bool:
    """Whether the prompt's last queries decide which blocks generated tokens attend."""
    return layout.anchor_type is AnchorType.DYNAMIC or memory.selection.preselect is Preselect.PROMPT


def _computed_alike(
    stored: StoredKv, memory: MemorySpec, layout: KvLayout, length: int, model_rope: RopeSpec | None
) -> int:
    """Tokens that both requests compute alike if they share them, given that their attention shapes are equal."""
    old, held = stored.memory, len(stored.token_ids)
    until = min(_exact_prompt(old, layout, stored.prompt_tokens), held)
    if until == stored.prompt_tokens:
        until = _exact_generated(stored, layout, model_rope)
    exact = min(until, _exact_prompt(memory, layout, length))
    both_select = old.selection.in_prefill(stored.prompt_tokens) and memory.selection.in_prefill(length)
    if both_select and selection_shape(old, layout) == selection_shape(memory, layout):
        until = min(old.selection.resume_point(stored.prompt_tokens), held)
        return max(exact, min(until, memory.selection.first_alone(length)))
    return exact


def _exact_prompt(memory: MemorySpec, layout: KvLayout, num_tokens: int) -> int:
    """First tokens of a prompt of `num_tokens` that attend every key."""
    if not memory.selection.in_prefill(num_tokens):
        return num_tokens
    size, alone = memory.selection.execution_block, memory.selection.first_alone(num_tokens)
    first = _first_selection(memory, layout, memory.selection.topk_of_prefill * layout.block_size)
    exact = min(-(-first // size) * size, num_tokens)
    if exact <= alone:
        return exact
    if memory.selection.topk_keys:
        first = _first_selection(memory, layout, memory.selection.topk_keys)
    return min(exact, max(first, alone))


def _exact_generated(stored: StoredKv, layout: KvLayout, model_rope: RopeSpec | None) -> int:
    """End of the stored tokens whose decode steps attended every key as prefill would have."""
    memory, prompt = stored.memory, stored.prompt_tokens
    end = len(stored.token_ids)
    selects = memory.selection.selects and not memory.verify
    if selects and memory.selection.dense_layers < layout.num_layers:
        selected = memory.selection.selected_tokens(layout.block_size) or 0
        first = _first_selection(memory, layout, selected)
        end = min(end, max(first, memory.selection.dense_until, prompt))
    shape = attention_shape(memory, layout, prompt, model_rope)
    changed = (
        place
        for place in range(prompt, end)
        if attention_shape(memory, layout, place + 1, model_rope) != shape
    )
    return next(changed, end)


def _first_selection(memory: MemorySpec, layout: KvLayout, selected: int) -> int:
    """First position whose query has more candidate tokens than the `selected` that it may attend."""
    blocks = sink_blocks(memory, layout.block_size) + selected // layout.block_size + 1
    return blocks * layout.block_size + memory.retention.window - 1


def _aligned(shared: int, stored: StoredKv, memory: MemorySpec, layout: KvLayout, length: int) -> int:
    """The last point at or before `shared` at which prefill goes on as a fresh one would."""
    step = memory.selection.execution_block if memory.selection.in_prefill(length) else 1
    if layout.anchor_type is not AnchorType.REPR_TOPK:
        return shared // step * step
    # A block's anchors count all queries that had it in their window. The worker stores the counts of one point; from
    # any other point the whole window runs again.
    size = layout.block_size
    rerun = near_block(shared, memory, size) * size // math.lcm(step, size) * math.lcm(step, size)
    stored_point = stored.memory.selection.resume_point(stored.prompt_tokens)
    return stored_point if rerun < stored_point <= shared and stored_point % step == 0 else rerun
