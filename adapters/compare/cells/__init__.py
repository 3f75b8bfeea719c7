"""The cells of a comparison, each one training in a process of its own.

In: a :class:`~recplug.adapters.compare.spec.Asked`. Out: run directories and what has become of them. Called by
``compare.experiment`` and ``compare.comparison``; knows no table.
"""
