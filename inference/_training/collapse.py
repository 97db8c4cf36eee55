"""Posterior collapse: latents that a guide leaves at their prior, whatever the row (Bowman et al. 2016).

KL(q(z_d | x) ‖ p(z_d)) of each number z_d of the latents, in the mean over rows, bounds from above what z_d tells of the row
under q. A unit is active where the mean of q varies over the rows (Burda, Grosse & Salakhutdinov 2016). The mutual information
of the row and all of z under q is that of Hoffman & Johnson 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from guides import at
from inference._method.task import Task
from inference._numerics.weighted import weighed
from inference._sampling import weights
from zoo._program.structure import Site
from zoo._program.trace import is_plain, node_of

NOTHING = 0.01  # nats a row, below which a number of the latents carries no information
ACTIVE = 0.01  # of the prior's variance, above which the variance of q's mean over the rows makes a unit active
MOST_ROWS, PAIRED_ROWS = 10_000, 1000
MOST_NUMBERS = 1000  # of latents in a row, that are noted one by one
MOST_NAMED = 10
NORMAL = (torch.distributions.Normal, torch.distributions.MultivariateNormal)


@dataclass
class _Normals:
    """q and p of one site in some rows: means and standard deviations of each number, and a draw of q, all [n, d].

    `apart`: whether the numbers are independent given the row under q. `shares` [n]: what each row counts, 1 in all.
    """

    mean: Tensor
    scale: Tensor
    prior_mean: Tensor
    prior_scale: Tensor
    drawn: Tensor
    apart: bool
    shares: Tensor

    def kl(self) -> Tensor:
        """KL(q ‖ p) of each number by itself [n, d], nats."""
        ratio = self.scale / self.prior_scale
        away = (self.mean - self.prior_mean) / self.prior_scale
        return 0.5 * (ratio.square() + away.square() - 1) - ratio.log()


@torch.no_grad()
def collapse(task: Task, guide: torch.nn.Module) -> tuple[list[str], dict[str, object]]:
    """A warning where latents carry no information, and notes: KL by number, active units, mutual information.

    Of continuous latents whose prior and q are normal, in programs without global latents; nothing is said of others, nor of
    missing entries. Numbers that are tied under q may tell together what none of them tells: those are not warned of.
    """
    structure = task.structure
    rows = torch.linspace(0, len(task.x) - 1, min(len(task.x), MOST_ROWS)).long()
    latents = [s for s in structure.continuous_locals if not s.completes]
    sites = [s for s in latents if s.inner * math.prod(s.event_shape) <= MOST_NUMBERS]
    if structure.global_latents or not sites:
        return [], {}
    found = {s.name: n for s in sites if (n := _normals(task, guide, rows, s)) is not None}
    if not found:
        return [], {}
    kl = {name: n.shares @ n.kl() for name, n in found.items()}
    notes: dict[str, object] = {"kl_by_dimension": {name: v.tolist() for name, v in kl.items()}}
    notes["active_units"] = {name: int(_active(n).sum()) for name, n in found.items()}
    first = next(iter(found.values()))
    if len(structure.local_latents) == 1 and len(rows) > 1 and first.apart:
        notes["mutual_information"] = _mutual(first)
    return _warnings({name: v for name, v in kl.items() if found[name].apart}), notes


def _warnings(kl: dict[str, Tensor]) -> list[str]:
    lost = [f"{n}[{k}]" if len(v) > 1 else n for n, v in kl.items() for k in (v < NOTHING).nonzero()[:, 0].tolist()]
    if not lost:
        return []
    named = ", ".join(lost[:MOST_NAMED]) + (", …" if len(lost) > MOST_NAMED else "")
    carry = "carries" if len(lost) == 1 else "carry"
    return [
        f"{len(lost)} of {sum(map(len, kl.values()))} latents {carry} no information: in {named} q(z | x) is the prior for all "
        f"rows, to {NOTHING:g} nats a row (posterior collapse)."
    ]


def _normals(task: Task, guide: torch.nn.Module, rows: Tensor, site: Site) -> _Normals | None:
    parts, apart = [], True
    for some in weights.chunks(task.x[rows], 1):
        x = task.x[rows[some]]
        with task.program.settings():
            q = pyro.poutine.trace(at(guide, rows[some])).get_trace(x)
        latents = {s.name: node_of(q, s.name)["value"] for s in task.structure.local_latents}
        mine, prior = node_of(q, site.name), node_of(task.program.joint_trace(x, latents=latents), site.name)
        if not all(is_plain(n) and isinstance(_base(n["fn"]), NORMAL) for n in (mine, prior)):
            return None
        of_q, of_p = _base(mine["fn"]), _base(prior["fn"])
        apart = apart and isinstance(of_q, torch.distributions.Normal)
        values = of_q.mean, of_q.stddev, of_p.mean, of_p.stddev, mine["value"]
        parts.append([_flat(task, site, v, len(x)) for v in values])
    weight = weighed(torch.ones(len(rows)).to(task.x), task.weights, rows)
    mean, scale, prior_mean, prior_scale, drawn = (torch.cat(some) for some in zip(*parts, strict=True))
    return _Normals(mean, scale, prior_mean, prior_scale, drawn, apart, weight / weight.sum())


def _base(fn: torch.distributions.Distribution) -> torch.distributions.Distribution:
    """A distribution without what makes its numbers one event."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _flat(task: Task, site: Site, value: Tensor, n: int) -> Tensor:
    """[n, d]."""
    axes = task.structure.axes
    return axes.by_datum(axes.expand(value, site, n, 1), site)[0].reshape(n, -1)


def _active(of: _Normals) -> Tensor:
    """Which numbers' means under q vary with the row [d]."""
    variance = of.shares @ (of.mean - of.shares @ of.mean).square()
    return variance > ACTIVE * (of.shares @ of.prior_scale.square())


def _mutual(of: _Normals) -> dict[str, float | int]:
    """E log q(z | x_i) − log of its mean over the rows j of q(z | x_j), by one draw of z a row: nats, at most log n."""
    some = torch.linspace(0, len(of.mean) - 1, min(len(of.mean), PAIRED_ROWS)).long()
    n, mean, scale, share = len(some), of.mean[some], of.scale[some], of.shares[some] / of.shares[some].sum()
    each = [
        (-0.5 * ((z - mean) / scale).square() - scale.log()).sum(1)  # log q(z_i | x_j) + a constant [n]
        for z in of.drawn[some]
    ]
    log_q = torch.stack(each)
    values = log_q.diagonal() - (log_q + share.log()).logsumexp(1)
    nats = share @ values
    se = (n / (n - 1) * (share * (values - nats)).square().sum()).sqrt()
    return {"nats": float(nats), "se": float(se), "rows": n, "at_most": float(torch.special.entr(share).sum())}
