"""``recplug features``: exchange with other tools, extraction, inspection. Called by ``cli.main`` alone."""
