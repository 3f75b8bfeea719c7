"""Vectors from and to other tools' files: npy, npz, Parquet, MMRec, Ducho, Cornac, RecBole.

In: a file of another tool and item tokens. Out: a :class:`~recplug.adapters.features.FeatureTable`, and back.
"""
