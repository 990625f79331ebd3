"""RULER (Hsieh et al., 2024): its tasks by name, with texts made here and no download.

Needles, chains and lists are built as NVIDIA/RULER builds them, with its numbers of keys, values, hops and repeats,
its wording and its metrics. Different are the text to hide things in (any, not Paul Graham's essays, and from another
place on in each sample), and the words of keys and lists, which come from that text.
"""

from moorage.runtime.evals.ruler.task import FREE_TASKS, QA_TASKS, RulerTask, ruler_tasks

__all__ = ["FREE_TASKS", "QA_TASKS", "RulerTask", "ruler_tasks"]
