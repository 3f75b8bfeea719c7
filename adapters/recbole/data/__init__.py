"""From a configuration to RecBole's loaders, what they draw, and the fingerprint of their data.

In: a ``Config``. Out: loaders, interactions, digests. Called by ``graft``, ``domains`` and ``train``.
"""
