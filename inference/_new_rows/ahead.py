"""Series step by step: what a run says of each step, and of the steps that come next.

The next steps are holes at the end of each series: the program runs on longer rows, and what it says of their latents and of
their missing entries is the forecast. Of an exact posterior so are the forecast's mean, standard deviation and quantiles:

- where an entry depends on one discrete latent, it is a mixture of the program's own distributions, one for each state;
- in a linear-Gaussian program it is normal. Its mean is the program's at the latents' means, and its density there is
  p(x, the entry) / p(x), a ratio of two exact values, which gives the variance. The same ratio one standard deviation away
  checks both.

All else is averaged over draws of the posterior. Where it is not exact, the run says what the latents of the steps are that
are there, and the program draws those of the next steps given these: no method, and no guide, looks at steps that come.
All of it is at the run's θ. Where the posterior is exact given the global latents and the run has draws of those, the forecast
is averaged over some of the draws; else it is at one value of each global latent, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._answers import rows as _rows
from inference._answers.mixture import Average, Mixture
from inference._answers.rows import Rows
from inference._answers.table import Table
from inference._new_rows import longer
from inference._new_rows.asked import NewRows, asked_of, on
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.result import Run
from zoo._data.columns import default_names
from zoo._errors import UsageError
from zoo._program.structure import Site, Structure
from zoo._program.trace import log_prob, node_of

QUANTILES = (0.025, 0.25, 0.75, 0.975)  # the ends of intervals of 95 % and of 50 %
DRAWS = 1000
MOST_GLOBALS = 50  # draws of the global latents, over which a forecast is averaged
MOST_AHEAD = 10_000
MOST_NUMBERS = 2**22  # of x, beside each other
CHECKED = 20  # series, on which it is seen whether steps that are added change the others


@entrance
def by_step(
    run: Run, ahead: object, there: bool, data: object, preparation: Mapping[str, object]
) -> tuple[Table, Steps]:
    """A row for each step of each series: of the next `ahead` steps, or of all that are `there`.

    A step that is there has its numbers, one ahead for each number a mean, a standard deviation and quantiles, or the
    probabilities of its categories, in the data's own units. Beside them are the latents that the step depends on.
    """
    if there and ahead is not None:
        raise UsageError(
            "Expected one of ahead and by_step, got both: ask for the steps that come and those there apart."
        )
    steps = 0 if there else _number(ahead)
    own = asked = asked_of(run, data, preparation)
    if steps and own.data.options.get("covariates"):
        raise UsageError("the covariates of the next steps are not known, so nothing is said of them.")
    if steps:
        try:
            asked = on(run, longer.with_steps(own.data, steps))
        except UsageError as error:
            raise UsageError(f"'{run.model}' says nothing of longer rows, so it has no next steps: {error}") from None
    with seeded(run.seed), in_words(run.model, "predicting step by step"), torch.no_grad():
        found = Steps(asked, steps, own)
        if steps and found.is_exact and (points := _draws_of_globals(run, found.structure)):
            found = found.averaged(points, run.method)
        return found.table(found.forecast() if steps else found.seen()), found


def _number(ahead: object) -> int:
    if isinstance(ahead, bool) or not isinstance(ahead, int | np.integer) or not 1 <= ahead <= MOST_AHEAD:
        raise UsageError(f"Expected a whole number from 1 to {MOST_AHEAD:,} for ahead, got {ahead!r:.40}.")
    return int(ahead)


class Steps:
    """The last `ahead` steps of series [n, T, D] or [n, T] after where each of them ends; where `ahead` is 0, all others."""

    def __init__(self, asked: NewRows, ahead: int, own: NewRows) -> None:
        if ahead:  # no guide has looked at steps that come
            task = replace(asked.task, guide=None)
            asked = replace(asked, task=task.doubled() if task.structure.is_exact else task)
        self.asked, self.task, self.structure = asked, asked.task, asked.task.structure
        x = self.task.x
        if x.dim() not in (2, 3) or self.structure.max_plate_nesting > 1:
            raise UsageError(f"'{asked.task.program.name}' has no steps: its rows are no series, n × T or n × T × D.")
        if self.task.program.completes:
            raise UsageError(
                f"'{self.task.program.completes[0]}' needs steps that are missing to tell of others. Impute them: zoo impute."
            )
        self.n, self.T, self.x = len(x), x.shape[1], x.reshape(len(x), x.shape[1], -1)
        self.D = self.x.shape[2]
        ends = np.asarray(asked.data.options.get("series_lengths", [self.T - ahead] * self.n))
        first, many = (ends, np.full(self.n, ahead)) if ahead else (np.zeros(self.n, dtype=int), ends)
        self.series = np.repeat(np.arange(self.n), many)
        self.ahead = np.concatenate([np.arange(k) for k in many])
        self.at = np.repeat(first, many) + self.ahead  # the step of each row of the table
        if ahead:
            self._check_the_same(own)
        self.known = asked if self.is_exact else own  # of whose latents there is a posterior
        self.rows, self.parts = Rows(), list[Steps]()
        if self.is_exact or not ahead:
            self._ask()
        self.source = self.rows.source

    def _ask(self) -> None:
        """What is known of the latents, where it does not come from draws."""
        found: list[Rows] = []
        self.asked.each(lambda rows, names: found.append(rows))
        self.rows = _rows.joined(found)

    def averaged(self, points: list[dict[str, Tensor]], method: str) -> Steps:
        """The same, averaged over draws of the global latents."""
        assert self.places  # found once for all of them
        out, names = copy(self), ", ".join(points[0])
        out.parts = [self._at(point) for point in points]
        out.rows, out.asked = _rows.averaged([part.rows for part in out.parts]), replace(self.asked, given="")
        out.source = f"{self.source}, averaged over {len(points)} draws of {names} by {method}"
        return out

    def _at(self, point: dict[str, Tensor]) -> Steps:
        """The same at other values of the global latents."""
        out = copy(self)
        out.task = replace(self.task, globals=point)
        out.asked = out.known = replace(self.asked, task=out.task)
        out._ask()
        return out

    @property
    def is_exact(self) -> bool:
        """Whether the posterior of all these steps is exact."""
        return self.asked.route == "engine"

    @property
    def told(self) -> str:
        """Where all this comes from."""
        return self.source + f", given {self.asked.given}" * bool(self.asked.given)

    def _check_the_same(self, own: NewRows) -> None:
        """Raise `UsageError` where steps of which nothing is seen change what is said of the others.

        All steps that are there have values here: a hole at the end of the data must not hide what changes.
        """
        x, T = own.task.x[:CHECKED].clone(), own.task.x.shape[1]
        for column in x.reshape(len(x), T, -1).unbind(2):
            seen = column[~column.isnan()]
            column[column.isnan()] = seen[0] if len(seen) else torch.nan
        longer = self.task.x[:CHECKED].clone()
        longer[:, :T] = x
        if not (self._same_evidence if self.is_exact else self._same_sites)(own, x, longer):
            raise UsageError(
                f"log p(x) under '{self.task.program.name}' changes where steps are added of which nothing is seen: it is no "
                "model of a series that goes on, and says nothing of the next steps."
            )

    def _same_evidence(self, own: NewRows, x: Tensor, longer: Tensor) -> bool:
        pairs = ((own, x), (self.asked, longer))
        tasks = [replace(of.task.doubled(), x=rows.double()) for of, rows in pairs]
        one, other = (task.engine.per_datum(None, task.globals) for task in tasks)
        return torch.allclose(one, other, rtol=1e-8, atol=1e-8)

    def _same_sites(self, own: NewRows, x: Tensor, longer: Tensor) -> bool:
        """Whether each site has the same density in longer rows, at one value of the latents."""
        before, after = ({s.name: s for s in of.structure.local_latents} for of in (own.task, self.task))
        if any(k not in after or after[k].event_shape != s.event_shape for k, s in before.items()):
            raise UsageError(
                f"'{self.task.program.name}' has other latents where steps are added, and its posterior is not exact: what "
                "this run says of the steps that are there does not tell of the next."
            )
        short, long = own.task.doubled(), self.task.doubled()
        with torch.random.fork_rng(devices=[]):
            one = short.program.trace(x.double(), latents=short.globals)
            values = {k: node_of(one, k)["value"] for k in before}
            other = long.program.trace(longer.double(), latents={**long.globals, **values})
        names = [*before, *(s.name for s in own.task.structure.observed)]
        if not all(k in other.nodes for k in names):
            return False
        pairs = [[log_prob(node_of(of, k)) for of in (one, other)] for k in names]
        return all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in pairs)

    # ---- which site is which entry

    @cached_property
    def places(self) -> dict[str, list[tuple[int, int]]]:
        """Observed site → the step and the column of each of its entries: seen where one entry of x at a time is missing."""
        out = {}
        wanted = np.unique(self.at)
        entries = [(int(t), d) for t in wanted for d in range(self.D)]
        x = self.x[:1].nan_to_num(1.0).repeat(len(entries), 1, 1)
        for row, (t, d) in enumerate(entries):
            x[row, t, d] = torch.nan
        with torch.random.fork_rng(devices=[]):
            trace = self.task.program.trace(x.reshape(-1, *self.task.x.shape[1:]), raw=True)
        for site in self.structure.observed:
            gone = node_of(trace, site.name)["value"].reshape(len(entries), -1).isnan()  # [entries, E]
            if not bool(gone.any()):
                continue
            if not bool((gone.sum(0) == 1).all()):
                raise UsageError(
                    f"site '{site.name}' observes several steps, or mixes them: it has no forecast of each."
                )
            out[site.name] = [entries[int(e)] for e in gone.double().argmax(0)]
        if missing := set(wanted.tolist()) - {
            t for found in out.values() for t, _ in found
        }:  # columns may be covariates
            raise UsageError(
                f"no site of '{self.task.program.name}' observes step {min(missing)}: it is no model of a longer series."
            )
        return out

    def _site(self, name: str) -> Site:
        return next(s for s in self.structure.sites if s.name == name)

    # ---- what is said of entries

    def seen(self) -> dict[str, np.ndarray]:
        """The numbers of each step, in the data's own units, and the mean of their distribution given all that is seen."""
        out: dict[str, np.ndarray] = {}
        for d, name in enumerate(self.names):
            out[name] = self._of_column(self.x[:, :, d], d, True)
        fitted = {} if self._given() else {k: m for k, m in self._mixtures().items() if m.shares is None}
        for site, mixture in fitted.items():
            for (t, d), mean in zip(self.places[site], mixture.moments()[0].mT, strict=True):
                here = out.setdefault(f"{self.names[d]}_fitted", np.full((self.n, self.T), np.nan))
                here[:, t] = self._of_column(mean, d, True)
        return {name: value[self.series, self.at] for name, value in out.items()}

    def forecast(self) -> dict[str, np.ndarray]:
        """The moments and quantiles of each column, or the probabilities of its categories, at the steps ahead."""
        kept: dict[str, np.ndarray] = {}

        def keep(name: str, value: Tensor | np.ndarray, t: int) -> None:
            kept.setdefault(name, np.full((self.n, self.T), np.nan))[:, t] = value

        if given := self._given():
            raise UsageError(f"site '{given}' depends on other data than its own entry, which are not known ahead.")
        for site, mixture in self._forecasts().items():
            shares = mixture.shares
            of = {} if shares is not None else _said(mixture)
            for e, (t, d) in enumerate(self.places[site]):
                if shares is not None:
                    for c in range(shares.shape[-1]):
                        keep(f"P({self.names[d]}={c})", shares[:, e, c], t)
                for what, value in of.items():
                    keep(f"{self.names[d]}_{what}", self._of_column(value[:, e], d, what != "sd"), t)
        return {name: value[self.series, self.at] for name, value in kept.items()}

    def _forecasts(self) -> Mapping[str, Mixture | Average]:
        """The distribution of each observed site's entries."""
        if not self.parts:
            mixtures = self._mixtures()
            return self._normal(mixtures) if self._is_normal else mixtures
        found = [part._mixtures() for part in self.parts]
        if self._is_normal:
            found = [part._normal(of) for part, of in zip(self.parts, found, strict=True)]
        return {site: Average([of[site] for of in found]) for site in found[0]}

    def _given(self) -> str:
        """A site that depends on other data than its own entry; "" for none."""
        sites = [self._site(name) for name in self.places]
        others = [s.name for s in sites if s.reads_data or any(self._site(p).role == "observed" for p in s.parents)]
        return next(iter(others), "")

    @property
    def _is_normal(self) -> bool:
        exact = self.asked.route == "engine" and self.structure.linear_gaussian
        return exact and not self.structure.discrete_locals

    def _mixtures(self) -> dict[str, Mixture]:
        """Each observed site's distribution given the latents, at weighted values of them: at their means if all is linear."""
        if self.asked.route == "engine" and not self.structure.continuous_locals and self._one_parent():
            return self._by_states()
        if not self._is_normal:
            return self._by_draws()
        means = {k: torch.as_tensor(v).unsqueeze(0) for k, v in self.rows.means.items()}
        fns = self._of_places(self._trace(means, 1), 1)
        return {name: Mixture.of(fn, self.x.new_ones(1, self.n)) for name, fn in fns.items()}

    def _one_parent(self) -> bool:
        return all(len(self._latents(name)) < 2 for name in self.places) and not _rows.several(self.structure)

    def _latents(self, site: str) -> list[str]:
        """The local latents that an observed site depends on."""
        local = {s.name for s in self.structure.local_latents}
        return [p for p in self._site(site).parents if p in local]

    def _trace(self, latents: Mapping[str, Tensor], J: int) -> Trace:
        """The program at J values [J, n, …] of latents, side by side as J · n rows; others are drawn given these."""
        x = self.task.x.nan_to_num(0.0).repeat(J, *(1,) * (self.task.x.dim() - 1))
        sites = {s.name: s for s in self.structure.local_latents}
        given = {k: self.structure.axes.as_program(v.flatten(0, 1), sites[k]) for k, v in latents.items()}
        return self.task.program.trace(x, latents={**given, **self.asked.point}, raw=True)

    def _of_places(self, trace: Trace, J: int) -> dict[str, dist.TorchDistribution]:
        """Observed site → its distribution for the J · n rows."""
        return {name: node_of(trace, name)["fn"].expand((J * self.n,)) for name in self.places}

    def _by_states(self) -> dict[str, Mixture]:
        """Each entry by the states of the one discrete latent that it depends on."""
        values = {s.name: self.task.engine.values_of(s.name) for s in self.structure.discrete_locals}
        J = max(map(len, values.values()), default=1)
        index = torch.arange(J)
        states = {k: v[index.clamp(max=len(v) - 1)].unsqueeze(1).expand(J, self.n) for k, v in values.items()}
        out = {}
        for name, fn in self._of_places(self._trace(states, J), J).items():
            weights = self.x.new_zeros(J, self.n)
            for latent in self._latents(name):
                shares = torch.as_tensor(self.rows.probabilities[latent], dtype=self.x.dtype)  # [n, K]
                weights[: shares.shape[1]] = shares.mT
            out[name] = Mixture.of(fn, weights if self._latents(name) else torch.full_like(weights, 1 / J))
        return out

    def _normal(self, fns: Mapping[str, Mixture]) -> dict[str, Mixture]:
        """Each entry as the normal that p(x, the entry) / p(x) is; `fns`: at the latents' means."""
        rows = []
        for name, fn in fns.items():
            mean, sd = fn.moments()
            for e, (t, d) in enumerate(self.places[name]):
                for value in (mean[:, e], mean[:, e] + sd[:, e]):
                    rows.append(self.x.clone())
                    rows[-1][:, t, d] = value
        task = replace(self.task, x=torch.cat(rows).reshape(-1, *self.task.x.shape[1:]), weights=None)
        log_p = task.engine.per_datum(None, self.asked.point).reshape(-1, 2, self.n) - torch.as_tensor(self.rows.log_p)
        variance = (-2 * log_p[:, 0]).exp() / (2 * torch.pi)
        out, at = {}, 0
        for name, fn in fns.items():
            mean, sd = fn.moments()
            some = slice(at, at + mean.shape[1])
            coming = torch.stack([self.x[:, t, d].isnan() for t, d in self.places[name]], 1)  # not in a longer series
            mine = torch.where(coming, variance[some].mT, 1.0)
            fall = (log_p[some, 0] - log_p[some, 1]).mT
            if not torch.allclose((fall * mine)[coming], sd.square()[coming] / 2, rtol=1e-4):
                raise ArithmeticError(f"the forecast of '{name}' is not normal, although its program was read as such.")
            at += mean.shape[1]
            out[name] = Mixture(dist.Normal(mean, mine.sqrt()), self.x.new_ones(1, self.n))
        return out

    def _by_draws(self) -> dict[str, Mixture]:
        """Each entry given draws of the latents."""
        drawn, _ = self.known._latents(DRAWS)
        if set(drawn) < {s.name for s in self.known.task.structure.local_latents}:
            raise UsageError("predicting ahead needs posterior draws of the latents, and this run's method gives none.")
        S = min([len(v) for v in drawn.values()] or [DRAWS])
        S = max(1, min(S, MOST_NUMBERS // self.x.numel()))
        trace = self._trace({k: torch.as_tensor(v[:S]) for k, v in drawn.items()}, S)
        if self.known is self.asked:
            self.source += f"; the forecast by {S} draws"
        else:
            self._look_at(trace, S)
        return {
            name: Mixture.of(fn, self.x.new_full((S, self.n), 1 / S)) for name, fn in self._of_places(trace, S).items()
        }

    def _look_at(self, trace: Trace, S: int) -> None:
        """What S draws say of the latents; those of the steps ahead are the program's, given the others."""
        drawn = {
            s.name: node_of(trace, s.name)["value"].reshape(S, self.n, *s.event_shape).numpy()
            for s in self.structure.local_latents
        }
        self.rows = _rows.of_sites(self.structure, {}, {}, {}, drawn)
        whose = "the guide q(z | x) of the run" if self.known.route == "guide" else f"the method {self.known.method}"
        self.source = f"{S} draws by {whose}, and of the steps ahead by the program given these"

    # ---- the table

    def latents(self) -> dict[str, np.ndarray]:
        """What is known of the latents of each step, under their names without the number of the step."""
        kept: dict[str, np.ndarray] = {}
        for site, entries in self.places.items():
            names = [p for p in self._latents(site) if p in self.rows.probabilities or p in self.rows.means]
            short = {re.sub(r"[_.\[]*\d+\]?$", "", p) or p: p for p in names}
            if len(short) < len(names):
                continue  # several steps' latents: which of them is this step's?
            probabilities, means, deviations = (
                {s: of[p] for s, p in short.items() if p in of}
                for of in (self.rows.probabilities, self.rows.means, self.rows.deviations)
            )
            own = Rows(probabilities=probabilities, means=means, deviations=deviations)
            for column, value in own.table(self.series[:0]).columns.items():
                if column != "row":
                    empty = (
                        np.full((self.n, self.T), np.nan)
                        if value.dtype.kind == "f"
                        else np.zeros((self.n, self.T), int)
                    )
                    kept.setdefault(column, empty)[:, [t for t, _ in entries]] = value[:, None]
        return {name: value[self.series, self.at] for name, value in kept.items()}

    def table(self, entries: Mapping[str, np.ndarray]) -> Table:
        """The series, the step, what is said of its entries, and its latents."""
        steps = longer.names_of_steps(self.asked.data, self.T)
        first = {"series": self.asked.names[self.series], "step": steps[self.at]}
        return Table({**first, **entries, **self.latents()})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the columns of a step."""
        found = self.asked.data.options.get("series_columns", ())
        return tuple(found) if len(found) == self.D else ("x",) if self.D == 1 else default_names(self.D)

    def _of_column(self, value: Tensor, d: int, place: bool) -> np.ndarray:
        data = self.asked.data
        if data.center is None or data.scale is None:
            return value.numpy()
        center, scale = (v.reshape(-1, self.D)[0, d] for v in (data.center, data.scale))
        return value.numpy() * scale + (center if place else 0.0)


def _draws_of_globals(run: Run, structure: Structure) -> list[dict[str, Tensor]]:
    """Some of the run's draws of the global latents, one of each; none where it lacks any."""
    names = [s.name for s in structure.global_latents]
    drawn = [run.draws.get(name.replace("/", "."), ()) for name in names]
    S = min(map(len, drawn), default=0)
    some = np.linspace(0, S - 1, min(S, MOST_GLOBALS)).round().astype(int)
    return [{n: torch.as_tensor(d[s]) for n, d in zip(names, drawn, strict=True)} for s in some]


def _said(mixture: Mixture | Average) -> dict[str, Tensor]:
    """Mean, standard deviation and quantiles [n, E] by their names."""
    mean, sd = mixture.moments()
    quantiles = {f"q{100 * p:g}": mixture.quantile(p) for p in QUANTILES}
    return {"mean": mean, "sd": sd, **{k: v for k, v in quantiles.items() if v is not None}}
