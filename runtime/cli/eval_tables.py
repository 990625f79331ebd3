"""A run's rows as tables: for the terminal, as Markdown, and with tasks side by side where they share their rows."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from moorage.runtime.cli.output import print_table
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.runner import Row, Summary
from moorage.runtime.evals.tasks import Metric

_LEFT = ("task", "preset", "length", "depth")
_MOST_SIDE_BY_SIDE = 5
"""Tasks that are laid side by side; more are laid one below the other."""


def markdown(summary: Summary) -> str:
    """The table as Markdown, below a title and above the means."""
    columns, cells = table(summary)
    lines = [
        f"## {summary.suite.name}: {summary.model}, {', '.join(summary.labels)}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if column in _LEFT else "---:" for column in columns) + "|",
        *("| " + " | ".join(row) + " |" for row in cells),
        "",
        *(f"- {note}" for note in notes(summary)),
    ]
    return "\n".join(lines) + "\n"


def print_summary(summary: Summary) -> None:
    """The rows as a table, with what they share in its title."""
    columns, cells = table(summary)
    title = f"{summary.suite.name}: {summary.model}"
    if len(summary.labels) == 1:
        title += f", preset {summary.labels[0]}"
    right = [column for column in columns if column not in _LEFT]
    print_table(columns, cells, title=title, right=right, notes=notes(summary))


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the rows; columns that would say the same in every row are left out."""
    if _side_by_side(summary):
        return _pivot(summary)
    rows = summary.rows
    shown: list[tuple[str, Callable[[Row], str]]] = []
    if len(summary.suite.tasks) > 1:
        shown.append(("task", lambda row: row.task))
    if len(summary.labels) > 1:
        shown.append(("preset", lambda row: row.preset))
    shown.append(("length", lambda row: format_tokens(row.length)))
    if any(row.depth is not None for row in rows):
        shown.append(("depth", lambda row: "spread" if row.depth is None else f"{row.depth:g}"))
    for metric in dict.fromkeys(row.metric for row in rows):
        shown.append((metric.value, lambda row, metric=metric: _value(row, metric)))  # type: ignore[misc]
    if any(row.perplexity is not None for row in rows):
        shown.append(("perplexity", lambda row: "" if row.perplexity is None else f"{row.perplexity:.3f}"))
    shown.append(("samples", lambda row: str(row.samples)))
    if any(row.interval is not None for row in rows):
        shown.append(("95 % interval", _interval))
    shown.append(("seconds each", lambda row: f"{row.seconds:.2f}"))
    if any(row.metric is not Metric.LOSS for row in rows):
        shown.append(("budget tokens", _budget))
        shown.append(("recall", lambda row: "-" if row.recall is None else f"{row.recall:.3f}"))
    if any(row.cut_samples for row in rows):
        shown.append(("truncated", lambda row: str(row.cut_samples)))
    if any(row.cut_answers for row in rows):
        shown.append(("cut answers", lambda row: str(row.cut_answers)))
    return [name for name, _ in shown], [[cell(row) for _, cell in shown] for row in rows]


def notes(summary: Summary) -> list[str]:
    """Means, below the table, and what should be known beside the figures."""
    labels: tuple[str | None, ...] = summary.labels if len(summary.labels) > 1 else (None,)
    kinds = {row.metric for row in summary.rows}
    metric = next((kind for kind in (Metric.ACCURACY, Metric.SCORE) if kind in kinds), Metric.LOSS)
    form = "{:.4f} nats per token" if metric is Metric.LOSS else "{:.1%}"
    means = [
        f"mean {metric.value} {form.format(summary.mean(label))}" + (f" ({label})" if label else "")
        for label in labels
    ]
    cut, samples = (sum(getattr(row, name) for row in summary.rows) for name in ("cut_answers", "samples"))
    if cut:
        means.append(f"cut answers, not wholly right and ended by the limit of tokens: {cut} of {samples}")
    return [*means, *summary.remarks]


def _side_by_side(summary: Summary) -> bool:
    """Whether a few tasks were measured at the same lengths and not by depth."""
    places = {task.name: set[tuple[str, int]]() for task in summary.suite.tasks}
    for row in summary.rows:
        places[row.task].add((row.preset, row.length))
    same = all(own == places[summary.rows[0].task] for own in places.values())
    return (
        1 < len(places) <= _MOST_SIDE_BY_SIDE
        and same
        and not any(row.depth is not None for row in summary.rows)
    )


def _pivot(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """One row for each choice and length, with a column for each task; recall and budget are those of all."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in summary.rows:
        groups.setdefault((row.preset, row.length), []).append(row)
    several = len(summary.labels) > 1
    columns = [*(("preset",) if several else ()), "length", *(task.name for task in summary.suite.tasks)]
    cells = []
    for (preset, length), rows in groups.items():
        recalls = [row.recall for row in rows if row.recall is not None]
        answered = [row for row in rows if row.metric is not Metric.LOSS]
        widest = max(answered, key=lambda row: row.budget_tokens or length, default=None)
        cells.append(
            [
                *((preset,) if several else ()),
                format_tokens(length),
                *(_short(row) for row in rows),
                "-" if widest is None else _budget(widest),
                f"{fmean(recalls):.3f}" if recalls else "-",
                f"{fmean(row.seconds for row in rows):.2f}",
            ]
        )
    return [*columns, "budget tokens", "recall", "seconds each"], cells


def _short(row: Row) -> str:
    """The value, and of a loss its perplexity."""
    value = _value(row, row.metric)
    return value if row.perplexity is None else f"{value} (ppl {row.perplexity:.2f})"


def _value(row: Row, metric: Metric) -> str:
    if row.metric is not metric:
        return ""
    return f"{row.value:.4f}" if metric is Metric.LOSS else f"{row.value:.1%}"


def _interval(row: Row) -> str:
    if row.interval is None:
        return "-"
    form = "{:.4f}" if row.metric is Metric.LOSS else "{:.0%}"
    return " to ".join(form.format(end) for end in row.interval)


def _budget(row: Row) -> str:
    if row.metric is Metric.LOSS:
        return "-"
    if not 0 < row.budget_tokens < row.length:
        return "all"
    return f"{row.budget_tokens} ({row.budget_tokens / row.length:.1%})"
