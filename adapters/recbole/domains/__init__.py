"""A second domain beside the target: its configuration, data, model, linked users and random streams.

In: an augmented target and a plugin's settings. Out: a :class:`recplug.plugins.contract.Source`. Called by ``augment``.
"""
