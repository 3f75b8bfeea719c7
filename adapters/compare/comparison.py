"""A comparison to take away: its numbers as tables, texts and files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from recplug.adapters.compare.numbers import Numbers
from recplug.adapters.compare.tables.formats import latex, markdown
from recplug.adapters.compare.tables.html_page import page
from recplug.adapters.compare.tables.results import results
from recplug.adapters.files import replacing
from recplug.adapters.ownership import check_owned


class Comparison(Numbers):
    """A grid's results, and every form in which they leave the folder."""

    def table(self) -> pa.Table:
        """A row a cell: what it is, how it ended, what it cost, validation, and the test of what was chosen."""
        return results(self)

    def to_markdown(self) -> str:
        """Every table as Markdown."""
        return markdown(self)

    def to_latex(self) -> str:
        """Every table as LaTeX, for ``booktabs``."""
        return latex(self)

    def to_html(self) -> str:
        """One page that needs no network."""
        return page(self)

    def save(self) -> None:
        """``results.parquet``, ``table.md``, ``table.tex`` and ``index.html`` into the folder."""
        check_owned(self.output, "comparison")
        for name, text in (
            ("table.md", self.to_markdown()),
            ("table.tex", self.to_latex()),
            ("index.html", self.to_html()),
        ):
            with replacing(self.output / name) as partial:
                partial.write_text(text, encoding="utf-8")
        with replacing(self.output / "results.parquet") as partial:
            pq.write_table(self.table(), partial)
