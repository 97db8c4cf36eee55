"""What the unobserved entries were, given the observed ones: mean, standard deviation and joint draws.

The posterior of the latents is laid out as weighted points: the joint assignments of an enumerable program, 2L sigma points
for each under a linear-Gaussian one (exact for the mean and variance of what is linear in z), else the fit's own draws. At
each point the missing entries have a distribution given the seen ones: the family's own for independent entries, the
conditional normal for a multivariate normal. Where the missing entries are latents themselves (`x_missing`), their posterior
is what is asked for, and is put into their places. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from inference._answers.table import Table
from inference._families._registry import base_of
from inference._method.task import Task
from zoo._data.columns import default_names
from zoo._errors import UsageError
from zoo._program.noise import Noisy
from zoo._program.slots import complete
from zoo._program.trace import node_of

if TYPE_CHECKING:
    import pandas as pd

BLOCK_NUMBERS = 2**22
UNSEEN_DRAWS = 200  # of rows with nothing observed, where their mean needs draws


@dataclass(frozen=True)
class Imputation:
    """Completed data. Where an entry was observed, `mean` and `draws` hold it, and `sd` is 0."""

    mean: np.ndarray  # [N, …] the data, with the posterior mean of what was missing; of categories the most probable
    sd: np.ndarray  # [N, …] its posterior standard deviation; NaN for categories
    draws: np.ndarray  # [draws, N, …] joint draws
    missing: np.ndarray  # [N, …] true where an entry was not observed
    columns: tuple[str, ...] = ()  # names of the numbers in a row
    names: np.ndarray | None = None  # [N] of the rows

    def to_frame(self, what: Literal["mean", "sd"] = "mean") -> pd.DataFrame:
        """The completed rows (or the standard deviations of what was missing) as a table."""
        import pandas as pd

        values = {"mean": self.mean, "sd": self.sd}[what]
        flat = values.reshape(len(values), -1)
        columns = self.columns if len(self.columns) == flat.shape[1] else default_names(flat.shape[1])
        return pd.DataFrame(flat, columns=list(columns), index=pd.Index(self._rows(), name="row"))

    def drawn(self) -> Table:
        """The joint draws as a table, one under the other: `draw`, `row`, then the columns of the data."""
        S, n = self.draws.shape[:2]
        flat = self.draws.reshape(S * n, -1)
        columns = self.columns if len(self.columns) == flat.shape[1] else default_names(flat.shape[1])
        first = {"draw": np.repeat(np.arange(S), n), "row": np.tile(self._rows(), S)}
        return Table(first | {name: flat[:, j] for j, name in enumerate(columns)})

    def _rows(self) -> np.ndarray:
        return np.arange(len(self.mean)) if self.names is None else self.names

    def in_units(self, center: np.ndarray | None, scale: np.ndarray | None) -> Imputation:
        """The same in the units of the data before they were standardised."""
        if center is None or scale is None:
            return self
        return replace(self, mean=self.mean * scale + center, sd=self.sd * scale, draws=self.draws * scale + center)


@torch.no_grad()
def impute(
    task: Task,
    latent_draws: dict[str, np.ndarray],
    globals: dict[str, Tensor],
    draws: int,
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> Imputation:
    """Impute the data of `task`, at its program's θ; `latent_draws` are posterior draws [S, N, …] of the local latents.

    `probabilities`: a fit's own; of bits that stand for what is missing [N, M, 2] they say more than the draws.
    """
    if task.structure.local_latents and not latent_draws:
        raise UsageError("imputing needs posterior draws of each row, and this run holds none: fit fewer rows.")
    x, missing = task.x, task.x.isnan()
    if task.structure.max_plate_nesting == 1 and not task.program.completes and _in_parts(task):
        mean, sd, drawn = Parts(task).imputed(latent_draws, globals, draws)
        return Imputation(mean.numpy(), sd.numpy(), drawn.numpy(), missing.numpy())
    site = _site(task)
    drawn = _draws(task, site, latent_draws, globals, draws)
    if (slots := _slots(task, site)) is not None:
        mean, sd = _of_slots(task, site, slots, latent_draws, globals, (probabilities or {}).get(slots))
    else:
        mean, sd = _moments(task, site, latent_draws, globals)
    zero = torch.zeros_like(x)
    return Imputation(
        torch.where(missing, mean, x).numpy(), torch.where(missing, sd, zero).numpy(), drawn.numpy(), missing.numpy()
    )


def _moments(
    task: Task, site: str, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [N, …] of the missing entries, from their distribution at points of the latents."""
    x, missing = task.x, task.x.isnan()
    mean, square, size = torch.zeros_like(x), torch.zeros_like(x), _block(task)
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        gone = missing[rows]
        for weight, latents in _points(task, rows, latent_draws, globals):
            fn = _distribution(task, site, rows, latents, globals)
            center, variance = _conditional(fn, x[rows], gone, site)
            weight = weight.reshape(-1, *(1,) * (x.dim() - 1))
            mean[rows] += weight * center
            square[rows] += weight * (variance + center.square())
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def _slots(task: Task, site: str) -> str | None:
    """The latent site that stands for what is missing at `site`, if one does."""
    return next((s.name for s in task.structure.local_latents if s.completes == site), None)


