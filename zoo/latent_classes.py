"""Latent classes: a mixture for tables of mixed columns, such as answers, counts and measurements.

Generative story (Lazarsfeld & Henry 1968; McCutcheon 1987; columns of mixed types: Vermunt & Magidson 2002):

    z_i ~ Categorical(π)                          which class
    x_id | z_i = k ~ Categorical(p_kd)            a column of categories, coded by any numbers
                   | Bernoulli(p_kd)              of 0 and 1
                   | Poisson(λ_kd)                of counts
                   | N(μ_kd, σ_kd²)               of measurements

Given the class, the columns are independent. `types=auto` takes a column of 0 and 1 for Bernoulli; one of at most ten
different whole numbers, each five times as a rule, for categories; one of other whole numbers from 0 on for counts, where
its variance is what counts have: at least its mean, as in every mixture of Poissons, and at most ten times that; any other
for normal. Which type each column got is said in a warning: name the types to overrule it.

With `priors=True` the parameters are global latents with priors that are conjugate to each column: π ~ Dirichlet(2, …, 2),
p_kd ~ Dirichlet(1 + 1/C, …) or Beta(3/2, 3/2), which count as one more row for each class (Galindo-Garre & Vermunt 2006),
λ_kd ~ Gamma(2, 2 / m_d), μ_kd ~ N(m_d, (2 s_d)²) and σ_kd² ~ InverseGamma(2, s_d²), by the data's means m and standard
deviations s. None lets a class collapse, or a probability end at 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from zoo._data.kinds import Type, told, types_of
from zoo._errors import UsageError
from zoo._options import Count
from zoo._program.parameters import WithPriors

MEANS = {"categorical": "probs_", "bernoulli": "probs", "poisson": "rates", "normal": "locs"}
SUPPORTS = {
    "categorical": constraints.simplex,
    "bernoulli": constraints.unit_interval,
    "poisson": constraints.positive,
    "normal": constraints.real,
}


class Model(WithPriors):
    """`Model(x, classes=2, types="auto", priors=False)` for x [n, D]; categories are coded by any numbers, such as 1 and 2.

    - `classes`: how many.
    - `types`: one for all columns, or one for each: auto, categorical, bernoulli, poisson or normal.
    - `priors`: draw the parameters from weak priors, so that they have a posterior.

    The columns of one type are one site; those of C categories are the site `categorical_C`. Parameters (shapes): `weights`
    [K]; `probs_C` [K, D_C, C] for the categories in ascending order of their codes; `probs` [K, D_b]; `rates` [K, D_p];
    `locs` and `scales` [K, D_n]; with priors `variances` in place of scales.

    Raises `UsageError` for a column that does not fit its type; one for categories or normal has to vary.
    """

    many_optima = True  # of the likelihood: methods that climb it start several times

    def __init__(
        self, x: Tensor, *, classes: Count = 2, types: tuple[Type, ...] = ("auto",), priors: bool = False
    ) -> None:
        super().__init__()
        if x.dim() != 2:
            raise UsageError(f"latent_classes expects a 2-D table (n × D), got shape {tuple(x.shape)}.")
        if classes > len(x):
            raise UsageError(
                f"latent_classes expects at most as many classes as rows, got classes={classes} for {len(x)} rows."
            )
        self.K, self.priors, self.sites = classes, priors, list[str]()
        kinds, levels = types_of(x, types)
        self.notes = [told(kinds)] if "auto" in types else []
        self.begin("weights", torch.full((classes,), 1.0 / classes), constraints.simplex)
        order = []
        for site in dict.fromkeys(kinds):
            columns = [d for d, kind in enumerate(kinds) if kind == site]
            order += columns
            self.sites.append(site)
            self.register_buffer(f"{site}_columns", torch.tensor(columns))
            if site.startswith("categorical"):
                self.register_buffer(f"{site}_levels", torch.stack([levels[d] for d in columns]))  # [D_C, C]
            self._parameters_of(site, self._values(site, x))
        self.register_buffer("places", torch.tensor(order).argsort())  # of the columns among all sites' side by side

    def _parameters_of(self, site: str, values: Tensor) -> None:
        """Each class's means start halfway between those of all rows and the values of one row."""
        K, n = self.K, len(values)
        rows = torch.linspace(0, n - 1, K).round().long().clamp(max=n - 1)
        family, _, categories = site.partition("_")
        if categories:  # the share of each
            each = 1.0 * (values.unsqueeze(-1) == torch.arange(int(categories)))
            values = torch.where(values.isnan().unsqueeze(-1), torch.nan, each)  # [n, D_C, C]
        mean = values.nanmean(0).nan_to_num(0.5)
        start = 0.5 * (mean + torch.where(values[rows].isnan(), mean, values[rows]))  # [K, D_site] or [K, D_C, C]
        if family in ("bernoulli", "poisson"):  # off the border, where a column has one value
            start = start.clamp(0.01, 0.99 if family == "bernoulli" else None)
        self.begin(MEANS[family] + categories, start, SUPPORTS[family])
        if family == "normal":
            spread = (values - mean).square().nanmean(0).sqrt()
            self.begin(
                "variances" if self.priors else "scales", spread.repeat(K, 1) ** (1 + self.priors), constraints.positive
            )
        self.register_buffer(f"{site}_mean", mean.clamp(min=0.01) if family == "poisson" else mean)

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name == "weights" or name.startswith("probs_"):
            ones = torch.ones_like(start)
            return dist.Dirichlet(2 * ones if name == "weights" else ones + 1 / ones.shape[-1]).to_event(
                start.dim() - 1
            )
        if name == "probs":
            return dist.Beta(torch.full_like(start, 1.5), 1.5).to_event(2)
        if name == "rates":
            return dist.Gamma(2.0, 2 / self._get("poisson_mean").expand(start.shape)).to_event(2)
        variance = self._get("variances_start")
        if name == "variances":
            return dist.InverseGamma(2.0, variance).to_event(2)
        return dist.Normal(self._get("normal_mean"), 2 * variance.sqrt()).to_event(2)

    def _get(self, name: str) -> Tensor:
        return getattr(self, name)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` rows. Returns x [n, D], categories as they were coded."""
        drawn, theta = {}, self.theta()
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(theta["weights"]))  # [n]
            for site in self.sites:
                seen = None if x is None else self._values(site, x)
                drawn[site] = pyro.sample(site, self._columns(site, z, theta), obs=seen)  # [n, D_site]
        return self._table(drawn, theta["weights"].dtype) if x is None else x

    def _columns(self, site: str, z: Tensor, theta: Mapping[str, Tensor]) -> dist.TorchDistribution:
        family, _, categories = site.partition("_")
        mean = theta[MEANS[family] + categories][z]
        if family == "categorical":
            return dist.Categorical(mean).to_event(1)
        if family == "bernoulli":
            return dist.Bernoulli(mean).to_event(1)
        if family == "poisson":
            return dist.Poisson(mean).to_event(1)
        scales = theta["variances"].sqrt() if self.priors else theta["scales"]
        return dist.Normal(mean, scales[z]).to_event(1)

    def _values(self, site: str, x: Tensor) -> Tensor:
        """The site's columns of x [n, D_site]; categories by number from 0, and −1 for a code that was not known."""
        x = x[:, self._get(f"{site}_columns")]
        if not site.startswith("categorical"):
            return x
        number = x.masked_fill(~x.isnan(), -1.0)
        for category, code in enumerate(self._get(f"{site}_levels").mT):
            number = number.masked_fill(x == code, category)
        return number

    def _table(self, drawn: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The sites' values as one table [n, D]."""
        parts = []
        for site, value in drawn.items():
            if site.startswith("categorical"):
                levels = self._get(f"{site}_levels")
                value = levels[torch.arange(len(levels)), value.long()]
            parts.append(value.to(dtype))
        return torch.cat(parts, -1)[..., self.places]
