"""Numbers as people read them, and grids of text as Markdown and LaTeX. No pandas here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "n/a"
DASH = "–"


def points(value: float | None, digits: int = 1) -> str:
    """``"57.8"``; ``"–"`` where the number does not apply."""
    if value is None or math.isnan(value):
        return DASH
    return (
        f"{value:.{digits}f}".replace("-", "−")
        if abs(value) >= 10**-digits / 2
        else f"{0:.{digits}f}"
    )


def signed(value: float | None, digits: int = 1) -> str:
    """``"+1.2"``, ``"−0.4"``."""
    text = points(value, digits)
    return (
        f"+{text}"
        if value is not None and value > 0 and text not in (DASH, points(0.0, digits))
        else text
    )


def with_interval(mean: float, low: float, high: float, kind: str, digits: int = 1) -> str:
    """``"94.9 ± 0.4"`` over seeds; ``"94.9 [93.0, 96.2]"`` over images, where it is lopsided."""
    if kind == "none" or math.isnan(low):
        return points(mean, digits)
    if kind == "seeds":
        return f"{points(mean, digits)} ± {points((high - low) / 2, digits)}"
    return f"{points(mean, digits)} [{points(low, digits)}, {points(high, digits)}]"


def p_value(p: float | None) -> str:
    """``"0.034"``, ``"<0.001"``, ``"–"``."""
    if p is None or math.isnan(p):
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(value: float, digits: int = 1) -> str:
    """A fraction as percent."""
    return points(100 * value, digits)


def duration(seconds: float) -> str:
    """``"42 s"``, ``"3.5 min"``, ``"2.1 h"``."""
    if math.isnan(seconds):
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(value: float) -> str:
    """``"181,504"``."""
    return DASH if math.isnan(value) else f"{value:,.0f}"


@dataclass(frozen=True)
class Text:
    """One cell of a grid.

    Attributes:
        value: What it says.
        bold: The best of its column.
        note: A second, quieter line: the published figure.
        quiet: Greyed out: not ours, or does not apply.
    """

    value: str
    bold: bool = False
    note: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Column:
    """A column's heading: ``group`` spans the neighbours that share it, and their ``cell``."""

    title: str
    group: str = ""
    left: bool = False
    cell: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table for people.

    Attributes:
        columns: Headings.
        rows: Cells, a list a row.
        caption: What it shows, in a sentence or two.
        rules: Row numbers before which a line is drawn.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    caption: str = ""
    rules: tuple[int, ...] = ()


def to_markdown(grid: Grid) -> str:
    """A GitHub-flavoured table; a cell's note follows it in brackets."""
    heads = [f"{c.group}: {c.title}" if c.group else c.title for c in grid.columns]
    lines = [_markdown_row(heads)]
    lines.append(_markdown_row([":--" if c.left else "--:" for c in grid.columns]))
    for row in grid.rows:
        cells = []
        for cell in row:
            value = f"**{cell.value}**" if cell.bold else cell.value
            cells.append(f"{value} ({cell.note})" if cell.note else value)
        lines.append(_markdown_row(cells))
    return "\n".join(([grid.caption, ""] if grid.caption else []) + lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "λ": r"$\lambda$",
    "°": r"$^\circ$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "·": r"$\cdot$",
}


def latex_escape(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(grid: Grid, label: str) -> str:
    """A ``table`` with booktabs rules; a row with notes is followed by a quiet row of them.

    The document needs ``booktabs`` and ``graphicx``; wide tables shrink to the text width.
    """
    spec = "".join("l" if column.left else "r" for column in grid.columns)
    lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{latex_escape(grid.caption)}}}"]
    lines += [
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
    ]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *_latex_head(grid), r"\midrule"]
    for number, row in enumerate(grid.rows):
        if number in grid.rules and number:
            lines.append(r"\midrule")
        lines.append(" & ".join(_latex_cell(cell) for cell in row) + r" \\")
        if any(cell.note for cell in row):
            notes = (rf"{{\footnotesize {latex_escape(c.note)}}}" if c.note else "" for c in row)
            lines.append(" & ".join(notes) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_head(grid: Grid) -> list[str]:
    titles = " & ".join(latex_escape(column.title) for column in grid.columns) + r" \\"
    if not any(column.group for column in grid.columns):
        return [titles]
    spans, rules, start = [], [], 1
    for group, width in column_groups(grid.columns):
        spans.append(
            rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(group)}}}"
            if group
            else " & " * (width - 1)
        )
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return [" & ".join(spans) + r" \\", " ".join(rules), titles]


def column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Runs of neighbouring columns of the same group and cell: its name, the number of columns."""
    runs: list[tuple[str, int]] = []
    last: tuple[Any, ...] = ()
    for column in columns:
        own = (column.group, column.cell)
        if column.group and own == last:
            runs[-1] = (column.group, runs[-1][1] + 1)
        else:
            runs.append((column.group, 1))
        last = own
    return runs


def _latex_cell(cell: Text) -> str:
    value = latex_escape(cell.value)
    return rf"\textbf{{{value}}}" if cell.bold else value
