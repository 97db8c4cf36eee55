"""What is known of each row: log p(x_i), the posterior of its latents, k-hat; by the exact engine, by a guide, or of a fit.

A guide whose q(z_k | x, z_<k) depends on draws of the latents before is averaged over draws of those: its mean and variance are
then the average of the conditional ones, plus the variance of the conditional means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyro
import torch
from torch import Tensor

from guides import at
from inference._answers.table import Table
from inference._method.fit import Arrays, Fit, Kind
from inference._method.row_posteriors import RowPosteriors
from inference._method.summed import drawn_by, summed
from inference._method.task import Task
from zoo._program.structure import Site, Structure
from zoo._program.trace import Node, node_of

GUIDE_DRAWS = 100  # over which q is averaged, where it depends on draws
DRAWS = 200  # of what has several discrete values a row
MOST_STATES = 100  # of a discrete latent, for which each has a column
MOST_COLUMNS = 1000  # of one latent
NAMES: dict[Kind, str] = {
    "exact": "log_p",
    "lower bound": "log_p_lower_bound",
    "estimate": "log_p_estimate",
    "upper bound": "log_p_upper_bound",
}
EXACT = "the exact posterior"


@dataclass(frozen=True)
class Rows:
    """Some rows, with what is known of each."""

    log_p: np.ndarray | None = None  # [n] nats
    kind: Kind = "exact"
    se: np.ndarray | None = None  # [n] of log_p
    probabilities: Arrays = field(default_factory=dict)  # discrete local site → [n, …, K]
    means: Arrays = field(default_factory=dict)  # continuous local site → posterior mean [n, …]
    deviations: Arrays = field(default_factory=dict)  # the same, standard deviation
    khat: np.ndarray | None = None
    ess: np.ndarray | None = None
    source: str = EXACT  # where the posterior comes from, in words
    given: str = ""  # what log p(x_i) is conditional on besides θ

    def table(self, names: np.ndarray) -> Table:
        """All of it as a table; `names` [n] of the rows."""
        out: dict[str, np.ndarray] = {"row": names}
        if self.log_p is not None:
            out[NAMES[self.kind]] = self.log_p
            if self.se is not None and self.kind != "exact":
                out[f"{NAMES[self.kind]}_se"] = self.se
        for site, value in self.probabilities.items():
            out |= _of_states(site, value)
        for site, mean in self.means.items():
            for entry, one, sd in _entries(site, mean, self.deviations.get(site)):
                out[f"{entry}_mean"] = one
                if sd is not None:
                    out[f"{entry}_sd"] = sd
        out |= {} if self.khat is None else {"khat": np.asarray(self.khat)}
        return Table(out | ({} if self.ess is None else {"ess": np.asarray(self.ess)}))

    def features(self, names: np.ndarray) -> Table:
        """The posterior means of continuous latents and the probabilities of discrete ones, under the latents' names."""
        out: dict[str, np.ndarray] = {"row": names}
        for site, value in self.probabilities.items():
            out |= {k: v for k, v in _of_states(site, value).items() if k.startswith("P(")}
        for site, mean in self.means.items():
            out |= {entry: one for entry, one, _ in _entries(site, mean, None)}
        return Table(out)


