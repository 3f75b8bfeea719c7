"""``recplug factors``: files, sources without a model, labelling by a language model. Called by ``cli.main`` alone."""