def _of_slots(
    task: Task,
    site: str,
    slots: str,
    latent_draws: dict[str, np.ndarray],
    globals: dict[str, Tensor],
    probability: np.ndarray | None,
) -> tuple[Tensor, Tensor]:
    """The same from the posterior of the latent `slots`; rows with nothing observed from draws of the program."""
    x = task.x
    if not task.structure.is_exact and probability is not None:
        center = torch.as_tensor(probability[..., 1], dtype=x.dtype)
        deviation = (center * (1 - center)).clamp(min=0).sqrt()
    elif not task.structure.is_exact:
        given = torch.as_tensor(latent_draws[slots], dtype=x.dtype)
        center, deviation = given.mean(0), given.std(0, correction=0)
    elif slots in task.engine.assignments:
        latent = next(s for s in task.structure.local_latents if s.name == slots)
        table = task.engine.assignments[slots].to(x.dtype)
        values = task.structure.axes.by_datum(table, latent)[:, 0]  # [A, …, M], 0 or 1
        flat = task.engine.responsibilities(None, globals) @ values.flatten(1)
        center = flat.reshape(len(x), *values.shape[1:])
        deviation = (center * (1 - center)).clamp(min=0).sqrt()
    else:
        means, deviations = task.engine.summary(globals)
        center, deviation = means[slots], deviations[slots]
    mean, sd = _completed(task, site, center), _completed(task, site, deviation)
    if len(rows := _with_nan(mean)):
        drawn = torch.stack([_unseen(task, site, rows, latent_draws, globals, s) for s in range(UNSEEN_DRAWS)])
        mean[rows] = torch.where(mean[rows].isnan(), drawn.mean(0), mean[rows])
        sd[rows] = torch.where(sd[rows].isnan(), drawn.std(0, correction=0), sd[rows])
    return mean, sd


def _with_nan(x: Tensor) -> Tensor:
    """The rows of x [N, …] that hold NaN: a row with nothing observed has no slots."""
    return x.flatten(1).isnan().any(1).nonzero()[:, 0]


def _completed(task: Task, site: str, given: Tensor) -> Tensor:
    """x with the slots given [N, …, M] in the places of its missing entries."""
    event = next(len(s.event_shape) for s in task.structure.observed if s.name == site)
    flat = task.x.flatten(task.x.dim() - event)
    return complete(flat, given.reshape(*flat.shape[:-1], -1)).reshape(task.x.shape)


def _unseen(
    task: Task, site: str, rows: Tensor, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor], s: int
) -> Tensor:
    """A draw of what nothing was observed of, `rows` of x, at posterior draw s of the other latents."""
    count = len(next(iter(latent_draws.values())))
    fn = _distribution(task, site, rows, _at(task, latent_draws, s % count, rows), globals)
    return _like(fn.sample(), task.x[rows])