def joined(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def under(of: Callable[[Rows], np.ndarray | None]) -> np.ndarray | None:
        found = [of(p) for p in parts]
        return None if found[0] is None else np.concatenate([f for f in found if f is not None])

    def each(of: Callable[[Rows], Arrays]) -> Arrays:
        return {k: np.concatenate([of(p)[k] for p in parts]) for k in of(first)}

    return replace(
        first,
        log_p=under(lambda r: r.log_p),
        se=under(lambda r: r.se),
        probabilities=each(lambda r: r.probabilities),
        means=each(lambda r: r.means),
        deviations=each(lambda r: r.deviations),
        khat=under(lambda r: r.khat),
        ess=under(lambda r: r.ess),
    )


def averaged(parts: list[Rows]) -> Rows:
    """The same rows at draws of the global latents: the posterior of their latents with those integrated out."""

    def each(of: Callable[[Rows], Arrays]) -> dict[str, np.ndarray]:
        return {k: np.stack([of(p)[k] for p in parts]) for k in of(parts[0])}

    means, deviations = each(lambda r: r.means), each(lambda r: r.deviations)
    return Rows(
        probabilities={k: v.mean(0) for k, v in each(lambda r: r.probabilities).items()},
        means={k: v.mean(0) for k, v in means.items()},
        deviations={k: np.sqrt((v**2).mean(0) + means[k].var(0)) for k, v in deviations.items()},
    )


# ----------------------------------------------------------------------------------------------------- where it is from


def of_engine(task: Task, globals: dict[str, Tensor], rows: slice) -> Rows:
    """By the exact engine, at the program's θ and these globals."""
    part, structure = replace(task, x=task.x[rows], weights=None, draws=DRAWS), task.structure
    if several(structure):  # a latent with several values a row has no column for each joint value: by draws
        whole = RowPosteriors.of(part, globals)
        own = of_sites(structure, whole.probabilities, whole.means, whole.deviations, whole.draws)
    else:
        shares = part.engine.marginals(part.engine.responsibilities(None, globals)) if structure.discrete_locals else {}
        means, deviations = part.engine.summary(globals)
        one, two, three = ({k: v.numpy() for k, v in found.items()} for found in (shares, means, deviations))
        own = of_sites(structure, one, two, three, {})
    return replace(own, log_p=part.engine.per_datum(None, globals).numpy(), source=own.source or EXACT)


@torch.no_grad()
def of_guide(task: Task, guide: torch.nn.Module, rows: slice) -> Rows:
    """By a guide q(z | x): its own moments where q does not depend on draws, else averaged over `GUIDE_DRAWS` of them."""
    structure, own = task.structure, summed(replace(task, guide=guide)).structure
    sites = [s for s in own.local_latents if s.completes is None]

    def moments() -> dict[str, tuple[Tensor, Tensor | None]]:
        with task.program.settings():
            trace = pyro.poutine.trace(at(guide, rows)).get_trace(task.x[rows])
        n = len(task.x[rows])
        return {s.name: _moments(node_of(trace, s.name), s, structure, n) for s in sites}

    found = [moments(), moments()]
    one, other = found
    alike = all(torch.allclose(one[k][0], other[k][0], rtol=1e-6, atol=1e-9) for k in one)
    source = "the guide q(z | x) of the run"
    if alike:
        found = found[:1]
    else:
        found += [moments() for _ in range(GUIDE_DRAWS - 2)]
        source += f", averaged over {GUIDE_DRAWS} draws of it"
    probabilities, means, deviations = {}, {}, {}
    if own is not structure:  # what the guide does not draw is drawn given the rest
        probabilities = {k: v.numpy() for k, v in drawn_by(task, guide, rows, GUIDE_DRAWS)[1].items()}
    for site in sites:
        centers = torch.stack([f[site.name][0] for f in found])
        spreads = [v for f in found if (v := f[site.name][1]) is not None]
        if not spreads:
            probabilities[site.name] = centers.mean(0).numpy()
            continue
        variance = torch.stack(spreads).mean(0) + centers.var(0, correction=0)
        means[site.name], deviations[site.name] = centers.mean(0).numpy(), variance.sqrt().numpy()
    return Rows(probabilities=probabilities, means=means, deviations=deviations, source=source)


def _moments(node: Node, site: Site, structure: Structure, n: int) -> tuple[Tensor, Tensor | None]:
    """Mean and variance [n, …] of a continuous site, or the probabilities [n, …, K] of a discrete one and None."""
    fn = node["fn"]

    def by_datum(value: Tensor) -> Tensor:
        return structure.axes.by_datum(structure.axes.expand(value, site, n, 1), site)[0]

    if not site.discrete:
        try:
            return by_datum(fn.mean), by_datum(fn.variance)
        except NotImplementedError:  # no closed form: a draw, and its moments over many
            value = by_datum(node["value"])
            return value, torch.zeros_like(value)
    base = fn
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    values = base.enumerate_support(expand=True)
    each = [base.log_prob(v).exp() for v in values]
    return torch.stack([by_datum(p) for p in each], -1), None


def of_fit(structure: Structure, fit: Fit, source: str) -> Rows:
    """Of what a fit holds of each row."""
    found = of_sites(structure, fit.probabilities, fit.means, fit.deviations, fit.draws)
    return replace(found, khat=fit.khat, ess=fit.ess, source=f"{source}{'; ' * bool(found.source)}{found.source}")


def of_sites(
    structure: Structure | None, probabilities: Arrays, means: Arrays, deviations: Arrays, draws: Mapping[str, np.ndarray],
    names: Iterable[str] = (),
) -> Rows:  # fmt: skip
    """Of the posterior of each local site as far as it is known: first its probabilities or moments, else its draws.

    `names`: of the local sites, where there is no structure: then a latent whose draws are whole numbers counts as discrete.
    """
    if structure is not None:
        wanted = {s.name: s.discrete for s in structure.local_latents if s.completes is None}
    else:
        wanted = {n: n in probabilities or (n in draws and draws[n].dtype.kind in "iub") for n in names}
    shares: Arrays = {}
    centers: Arrays = {}
    spreads: Arrays = {}
    drawn = []
    for name, discrete in wanted.items():
        if name in probabilities:
            shares[name] = probabilities[name]
        elif name in means:
            centers[name] = means[name]
            spreads |= {name: deviations[name]} if name in deviations else {}
        elif name in draws and len(draws[name]) > 1:
            drawn.append(name)
            if discrete:
                found = _frequencies(draws[name])
                shares |= {} if found is None else {name: found}
            else:
                centers[name], spreads[name] = draws[name].mean(0), draws[name].std(0)
    said = f"of {', '.join(drawn)} by {len(draws[drawn[0]])} draws" if drawn else ""
    return Rows(probabilities=shares, means=centers, deviations=spreads, source=said)


def several(structure: Structure) -> bool:
    """Whether a discrete latent has several values in a row."""
    return any((s.inner > 1 or s.event_shape) and s.completes is None for s in structure.discrete_locals)


def _frequencies(draws: np.ndarray) -> np.ndarray | None:
    """Draws [S, n, …] of whole numbers from 0 as shares [n, …, K]; None where there are too many values."""
    top = int(draws.max(initial=0))
    if draws.min(initial=0) < 0 or top >= MOST_STATES:
        return None
    return np.stack([(draws == k).mean(0) for k in range(top + 1)], -1)


# ------------------------------------------------------------------------------------------------------------- columns


def _of_states(site: str, shares: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a discrete latent: the most probable state, its probability, and the probability of each."""
    inner, K = shares.shape[1:-1], shares.shape[-1]
    flat = shares.reshape(len(shares), -1, K)
    if flat.shape[1] * (2 + K) > MOST_COLUMNS:
        return {}
    out: dict[str, np.ndarray] = {}
    for j, entry in enumerate(_labels(site, inner)):
        best = flat[:, j].argmax(-1)
        out[entry] = best
        out[f"{entry}_probability"] = np.take_along_axis(flat[:, j], best[:, None], -1)[:, 0]
        if K <= MOST_STATES:
            out |= {f"P({entry}={k})": flat[:, j, k] for k in range(K)}
    return out


def _entries(
    site: str, mean: np.ndarray, deviation: np.ndarray | None
) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """A latent's entries: the name, mean and standard deviation [n] of each; none where they are too many."""
    flat = mean.reshape(len(mean), -1)
    if flat.shape[1] > MOST_COLUMNS:
        return []
    spread = None if deviation is None else deviation.reshape(len(mean), -1)
    labels = _labels(site, mean.shape[1:])
    return [(entry, flat[:, j], None if spread is None else spread[:, j]) for j, entry in enumerate(labels)]


def _labels(site: str, shape: tuple[int, ...]) -> list[str]:
    """`z` of a number, `z[0]`, `z[1]`, … of a vector, `z[0,1]` of a matrix."""
    return [f"{site}[{','.join(map(str, at))}]" for at in np.ndindex(*shape)] if shape else [site]
