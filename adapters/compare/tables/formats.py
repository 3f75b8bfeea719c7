"""The tables as Markdown and as LaTeX."""

from __future__ import annotations

from recplug.adapters.compare.numbers import Numbers
from recplug.adapters.compare.tables.content import Table, notes, tables

# In one pass, since what stands for one sign holds others.
LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
         "±": r"$\pm$", "…": r"\dots{}", "|": r"\textbar{}"}  # fmt: skip


def title(comparison: Numbers) -> str:
    """One heading for the whole."""
    return f"{', '.join(comparison.asked.models)} on {', '.join(comparison.asked.datasets)}"


def markdown(comparison: Numbers) -> str:
    """Every table, and how to read them."""
    parts = [f"# {title(comparison)}"]
    for table in tables(comparison):
        lines = [_line(table.columns), "|" + "---|" * len(table.columns)]
        lines += [_line([value.text for value in row]) for row in table.rows]
        parts += [f"## {table.title}", table.note, "\n".join(lines)]
    return "\n\n".join([*parts, "## How to read this", *(f"* {note}" for note in notes(comparison))]) + "\n"


def _line(words: object) -> str:
    return "| " + " | ".join(str(word).replace("|", "\\|") for word in words) + " |"  # type: ignore[attr-defined]


def latex(comparison: Numbers) -> str:
    """Every table as ``tabular`` in ``table``; the preamble needs ``booktabs`` and ``graphicx``."""
    head = r"% \usepackage{booktabs,graphicx}"
    return "\n\n".join([head, *(_tabular(table) for table in tables(comparison))]) + "\n"


def _tabular(table: Table) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.title.rstrip('?.'))}. {escaped(table.note)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join('r' if each else 'l' for each in table.numeric)}}}",
        r"\toprule",
        " & ".join(map(escaped, table.columns)) + r" \\",
        r"\midrule",
    ]
    before: list[str] | None = None
    for row in table.rows:
        block = [value.text for value in row[: table.lead]]  # a rule between data sets and models
        lines += [r"\midrule"] if before not in (None, block) else []
        lines.append(" & ".join(escaped(value.text) for value in row) + r" \\")
        before = block
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"])


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(LATEX.get(character, character) for character in text)