def _block(task: Task) -> int:
    """Rows at once, so that what a row needs is little memory: a matrix where entries depend on one another."""
    width = task.x[0].numel()
    matrices = any("MultivariateNormal" in s.family for s in task.structure.observed)
    return max(1, BLOCK_NUMBERS // (width**2 if matrices else width))


def _like(value: Tensor, x: Tensor) -> Tensor:
    """A value of the observed site in the shape and dtype of x: where x is [n, 1], a scalar site's is [n]."""
    value = value.to(x.dtype)
    return value.reshape(x.shape) if value.numel() == x.numel() else value.expand(x.shape)


def _site(task: Task) -> str:
    """The one site that observes x itself."""
    name, observed = task.program.name, task.structure.observed
    if len(observed) != 1:
        names = ", ".join(f"'{s.name}'" for s in observed)
        raise UsageError(f"imputing needs one observed site, and '{name}' has {names}.")
    site, row = observed[0], tuple(task.x.shape[1:])
    shape = tuple(size for _, size in site.inner_dims) + tuple(site.event_shape)
    if shape != row and (shape or row != (1,)):
        raise UsageError(
            f"imputing needs a site that observes a whole row of x, of shape {row}; '{site.name}' of '{name}' observes "
            f"values of shape {shape}."
        )
    return site.name


def _points(
    task: Task, rows: slice, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Weights [n] and values of the local latents, each with the data dimension in its place."""
    n = rows.stop - rows.start
    if not task.structure.is_exact or task.structure.conjugate:
        count = len(next(iter(latent_draws.values())))
        for s in range(count):
            yield torch.full((n,), 1.0 / count, dtype=task.x.dtype), _at(task, latent_draws, s, rows)
        return
    yield from task.engine.points(rows, globals)


def _at(task: Task, latent_draws: dict[str, np.ndarray], s: int, rows: slice | Tensor) -> dict[str, Tensor]:
    sites = {site.name: site for site in task.structure.local_latents}
    return {k: task.structure.axes.as_program(torch.as_tensor(v[s])[rows], sites[k]) for k, v in latent_draws.items()}


def _distribution(
    task: Task, site: str, rows: slice | Tensor, latents: dict[str, Tensor], globals: dict[str, Tensor]
) -> dist.TorchDistribution:
    """The observed site's distribution at these latents."""
    trace = task.program.trace(task.x[rows].nan_to_num(0.0), latents={**latents, **globals}, raw=True)
    fn = node_of(trace, site)["fn"]
    return fn.expand((len(task.x[rows]),)) if task.structure.max_plate_nesting == 1 else fn


def _conditional(fn: dist.TorchDistribution, x: Tensor, missing: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """Mean and variance [n, …] of the missing entries given the seen ones, at one value of the latents."""
    base = base_of(fn)
    if isinstance(base, Noisy):
        center, variance = _conditional(base.gaussian(), x, missing, site)
        noise = base.noise.unsqueeze(-1)
        return torch.where(noise, base.mean, center), torch.where(noise, base.variance, variance)
    if isinstance(base, dist.MultivariateNormal) and base is fn:
        center, covariance = _normal(fn, x, missing)
        return center, covariance.diagonal(dim1=-2, dim2=-1)
    _check_independent(base, missing, site)
    return _like(fn.mean, x), _like(fn.variance, x)


def _check_independent(base: torch.distributions.Distribution, missing: Tensor, site: str) -> None:
    if not base.event_shape:
        return
    flat = missing.flatten(1)
    if bool((flat.any(1) & ~flat.all(1)).any()):
        raise UsageError(f"site '{site}': entries of a {type(base).__name__} cannot be imputed one by one.")


def _normal(fn: dist.MultivariateNormal, x: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Conditional mean [n, D] and covariance [n, D, D] of a multivariate normal's missing entries given the seen."""
    seen = (~missing).to(x.dtype)
    covariance = fn.covariance_matrix.expand(len(x), *fn.covariance_matrix.shape[-2:])
    pair = seen.unsqueeze(-1) * seen.unsqueeze(-2)
    known = torch.linalg.cholesky(covariance * pair + torch.diag_embed(1 - seen))
    gain = covariance @ (torch.cholesky_inverse(known) * pair)  # [n, D, D]: from seen differences to expected ones
    difference = ((x.nan_to_num(0.0) - fn.loc) * seen).unsqueeze(-1)
    gone = (1 - seen).unsqueeze(-1) * (1 - seen).unsqueeze(-2)
    return fn.loc + (gain @ difference).squeeze(-1), (covariance - gain @ covariance) * gone


def _draws(
    task: Task, site: str, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor], draws: int
) -> Tensor:
    """Joint draws [draws, N, …]: latents from their posterior, then the missing entries given them."""
    x, missing = task.x, task.x.isnan()
    count = len(next(iter(latent_draws.values()))) if latent_draws else draws
    if (slots := _slots(task, site)) is not None:
        return _draws_of_slots(task, site, slots, latent_draws, globals, draws)
    out, size = [], _block(task)
    for s in range(draws):
        pieces = []
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            fn = _distribution(task, site, rows, _at(task, latent_draws, s % count, rows), globals)
            pieces.append(torch.where(missing[rows], _sample(fn, x[rows], missing[rows]), x[rows]))
        out.append(torch.cat(pieces))
    return torch.stack(out)


def _draws_of_slots(
    task: Task, site: str, slots: str, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor], draws: int
) -> Tensor:
    """The same where the missing entries are latents: their draws, in their places."""
    given = torch.as_tensor(latent_draws[slots], dtype=task.x.dtype)
    out = []
    for s in range(draws):
        value = _completed(task, site, given[s % len(given)])
        if len(rows := _with_nan(value)):
            unseen = _unseen(task, site, rows, latent_draws, globals, s)
            value[rows] = torch.where(value[rows].isnan(), unseen, value[rows])
        out.append(value)
    return torch.stack(out)


def _sample(fn: dist.TorchDistribution, x: Tensor, missing: Tensor) -> Tensor:
    if isinstance(fn, Noisy):
        return torch.where(fn.noise.unsqueeze(-1), fn.sample(), _sample(fn.gaussian(), x, missing))
    if not isinstance(fn, dist.MultivariateNormal):
        return _like(fn.sample(), x)
    mean, covariance = _normal(fn, x, missing)
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)  # singular where entries were seen
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    drawn: Tensor = mean + (root @ torch.randn_like(mean).unsqueeze(-1)).squeeze(-1)
    return drawn


# ---------------------------------------------------------------------------------------------- sites of some columns


def _in_parts(task: Task) -> bool:
    """Whether several sites observe a table's columns, or one observes categories, which have no mean."""
    observed = task.structure.observed
    table = task.x.dim() == 2 and all(s.scope == "local" and len(s.event_shape) <= 1 for s in observed)
    return table and (len(observed) > 1 or observed[0].family == "Categorical")


@dataclass
class Parts:
    """The columns of a table x [N, D] that each observed site has; categories may be numbered otherwise than in x.

    Which they are is seen where one entry of a row after the other is missing. What the numbers of a site are in x, the
    program says itself: it returns the table that it makes of its sites' values.
    """

    task: Task
    columns: dict[str, Tensor] = field(default_factory=dict)  # site → which column each of its entries is [E]

    def __post_init__(self) -> None:
        x = self.task.x
        D, seen = x.shape[1], ~x.isnan()
        typical = x.nan_to_num(0.0)[seen.double().argmax(0), torch.arange(D)]
        one_missing = torch.where(torch.eye(D, dtype=torch.bool), torch.nan, typical)
        name = self.task.program.name
        for site, value in self._seen(one_missing).items():
            gone = value.isnan()  # [D, E]
            if not bool((gone.sum(0) == 1).all()):
                raise UsageError(
                    f"imputing needs sites whose entries are columns of x each, and '{site}' of '{name}' mixes them."
                )
            self.columns[site] = gone.double().argmax(0)
        everything = torch.cat(list(self.columns.values()))
        if len(everything.unique()) < len(everything):
            raise UsageError(f"imputing needs columns that one site observes each, and '{name}' observes one twice.")
        for site, value in self._seen(x).items():
            same = torch.equal(value.nan_to_num(0.0), x[:, self.columns[site]].nan_to_num(0.0))
            if not same and not self._categories(site):
                raise UsageError(
                    f"imputing needs sites that observe x itself, and '{site}' of '{name}' changes its numbers."
                )

    def _categories(self, site: str) -> bool:
        return next(s.family for s in self.task.structure.observed if s.name == site) == "Categorical"

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        """Site → what it observes of the rows x [n, E], NaN where that is missing."""
        with torch.random.fork_rng(devices=[]):
            trace = self.task.program.trace(x, raw=True)
        names = [s.name for s in self.task.structure.observed]
        return {name: node_of(trace, name)["value"].reshape(len(x), -1).to(x.dtype) for name in names}

    def _at(self, rows: slice, latents: Mapping[str, Tensor]) -> dict[str, dist.TorchDistribution]:
        """Site → its distribution of these rows."""
        trace = self.task.program.trace(self.task.x[rows].nan_to_num(0.0), latents=latents, raw=True)
        return {name: node_of(trace, name)["fn"].expand((rows.stop - rows.start,)) for name in self.columns}

    def _table(self, values: Mapping[str, Tensor], latents: Mapping[str, Tensor], rows: slice) -> Tensor:
        """The rows of x [n, D] that the sites' values [n, E] make: where the program has other numbers, by its own word."""
        x = self.task.x[rows].clone()
        for site, value in values.items():
            x[:, self.columns[site]] = value
        if not any(map(self._categories, values)):
            return x
        shapes = {s.name: s.event_shape for s in self.task.structure.observed}
        given = {site: value.reshape(len(x), *shapes[site]) for site, value in values.items()}
        trace = self.task.program.trace(None, size=len(x), latents={**latents, **given})
        returned = trace.nodes["_RETURN"]["value"]
        if not isinstance(returned, Tensor) or returned.shape != x.shape:
            raise UsageError(
                f"imputing categories needs a program that returns x, and '{self.task.program.name}' does not: return the "
                "table that its sites' values make."
            )
        return returned.to(x.dtype)

    def imputed(
        self, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor], draws: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation [N, D] of what is missing, and joint draws [draws, N, D] of all."""
        x, size = self.task.x, _block(self.task)
        means, deviations, drawn = [], [], []
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            mean, deviation = self._moments(rows, latent_draws, globals)
            means.append(mean)
            deviations.append(deviation)
            drawn.append(torch.stack([self._drawn(rows, latent_draws, globals, s) for s in range(draws)]))
        missing, mean, sd = x.isnan(), torch.cat(means), torch.cat(deviations)
        return (
            torch.where(missing, mean, x),
            torch.where(missing, sd, 0.0),
            torch.where(missing, torch.cat(drawn, 1), x),
        )

    def _moments(
        self, rows: slice, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        seen = self._seen(self.task.x[rows])
        first: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}
        latents: dict[str, Tensor] = {}
        for weight, latents in _points(self.task, rows, latent_draws, globals):
            for site, fn in self._at(rows, {**latents, **globals}).items():
                if self._categories(site):
                    probs = cast(dist.Categorical, base_of(fn)).probs
                    probs = probs.reshape(len(weight), -1, probs.shape[-1])
                    first[site] = first.get(site, 0.0) + weight[:, None, None] * probs  # [n, E, C]
                    continue
                center, variance = _conditional(fn, seen[site], seen[site].isnan(), site)
                first[site] = first.get(site, 0.0) + weight[:, None] * center
                second[site] = second.get(site, 0.0) + weight[:, None] * (variance + center.square())
        best = {s: v.argmax(-1).to(self.task.x.dtype) if self._categories(s) else v for s, v in first.items()}
        deviation = torch.full_like(self.task.x[rows], torch.nan)
        for site, square in second.items():
            deviation[:, self.columns[site]] = (square - first[site].square()).clamp(min=0).sqrt()
        return self._table(best, {**latents, **globals}, rows), deviation

    def _drawn(self, rows: slice, latent_draws: dict[str, np.ndarray], globals: dict[str, Tensor], s: int) -> Tensor:
        count = len(next(iter(latent_draws.values()))) if latent_draws else 1
        latents = {**_at(self.task, latent_draws, s % count, rows), **globals}
        seen, values = self._seen(self.task.x[rows]), {}
        for site, fn in self._at(rows, latents).items():
            gone = seen[site].isnan()
            values[site] = torch.where(gone, _sample(fn, seen[site], gone), seen[site])
        return self._table(values, latents, rows)
