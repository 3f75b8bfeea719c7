"""One HTML page about finished runs, or about those that ended early: see :func:`write_report`."""

from recplug.adapters.report.write import write_report

__all__ = ["write_report"]
