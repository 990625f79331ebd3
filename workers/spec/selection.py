"""Which keys a session attends: those that are always attended, and those that are selected."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.workers.spec.kinds import AnchorPool, HeadPool, HeadSelectMode, Preselect
from moorage.workers.spec.setting import Limits, setting


@dataclass(frozen=True, slots=True)
class RetentionSpec:
    """Tokens that are always attended."""

    sinks: int = setting(
        0,
        "Sink tokens at the start that are always attended, rounded up to whole blocks.",
        Limits(least=0, unit="tokens"),
    )
    window: int = setting(
        4096,
        "Last tokens, the query included, that are always attended; they stay on the device.",
        Limits(unit="tokens"),
    )


@dataclass(frozen=True, slots=True)
class SelectionSpec:
    """Which blocks, or which single keys, between the sinks and the local window are attended."""

    topk: int | None = setting(
        None,
        "Blocks selected per layer and step, in place of single keys; 0 attends sinks and window alone.",
        Limits(least=0),
        none="all",
    )
    """None attends all blocks, or selects single keys."""
    topk_keys: int = setting(
        0,
        "Single keys selected per layer, KV head and step, in place of blocks, by the one-bit codes of anchor_type "
        "KEY_CODES; 0 selects blocks.",
        Limits(least=0),
    )
    completion: bool = setting(
        True,
        "Whether the means of blocks stand for the keys that are not selected, where single keys are selected; off "
        "attends the selected keys alone.",
    )
    prefill_blocks: int = setting(
        0,
        "Blocks that each execution block of a prompt selects where generated tokens select single keys; 0 prefills "
        "exactly there.",
        Limits(least=0),
    )
    execution_block: int = setting(
        0,
        "Prompt tokens that share one selection of blocks; 0 prefills exactly, over all keys.",
        Limits(least=0, unit="tokens"),
    )
    last_tokens_alone: int = setting(
        0,
        "Last tokens of a prompt that each select for themselves, as generated tokens do, and not with their "
        "execution block.",
        Limits(least=0, unit="tokens"),
    )
    dense_layers: int = setting(0, "First layers that attend every key in decode.", Limits(least=0))
    preselect: Preselect = setting(
        Preselect.OFF,
        "A preselection before the selection of each step: off, or prompt (or true: once, from the attention of the "
        "prompt's last queries).",
    )
    head_select_mode: HeadSelectMode = setting(
        HeadSelectMode.SHARED,
        "One selection for all heads (SHARED), for each KV head (SEPARATE), or for each query head (PERHEAD, for "
        "research).",
    )
    preselect_blocks: int = setting(96, "Blocks that the preselection selects in each layer.")
    layer_step: int = setting(1, "Consecutive layers that share one selection in decode.")
    token_step: int = setting(1, "Decode steps that share one selection.")
    dense_until: int = setting(
        8192,
        "Contexts of at most this many tokens attend every key; default is 8192, or the trained length where that "
        "is shorter.",
        Limits(least=0, unit="tokens"),
    )
    head_pool: HeadPool = setting(
        HeadPool.SUM,
        "How the scores of heads that share a selection are joined: sum, softmax or max.",
        research=True,
    )
    anchor_pool: AnchorPool = setting(
        AnchorPool.MAX, "How the scores of a block's anchors are joined: max or sum.", research=True
    )
    importance_queries: int = setting(
        128,
        "Last prompt tokens whose attention decides DYNAMIC anchors and preselection.",
        research=True,
    )

    @property
    def selects(self) -> bool:
        """Whether generated tokens select what they attend between the sinks and the local window."""
        return bool(self.topk or self.topk_keys)

    @property
    def topk_of_prefill(self) -> int:
        """Blocks that an execution block of a prompt selects; 0 attends all, or those that `topk` 0 leaves."""
        return self.prefill_blocks if self.topk_keys else self.topk or 0

    def selected_tokens(self, block_size: int) -> int | None:
        """Tokens that are selected per layer, head and step; None where all are attended."""
        if self.topk_keys:
            return self.topk_keys
        return None if self.topk is None else self.topk * block_size

    def in_prefill(self, prompt_tokens: int) -> bool:
        """Whether execution blocks of a prompt of so many tokens select what they attend."""
        return bool(self.topk_of_prefill) and self.execution_block > 0 and prompt_tokens > self.dense_until

    def resume_point(self, prompt_tokens: int) -> int:
        """Where a prompt that goes on from one of `prompt_tokens` finds what it would have made itself."""
        if not self.in_prefill(prompt_tokens):
            return prompt_tokens
        return self.first_alone(prompt_tokens) // self.execution_block * self.execution_block

    def first_alone(self, prompt_tokens: int) -> int:
        """The first token of a prompt with a selection of its own, where execution blocks select."""
        return max(0, prompt_tokens - self.last_tokens_alone)

    def first_as_generated(self, prompt_tokens: int) -> int:
        """The first token of a prompt that selects single keys, as generated tokens do; its end where none does."""
        selects = self.topk_keys > 0 and self.in_prefill(prompt_tokens)
        return self.first_alone(prompt_tokens) if selects else prompt_tokens
