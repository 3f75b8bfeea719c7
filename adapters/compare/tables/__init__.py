"""The numbers of a comparison as tables: Markdown, LaTeX, one HTML page, Parquet.

In: a :class:`~recplug.adapters.compare.comparison.Comparison`. Out: texts and files. Nothing here trains or tests.
"""
