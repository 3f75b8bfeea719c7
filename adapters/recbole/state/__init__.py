"""What a run is and where it stands: its specification, its directory, its state after every epoch, its adapter file.

In: what was asked, models, trainers. Out: files that a later process reads back. Called by ``train`` and ``finished``.
"""
