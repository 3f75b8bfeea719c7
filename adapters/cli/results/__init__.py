"""Commands about finished runs: recommend, evaluate, export, report. Called by ``cli.main`` alone."""
