"""RecBole 1.2.1 on today's stack: remedies, scoped and detected by feature. The lowest room: it imports none of ours.

In: nothing. Out: context managers within which RecBole works. Called by whatever starts RecBole.
"""

from recplug.adapters.recbole.compat.remedies import recbole_compat

__all__ = ["recbole_compat"]
