"""Normal latents whose precision P is a narrow band: log det P and the posterior mean by LAPACK, where no more is asked for.

Numbers of z that meet in a factor are at most `width` apart in a good order, which is the program's own or that of Cuthill and
McKee (1969). T steps of L numbers have 2L − 1 at most; LAPACK's `pbtrf` takes O(T L³) and no call for each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

COLUMN_SECONDS, PRODUCT_SECONDS = 3e-8, 6e-10  # a guess at what a column of the band takes, and each of its products
Factor = tuple[Tensor, Tensor]  # J [S, A, R, E, c] and r [S, A, R, E, M]: minus its log-density is ‖r − J z‖² / 2


@dataclass(frozen=True)
class Band:
    """Where the entries of each factor's JᵀJ stand in P's lower band, as LAPACK keeps it: column by column."""

    place: Tensor  # [L] where each number of z stands in the order
    width: int  # of the band, besides the diagonal
    columns: tuple[Tensor, ...]  # [S · c] of each group: the places of its factors' numbers
    entries: tuple[Tensor, ...]  # [S · c · c]; those above the diagonal go to one more entry behind all

    def seconds(self, rows: int, matrices: int) -> float:
        """A guess at how long so many rows take, that have so many precisions."""
        products = (matrices * self.width + rows) * (self.width + 1)
        return len(self.place) * (matrices * COLUMN_SECONDS + products * PRODUCT_SECONDS)

    def solve(self, factors: Sequence[Factor]) -> tuple[Tensor, Tensor, float]:
        """The mean [L, A, R, M], ½ log det P [A, R], and the most by which elimination makes a diagonal entry of P smaller.

        Raises `LinAlgError` where P is not positive definite.
        """
        P, h = (value.numpy() for value in self._joined(factors))
        factor, solution = get_lapack_funcs(("pbtrf", "pbtrs"), (P,))
        pivots, whole = np.empty(P.shape[:2], P.dtype), P[..., 0].copy()
        for a in range(len(P)):
            root, info = factor(P[a].T, lower=1, overwrite_ab=1)
            if info:
                raise torch.linalg.LinAlgError(f"the precision has a leading minor that is not positive: {info}")
            h[a], _ = solution(root, h[a], lower=1)
            pivots[a] = root[0]
        _, A, R, *_ = factors[0][0].shape
        mean = torch.from_numpy(h).reshape(A, R, *h.shape[1:])[:, :, self.place].movedim(2, 0)
        log_det = torch.from_numpy(np.log(pivots).sum(1)).reshape(A, R)
        return mean, log_det, float((whole / pivots**2).max())

    def _joined(self, factors: Sequence[Factor]) -> tuple[Tensor, Tensor]:
        """P as a band [A · R, L, width + 1], and Σ Jᵀr [A · R, L, M]."""
        J, r = factors[0]
        L, AR, M = len(self.place), J.shape[1] * J.shape[2], r.shape[-1]
        P, h = J.new_zeros(AR, L * (self.width + 1) + 1), J.new_zeros(AR, L, M)
        for columns, entries, (J, r) in zip(self.columns, self.entries, factors, strict=True):
            left = J.mT.numpy()  # whose products of many small matrices take a tenth of the time of torch's
            squares, right = (torch.from_numpy(left @ v.numpy()).flatten(1, 2) for v in (J, r))  # [S, AR, c, …]
            P.index_add_(1, entries, squares.movedim(0, 1).reshape(AR, -1))
            h.index_add_(1, columns, right.movedim(0, 1).reshape(AR, -1, M))
        return P[:, :-1].unflatten(1, (L, self.width + 1)), h


def band(columns: Sequence[Tensor], L: int) -> Band:
    """The band of L numbers, of which each factor's are given: [S, c] of each group."""
    pairs = [(c.unsqueeze(2).expand(-1, -1, c.shape[1]), c.unsqueeze(1).expand(-1, c.shape[1], -1)) for c in columns]
    one, other = (torch.cat([p[k].reshape(-1) for p in pairs]).numpy() for k in (0, 1))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), (L, L)).tocsr()
    own, order = np.arange(L), reverse_cuthill_mckee(graph, symmetric_mode=True)
    near = np.empty(L, np.int64)
    near[order] = own
    width, place = min(
        ((int(abs(p[one] - p[other]).max(initial=0)), p) for p in (own, near)), key=lambda found: found[0]
    )
    at = torch.from_numpy(place)
    entries = [
        torch.where(at[i] >= at[j], at[j] * (width + 1) + at[i] - at[j], L * (width + 1)).reshape(-1) for i, j in pairs
    ]
    return Band(at, width, tuple(at[c].reshape(-1) for c in columns), tuple(entries))
