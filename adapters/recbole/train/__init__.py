"""One training in RecBole's own trainer, from what was asked to a finished run directory; resumed and in parallel too.

In: a :class:`~recplug.adapters.recbole.state.spec.Asked`. Out: a run directory. Called by ``run()`` and the commands.
"""
