"""Factors by a language model: ``induce`` makes a schema, ``assign`` labels items under it; ``caption`` reads
pictures.

In come an item's allowed texts and picture (``content``), out go a schema or a table. ``prompts`` and ``answers``
are both sides of a question, ``client`` asks a server within ``limits``, ``log`` keeps every answer. Called by the
commands.
"""
