"""Clusters against known classes, whatever the clusters are called: adjusted Rand index and the confusion table."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST = 60  # rows and columns of a table that is written down


def compared(labels: np.ndarray, states: np.ndarray) -> dict[str, Any]:
    """`labels` [n] of the data and the most probable state [n] of each row; rows without a label are left out.

    >>> compared(np.array(["a", "a", "b", "b"]), np.array([1, 1, 0, 0]))["adjusted_rand"]
    1.0
    """
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    known = ~pd.isna(pd.Series(labels)).to_numpy()
    labels, states = labels[known], states[known]
    table = pd.crosstab(pd.Series(labels, name="label"), pd.Series(states, name="state"))
    out: dict[str, Any] = {"adjusted_rand": float(adjusted_rand_score(labels, states)), "rows": int(known.sum())}
    if max(table.shape) <= MOST:
        out["confusion"] = {
            "labels": [str(v) for v in table.index],
            "states": [int(v) for v in table.columns],
            "counts": table.to_numpy().tolist(),
        }
    return out
