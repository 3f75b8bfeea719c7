"""Files to take away from a finished run: vectors, a faiss index, the user encoder, a plain RecBole checkpoint.

In: a loaded run. Out: files. Called by ``finished.loaded_run``.
"""
