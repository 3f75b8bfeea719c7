"""``recplug doctor``."""

from __future__ import annotations

import typer

from recplug.adapters.console import say

MARKS = {"ok": "ok  ", "note": "note", "problem": "BAD "}


def doctor() -> None:
    """Look at the installation; exit code 1 if something has to be mended."""
    from recplug.adapters.doctor import report

    findings = report()
    for finding in findings:
        say(f"{MARKS[finding.status]}  {finding.name}: {finding.found}")
        if finding.advice:
            say(f"      -> {finding.advice}")
    problems = sum(finding.status == "problem" for finding in findings)
    say(f"{problems} to mend" if problems else "nothing to mend")
    if problems:
        raise typer.Exit(1)
