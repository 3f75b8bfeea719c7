"""A finished run, loaded: recommendations, new users and items, evaluation on them, export.

In: a run directory. Out: a :class:`~recplug.adapters.recbole.finished.loaded_run.LoadedRun`. Called by users, commands.
"""
