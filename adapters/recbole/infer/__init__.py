"""What a trained model says: scores in blocks, top-K, vectors, histories, new users and items.

In: a trained model and its data. Out: scores, recommendations, vectors. Called by ``export`` and ``finished``.
"""
