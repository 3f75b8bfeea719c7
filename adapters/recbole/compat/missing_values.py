"""Missing values in RecBole's atomic files: the results of pandas 2 under any pandas, and never an invalid id.

Part of ``compat``, which decides when these remedies are entered. No upstream thread is known for any of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from recplug.adapters.recbole.compat.patching import replaced


class _AtomicFilePandas(ModuleType):
    """pandas as RecBole's dataset module sees it: ``read_csv`` gives the frames that pandas 2 gave."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        """Strings are plain objects, and a gap in a sequence column (``field:type_seq``) is an empty string."""
        frame = pd.read_csv(*args, **kwargs)
        for column in frame.columns:
            if isinstance(frame[column].dtype, pd.StringDtype):
                frame[column] = frame[column].astype(object)
            if column.endswith("_seq"):
                frame[column] = frame[column].fillna("")
        return frame


def _fill_nan(dataset: Any) -> None:
    """RecBole's imputation by assignment: [PAD] for a token, the mean for a float, an empty array for a sequence."""
    from recbole.utils import FeatureType

    for name in dataset.feat_name_list:
        feat = getattr(dataset, name)
        for field in feat:
            kind = dataset.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]


@contextmanager
def filled_gaps() -> Iterator[None]:
    """RecBole's chained in-place ``fillna`` writes into a copy under pandas 3: fill the gaps by assignment."""
    import recbole.data.dataset.dataset as host

    with (
        warnings.catch_warnings(),
        replaced(host, pd=_AtomicFilePandas("pandas")),
        replaced(host.Dataset, _fill_nan=_fill_nan),
    ):
        # read_csv has filled the sequence columns, so that RecBole's own chained fillna has nothing left to do; and
        # nothing writes into the tensors that are made from copy-on-write's locked arrays.
        for message in (r"A value is being set on a copy", r"The given NumPy array is not writable"):
            warnings.filterwarnings("ignore", message, module=r"recbole\.data\.dataset\.dataset")
        yield


def needs_filling() -> bool:
    """Whether a chained in-place ``fillna`` is lost here (copy-on-write, the rule from pandas 3 on)."""
    frame = pd.DataFrame({"value": [np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame["value"].fillna(0.0, inplace=True)
    return bool(frame["value"].isna().any())


@contextmanager
def elementwise_len() -> Iterator[None]:
    """``series.agg(len)`` is one length per element, as before pandas 3: RecBole cuts its sequence columns by it."""
    agg: Callable[..., Any] = pd.Series.agg

    def agg_by_element(series: pd.Series, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        return series.map(len) if func is len else agg(series, func, *args, **kwargs)

    with replaced(pd.Series, agg=agg_by_element):
        yield


def needs_elementwise_len() -> bool:
    """Whether ``series.agg(len)`` is the length of the series here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return not isinstance(pd.Series([[1], [2, 3]]).agg(len), pd.Series)


def _filter_nan_user_or_item(dataset: Any) -> None:
    for field, side in ((dataset.uid_field, "user"), (dataset.iid_field, "item")):
        for name in (f"{side}_feat", "inter_feat"):
            feat = getattr(dataset, name)
            if field is None or feat is None:
                continue
            rows = feat.index[feat[field].isna()]
            if len(rows):
                lines = list(rows + 2)
                dataset.logger.warning(f"In {name}, line {lines}, {field} do not exist, so they will be removed.")
                feat.drop(rows, inplace=True)


@contextmanager
def dropped_rows() -> Iterator[None]:
    """Rows without a user or item id are dropped by label.

    RecBole takes the labels for positions. After an earlier drop they differ: a row with a good id goes, and the one
    without stays with the id of [PAD].
    """
    import recbole.data.dataset.dataset as host

    with replaced(host.Dataset, _filter_nan_user_or_item=_filter_nan_user_or_item):
        yield
