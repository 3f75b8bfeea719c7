"""Seams on RecBole's models: which hosts offer which, and the mixins that open them; the host's own work, faster.

In: a model class, plugins, a configuration. Out: mixins for :func:`recplug.adapters.recbole.augment`, the only caller.
"""
