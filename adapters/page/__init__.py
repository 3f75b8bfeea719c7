"""The frame and the templates of every HTML page that recplug writes (``report``, ``compare``, ``tune``).

In: values for a template. Out: one HTML text that needs no network. Knows neither runs nor comparisons.
"""
