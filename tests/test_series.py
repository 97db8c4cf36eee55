"""Models of series: the textbook's recursions, published likelihoods, statsmodels' numbers kept as such."""

from __future__ import annotations

from dataclasses import replace

import chain_programs as chains
import kalman_programs as kalman
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from drawing import picture_of
from helpers import in_full, task_of
from kalman_programs import POSITIVE
from scipy import stats

from inference import infer, run
from inference._answers.mixture import Mixture
from inference._pictures._draw import subjects
from inference._pictures._views.scene import scene_of
from zoo._data import datasets
from zoo._errors import Refusal, UsageError


def series(emission: str, n: int = 3, T: int = 6, seed: int = 0) -> np.ndarray:
    """n series [n, T, 2] with holes, of which the last ends early."""
    rng = np.random.default_rng(seed)
    x = {
        "normal": rng.normal(size=(n, T, 2)) * [1, 3],
        "full": rng.normal(size=(n, T, 2)) @ [[1, 1], [0, 1]],
        "poisson": 1.0 * rng.poisson(4, (n, T, 2)),
        "bernoulli": 1.0 * rng.integers(0, 2, (n, T, 2)),
        "exponential": rng.exponential(size=(n, T, 2)),
        "categorical": 1.0 * rng.integers(0, 3, (n, T, 2)),
    }[emission]
    x[rng.random(x.shape) < 0.15] = np.nan
    x[-1, T - 2 :] = np.nan
    return x


def emitted(x: np.ndarray, theta: dict[str, np.ndarray], emission: str) -> np.ndarray:
    """log p(x_t | z_t) [n, T, K], by SciPy, each series and step."""
    K = len(theta["transitions"])
    out = np.zeros((*x.shape[:2], K))
    for *at, k in np.ndindex(out.shape):
        row = x[tuple(at)]
        seen = ~np.isnan(row)
        row, of = row[seen], {name: value[k] for name, value in theta.items() if name not in ("start", "transitions")}
        if not seen.any():
            continue
        if emission == "full":
            cov = of["scale_tril"] @ of["scale_tril"].T
            log_p = stats.multivariate_normal(of["locs"][seen], cov[np.ix_(seen, seen)]).logpdf(row)
        elif emission == "normal":
            log_p = stats.norm.logpdf(row, of["locs"][seen], of["scales"][seen]).sum()
        elif emission == "categorical":
            log_p = np.log([p[int(v)] for p, v in zip(of["probs"][seen], row, strict=True)]).sum()
        elif emission == "exponential":
            log_p = stats.expon.logpdf(row, scale=1 / of["rates"][seen]).sum()
        else:
            family = stats.poisson if emission == "poisson" else stats.bernoulli
            log_p = family.logpmf(row, of["rates" if emission == "poisson" else "probs"][seen]).sum()
        out[(*at, k)] = log_p
    return out


def check_forward_backward(emission: str, **options: object) -> None:
    x = series(emission)
    task = task_of("hidden_markov", x, states=3, emission=emission, **options)
    theta = {k: v.numpy() for k, v in task.theta().items()}
    A = theta["transitions"] = np.random.default_rng(1).dirichlet(np.ones(3), 3)
    if "start" not in theta:
        values, vectors = np.linalg.eig(A.T)
        theta["start"] = np.real(vectors[:, np.argmax(np.real(values))] / vectors[:, np.argmax(np.real(values))].sum())
    task.program.assign({k: torch.as_tensor(v) for k, v in theta.items() if k in task.theta()})
    found = {"p": theta["start"], "A": A}
    total, each, _ = chains.forward_backward(None, found, e=emitted(x, theta, emission))
    np.testing.assert_allclose(task.engine.per_datum(), total, rtol=1e-10)
    states = task.engine.marginals(task.engine.responsibilities())
    np.testing.assert_allclose(np.stack([states[f"z{t}"] for t in range(x.shape[1])], 1), each, atol=1e-9)


@pytest.mark.parametrize("emission", ["categorical", *in_full("normal", "full", "poisson", "bernoulli", "exponential")])
def test_every_emission_against_forward_and_backward(emission):
    check_forward_backward(emission)


@pytest.mark.full
def test_the_stationary_start_is_the_chains_own():
    check_forward_backward("poisson", initial="stationary")


@pytest.mark.full
@pytest.mark.parametrize(
    ("states", "initial", "published"),
    [(2, "stationary", 342.3183), (3, "stationary", 329.4603), (2, "free", 341.8787), (3, "free", 328.5275)],
)
def test_earthquakes_reach_the_published_likelihoods(states, initial, published):
    """Zucchini & MacDonald 2009, tables of section 3.2.4 and 4.2."""
    found = run("hidden_markov", "earthquakes", emission="poisson", states=states, initial=initial)
    assert abs(found.claimed.value + published) < 1e-4 and found.claimed.kind == "exact"
    assert abs(found.verified.value - found.claimed.value) < 1e-7 and found.fit.converged
    if (states, initial) == (2, "stationary"):
        np.testing.assert_allclose(np.sort(found.parameters["rates"][:, 0]), [15.472, 26.125], atol=2e-3)


def matrices(theta: dict[str, np.ndarray], kept: dict[str, np.ndarray], dynamics: str) -> tuple[np.ndarray, ...]:
    """A, Q, H, R and the first state's covariance and mean."""
    moves = theta.get("moves", kept.get("moves"))
    A = theta.get("transitions", kept.get("transitions"))
    H = theta.get("loadings", kept.get("loadings"))
    mean = theta.get("first", kept.get("begins"))
    return A, np.diag(moves**2), H, np.diag(theta["noise"] ** 2), np.diag(kept["begins_within"] ** 2), mean


@pytest.mark.parametrize("dynamics", ["trend", *in_full("level", "full")])
def test_dynamics_against_the_kalman_filter(dynamics):
    x = np.cumsum(np.random.default_rng(0).normal(size=(2, 8, 2)), 1) + np.array([3, -2])
    x[0, 2, 1] = x[0, 5] = x[1, 6:] = np.nan
    task = task_of("linear_state_space", x, dynamics=dynamics)
    theta = {k: v.numpy() for k, v in task.theta().items()}
    kept = {k: v.numpy() for k, v in task.program.module.named_buffers()}
    *model, mean = matrices(theta, kept, dynamics)
    A, _, H = model[:3]
    found, mu = [], mean
    for _ in range(x.shape[1]):  # what the first state's mean and d add to x
        found.append(H @ mu + theta.get("mean", 0.0))
        mu = A @ mu
    truth = [kalman.kalman(row - np.array(found), *model) for row in x]
    np.testing.assert_allclose(task.engine.per_datum(), [total for total, _ in truth], rtol=1e-9)
    means, deviations = task.engine.summary()
    for i, (_, kept_moments) in enumerate(truth):
        centre, spread = kalman.smooth(kept_moments, A)
        offsets = [np.linalg.matrix_power(A, t) @ mean for t in range(x.shape[1])]
        np.testing.assert_allclose(np.stack([means[f"z{t}"][i] for t in range(8)]), centre + offsets, atol=1e-7)
        np.testing.assert_allclose(np.stack([deviations[f"z{t}"][i] for t in range(8)]), spread, atol=1e-7)


@pytest.mark.full
def test_an_autoregression_against_the_dense_normal():
    x = np.random.default_rng(1).normal(size=(2, 7)) * 2 + 5
    x[1, 3] = np.nan
    task = task_of("linear_state_space", x, dynamics="ar", order=3)
    theta = {k: v.numpy() for k, v in task.theta().items()}
    L, scale = np.eye(7), np.full(7, theta["moves"][0])
    scale[:3] = np.nanstd(x)
    for t in range(3, 7):  # z_t − Σ a_k z_{t−k} is noise
        L[t, t - 3 : t] = -theta["coefficients"][::-1, 0]
    cov = np.linalg.inv(L) @ np.diag(scale**2) @ np.linalg.inv(L).T + np.eye(7) * theta["noise"] ** 2
    for row, log_p in zip(x, task.engine.per_datum(), strict=True):
        seen = ~np.isnan(row)
        truth = stats.multivariate_normal(np.full(7, theta["mean"][0])[seen], cov[np.ix_(seen, seen)]).logpdf(row[seen])
        assert abs(log_p - truth) < 1e-9


@pytest.mark.full
def test_the_nile_has_durbin_and_koopmans_variances():
    """15,099 and 1,469.1 with a diffuse first level (2012, §2.10); a weak one moves them a little."""
    found = run("linear_state_space", "nile")
    assert abs(found.parameters["noise"][0] ** 2 / 15099 - 1) < 2e-3
    assert abs(found.parameters["moves"][0] ** 2 / 1469.1 - 1) < 2e-3
    x = datasets.load("nile").x
    noise, moves = (found.parameters[k] ** 2 for k in ("noise", "moves"))
    spread = 10 * x.std()
    total, _ = kalman.kalman(
        x[0] - x.mean(), np.eye(1), np.diag(moves), np.eye(1), np.diag(noise), np.eye(1) * spread**2
    )
    assert abs(found.claimed.value - total) < 1e-7


def with_covariates() -> tuple[np.ndarray, np.ndarray]:
    """Levels y [2, 6] with holes that also follow a covariate, and x [2, 6, 2] of both."""
    rng = np.random.default_rng(4)
    u = 5 + 3 * rng.normal(size=(2, 6))
    y = 2 + np.cumsum(rng.normal(size=(2, 6)), 1) + 0.7 * u
    y[0, 2] = y[1, 4:] = np.nan
    return y, np.stack([y, u], 2)


def test_covariates_shift_what_is_seen_of_the_state():
    """log p(x) and the levels are those of the series less B u; no covariate is missing where a step is seen."""
    y, x = with_covariates()
    task = task_of("linear_state_space", x, covariates=1)
    standard = (x[..., 1] - x[..., 1].mean()) / x[..., 1].std()
    task.program.assign({**task.program.values(), "slopes": torch.full((1, 1), 1.7, dtype=torch.float64)})
    plain = task_of("linear_state_space", y)
    less = plain.program, torch.as_tensor(y - 1.7 * standard)
    truth = replace(plain, x=less[1]).engine
    np.testing.assert_allclose(task.engine.per_datum(), truth.per_datum(), rtol=1e-9)
    for found, expected in zip(task.engine.summary(), truth.summary(), strict=True):
        np.testing.assert_allclose(found["z3"], expected["z3"], atol=1e-7)
    made = task.program.trace(None, size=2).nodes["_RETURN"]["value"].detach()
    assert made.shape == x.shape
    np.testing.assert_allclose(made[..., 1], x[..., 1])
    hole = x.copy()
    hole[0, 1, 1] = np.nan
    with pytest.raises(UsageError, match=r"series 0, step 1 .* lacks a covariate"):
        task_of("linear_state_space", hole, covariates=1)
    with pytest.raises(UsageError, match="a column before 1 covariates"):
        task_of("linear_state_space", y, covariates=1)


@pytest.mark.full
def test_a_regression_with_a_level_is_statsmodels(tmp_path):
    """UnobservedComponents(y, "llevel", exog=u, mle_regression=True), the first level N(m, (10 s)²), in statsmodels 0.15."""
    rng = np.random.default_rng(0)
    u, T = rng.normal(size=60) * 3 + 5, 60
    y = np.cumsum(rng.normal(size=T) * 0.3) + 0.8 * u + rng.normal(size=T) * 0.5
    frame = pd.DataFrame({"y": y, "u": u})
    found = run("linear_state_space", frame, series=True, covariates="u", out=tmp_path / "run")
    assert abs(found.claimed.value + 62.265749822758785) < 1e-4 and found.claimed.kind == "exact"
    theta = [found.parameters["noise"][0] ** 2, found.parameters["moves"][0] ** 2, found.parameters["slopes"][0, 0]]
    np.testing.assert_allclose(theta, [0.296799, 0.034415, 2.092220], rtol=5e-3)
    assert found.predict(by_step=True).y.tolist() == pytest.approx(y.tolist())
    with pytest.raises(UsageError, match="the covariates of the next steps are not known"):
        found.predict(ahead=1)


@pytest.mark.full
@pytest.mark.parametrize("dynamics", ["level", "ar"])
def test_priors_on_a_state_space_are_integrated_out(dynamics):
    """log p(x) against draws of the parameters from their priors, and the program's priors are those that are said."""
    x = np.random.default_rng(5).normal(size=(1, 5)) + 3
    options = {"dynamics": dynamics, "priors": True, **({"order": 1} if dynamics == "ar" else {})}
    task = task_of("linear_state_space", x, **options)
    s, m = x.std(), x.mean()
    drawn = [task.program.trace(task.x).nodes for _ in range(2)]
    fns = {k: drawn[0][k]["fn"] for k in ("noise", "moves", *(("coefficients", "mean") if dynamics == "ar" else ()))}
    assert abs(float(fns["noise"].base_dist.scale) / (1.4 * s) - 1) < 1e-9
    assert abs(float(fns["moves"].base_dist.scale) / s - 1) < 1e-9
    if dynamics == "ar":
        assert (
            abs(float(fns["mean"].base_dist.loc) - m) < 1e-9 and abs(float(fns["mean"].base_dist.scale) / s - 2) < 1e-9
        )
        assert float(fns["coefficients"].base_dist.scale) == 1.0
    rng, S = np.random.default_rng(0), 20_000
    noise, moves = (np.abs(rng.normal(size=S)) * scale for scale in (1.4 * s, s))
    a, mean = (rng.normal(size=S), m + 2 * s * rng.normal(size=S)) if dynamics == "ar" else (np.ones(S), np.zeros(S))
    log_p, (at, P) = np.zeros(S), ((0.0, s**2) if dynamics == "ar" else (m, 100 * s**2))
    for value in x[0]:
        spread = P + noise**2
        log_p += stats.norm.logpdf(value, at + mean, spread**0.5)
        at, P = a * (at + P / spread * (value - at - mean)), a**2 * P * noise**2 / spread + moves**2
    weights = np.exp(log_p - log_p.max())
    truth, se = np.log(weights.mean()) + log_p.max(), weights.std() / weights.mean() / S**0.5
    found = run("linear_state_space", x, "importance", samples=2000, **options)
    assert abs(found.claimed.value - truth) < 5 * np.hypot(se, found.claimed.se) and found.claimed.kind == "estimate"


def test_series_that_no_model_can_have_made_are_refused():
    x = np.array([[1.0, 2.5, 3.0]])
    for model, options, data, words in (
        ("hidden_markov", {"emission": "poisson"}, x, "expects counts"),
        ("hidden_markov", {"emission": "bernoulli"}, x, "expects 0 and 1"),
        ("hidden_markov", {"emission": "full", "priors": True}, x, "no priors for emission=full"),
        ("hidden_markov", {}, x[None, None], "expects series"),
        ("linear_state_space", {"dynamics": "ar", "order": 3}, x, "more steps than order=3"),
        ("linear_state_space", {}, x[None, None], "expects series"),
        ("linear_state_space", {"dynamics": "full", "priors": True}, x, "may be rotated, so it has no priors"),
    ):
        with pytest.raises(UsageError, match=words):
            task_of(model, data, **options)


# ------------------------------------------------------------------------------------------------- tables of steps, forecasts


def steps_table() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    of = ["b"] * 6 + ["a"] * 4 + ["b"]
    return pd.DataFrame({"who": of, "height": 50 + 3 * rng.normal(size=11), "weight": 10 + rng.normal(size=11)})


def test_rows_of_a_table_become_steps():
    table = steps_table()
    one = datasets.load(table, series=True, drop="who,weight")
    assert one.x.shape == (1, 11) and one.options["series_columns"] == ["height"] and one.row_names is None
    found = datasets.load(table, series_by="who", standardize=True)
    assert found.x.shape == (2, 7, 2) and found.row_names == ("b", "a") and np.isnan(found.x[1, 4:]).all()
    b = table[table.who == "b"][["height", "weight"]].to_numpy()
    np.testing.assert_allclose(found.x[0] * found.scale + found.center, b)
    assert "4 to 7 steps" in found.warnings[0] and found.options["series_lengths"] == [7, 4]
    nile = datasets.load("nile")
    assert nile.x.shape == (1, 100) and (nile.columns[0], nile.columns[-1]) == ("1871", "1970")
    for wrong in ({"labels": "who"}, {"weights": "weight"}, {"rows": 2}):
        with pytest.raises(UsageError, match="series cannot be combined"):
            datasets.load(table, series=True, **wrong)
    with pytest.raises(UsageError, match="Expected True or False for series"):
        datasets.load(table, series="who")


@pytest.mark.full
def test_a_forecast_is_the_kalman_filters():
    """Of series of two columns and different lengths, with holes; in the data's own units."""
    found = run("linear_state_space", steps_table(), series_by="who", dynamics="trend", standardize=True, max_iter=5)
    assert found.request.command() is None and found.request.preparation["series_by"] == "who"
    ahead = found.predict(ahead=3)
    assert ahead.series.tolist() == ["b"] * 3 + ["a"] * 3 and ahead.step.tolist() == [7, 8, 9, 4, 5, 6]
    kept = {k: v.numpy() for k, v in found.program.module.named_buffers()}
    A, Q, H, R, first, mean = matrices(found.parameters, kept, "trend")
    for i, length in enumerate((7, 4)):
        x = np.full((10, 2), np.nan)
        x[:length] = found.x[i, :length]
        level = np.array([H @ np.linalg.matrix_power(A, t) @ mean for t in range(10)])
        moments = kalman.kalman(x - level, A, Q, H, R, first)[1]
        for h in range(3):
            m, P = moments[length + h][:2]
            center, sd = level[length + h] + H @ m, np.sqrt(np.diag(H @ P @ H.T + R))
            row = ahead.iloc[3 * i + h]
            for d, name in enumerate(("height", "weight")):
                scale, middle = found.scale[0, d], found.center[0, d]
                assert abs(row[f"{name}_mean"] - (center[d] * scale + middle)) < 1e-7
                assert abs(row[f"{name}_sd"] - sd[d] * scale) < 1e-6
                at = stats.norm(center[d] * scale + middle, sd[d] * scale).ppf([0.025, 0.25, 0.75, 0.975])
                np.testing.assert_allclose([row[f"{name}_q{q}"] for q in ("2.5", "25", "75", "97.5")], at, rtol=1e-7)
    steps = found.predict(by_step=True)
    assert len(steps) == 11 and steps.height.tolist() == [
        *steps_table().height[:6],
        *steps_table().height[[10, 6, 7, 8, 9]],
    ]


EMITTED = {
    "poisson": lambda theta, k: stats.poisson(theta["rates"][k, 0]),
    "normal": lambda theta, k: stats.norm(theta["locs"][k, 0], theta["scales"][k, 0]),
    "exponential": lambda theta, k: stats.expon(scale=1 / theta["rates"][k, 0]),
    "bernoulli": lambda theta, k: stats.bernoulli(theta["probs"][k, 0]),
}


@pytest.mark.parametrize("emission", in_full(*EMITTED))
def test_a_forecast_of_states_is_a_mixture(emission):
    x = series(emission, n=2, T=14)[..., 0]
    x[:, -1] = x[0, 0] if not np.isnan(x[0, 0]) else 1.0
    found = run("hidden_markov", x, emission=emission, states=2, max_iter=3, restarts=1)
    ahead, theta = found.predict(ahead=2), found.parameters
    e = emitted(x[..., None], theta, emission)
    _, each, _ = chains.forward_backward(None, {"p": theta["start"], "A": theta["transitions"]}, e=e)
    for i in range(2):
        p = each[i, -1]
        for h in range(2):
            p, row = p @ theta["transitions"], ahead.iloc[2 * i + h]
            of = [EMITTED[emission](theta, k) for k in range(2)]
            mean = sum(w * f.mean() for w, f in zip(p, of, strict=True))
            var = sum(w * (f.var() + f.mean() ** 2) for w, f in zip(p, of, strict=True)) - mean**2
            np.testing.assert_allclose([row["P(z=0)"], row.x_mean, row.x_sd], [p[0], mean, var**0.5], rtol=1e-8)
            for q in ("2.5", "25", "75", "97.5"):
                value, share = row[f"x_q{q}"], float(q) / 100
                here, before = (sum(w * f.cdf(v) for w, f in zip(p, of, strict=True)) for v in (value, value - 1))
                if emission in ("poisson", "bernoulli"):
                    assert here >= share > before
                else:
                    assert abs(here - share) < 1e-9


def test_quantiles_of_families_that_have_no_negative_numbers():
    """Their distribution functions say nothing of numbers outside their supports."""
    weights, at = torch.tensor([[0.3], [0.7]]).double(), torch.tensor([[0.4], [2.0]]).double()
    for fn, of in (
        (dist.Gamma(0.5, at), lambda v: stats.gamma(0.5, scale=1 / v)),
        (dist.LogNormal(at, 1.0), lambda v: stats.lognorm(1.0, scale=np.exp(v))),
        (dist.Uniform(at, at + 1), lambda v: stats.uniform(v, 1)),
    ):
        mixture = Mixture.of(fn, weights)
        for p in (0.025, 0.25, 0.975):
            value = float(mixture.quantile(p))
            assert value > 0 and abs(0.3 * of(0.4).cdf(value) + 0.7 * of(2.0).cdf(value) - p) < 1e-8


@pytest.mark.full
def test_categories_ahead_have_probabilities():
    x = series("categorical", n=2, T=10)[..., 0]
    x[:, -1] = 1.0
    found = run("hidden_markov", x, emission="categorical", max_iter=3)
    theta, ahead = found.parameters, found.predict(ahead=1)
    assert not [c for c in ahead if c.startswith("x_")]
    for i in range(2):
        states = ahead.loc[i, ["P(z=0)", "P(z=1)"]].to_numpy(float)
        np.testing.assert_allclose(
            ahead.loc[i, [f"P(x={c})" for c in range(3)]].to_numpy(float), states @ theta["probs"][:, 0]
        )


@pytest.mark.full
def test_what_has_no_forecast_is_refused():
    x = np.random.default_rng(0).normal(size=(6, 4))
    level = run("linear_state_space", x, max_iter=1)
    for wrong in (0, True, 1.5, "3"):
        with pytest.raises(UsageError, match="Expected a whole number from 1"):
            level.predict(ahead=wrong)
    with pytest.raises(UsageError, match="one of ahead and by_step"):
        level.predict(ahead=1, by_step=True)
    for program, why in (
        (grows_with_length, "changes where steps are added"),
        (reversed_in_time, "changes where steps are added"),
        (looks_back_at_data, "an entry of x that is missing"),
        ("gmm", "'gmm' says nothing of longer rows"),
    ):
        with pytest.raises(UsageError, match=why):
            run(program, x, max_iter=1).predict(ahead=2)
    hole = np.where(np.arange(4) == 3, np.nan, x)
    counts = np.random.default_rng(0).poisson(2, (6, 4)) * 1.0
    for found in (
        run(grows_with_length, x, "svi", epochs=2),  # the run's guide is not exact, what is ahead would be
        run(loud_at_the_end, hole, max_iter=1),  # nothing is seen of the step that changes
        run(counts_by_length, counts, "laplace", max_iter=2),
    ):
        with pytest.raises(UsageError, match="changes where steps are added"):
            found.predict(ahead=2)
    with pytest.raises(UsageError, match="has other latents where steps are added"):
        run(one_walk, counts, "laplace", max_iter=2).predict(ahead=1)
    level = run(shared_level, x, "svi", epochs=2)
    ahead = level.predict(ahead=2)
    assert ahead.columns.tolist()[2:4] == ["x_mean", "x_sd"] and ahead.attrs["posterior"] == "the exact posterior"
    with pytest.raises(UsageError, match="give preparations only with other data"):
        level.predict(ahead=2, rows=3)


@pytest.mark.full
def test_what_is_not_exact_is_forecast_by_the_program_from_its_last_states():
    """Against sums over a grid of both states; no method has looked at the steps ahead. Equal rows say more together."""
    x, many = np.array([[1.0, 6.0], [3.0, 0.0]]), 60
    found = run(counted_walk, x.repeat(many, 0), "importance", proposal="laplace", samples=1000, epochs=1)
    ahead = found.predict(ahead=2)
    assert ahead.attrs["posterior"].startswith("200 draws by the method importance") and len(ahead) == 4 * many
    z, near = np.linspace(-6, 6, 1201), 5 / (200 * many) ** 0.5
    for i, (first, second) in enumerate(x):
        log_p = stats.norm.logpdf(z)[:, None] + stats.norm.logpdf(z, 0.9 * z[:, None], 0.5)
        log_p += stats.poisson.logpmf(first, np.exp(z))[:, None] + stats.poisson.logpmf(second, np.exp(z))
        weights = np.exp(log_p - log_p.max()).sum(0)
        mean = np.average(z, weights=weights)
        for h in (1, 2):
            rows = ahead[(ahead.series // many == i) & (ahead.step == h + 1)]
            variance = 0.25 * sum(0.81**k for k in range(h))
            spread = (np.average((z - mean) ** 2, weights=weights) * 0.81**h + variance) ** 0.5
            rates, squares = np.exp(0.9**h * z + variance / 2), np.exp(2 * 0.9**h * z + 2 * variance)
            rate = np.average(rates, weights=weights)
            deviation = (np.average(squares, weights=weights) - rate**2) ** 0.5
            assert abs(rows.z_mean.mean() - 0.9**h * mean) < near * spread
            assert abs(rows.z_sd.mean() / spread - 1) < near
            assert abs(rows.x_mean.mean() - rate) < near * deviation
            assert abs((rows.x_sd**2 + rows.x_mean**2).mean() / (deviation**2 + rate**2 + rate) - 1) < 5 * near


@pytest.mark.full
def test_a_forecast_at_a_point_of_the_global_latents_says_so():
    x = np.random.default_rng(0).poisson(5, (2, 6)) * 1.0
    ahead = run("hidden_markov", x, emission="poisson", priors=True, method="em").predict(ahead=1)
    assert ahead.attrs["posterior"].startswith("the exact posterior, given ")


@pytest.mark.full
def test_a_forecast_is_averaged_over_draws_of_the_global_latents():
    """Against the dense normal, whose spread has the level that the series share; and the pool's moments and quantiles."""
    x, T = np.random.default_rng(0).normal(size=(1, 5)) + 2, 7
    found = run(walk_about_a_level, x, "laplace")
    drawn = found.draws["mu"][np.linspace(0, len(found.draws["mu"]) - 1, 50).round().astype(int)]
    ahead = found.predict(ahead=2)
    assert ahead.attrs["posterior"] == "the exact posterior, averaged over 50 draws of mu by laplace"
    variance = np.cumsum(0.25 ** np.arange(T))
    steps = np.arange(T)
    cov = variance[np.minimum.outer(steps, steps)] * 0.5 ** np.abs(np.subtract.outer(steps, steps)) + 0.25 * np.eye(T)
    weights = np.linalg.solve(cov[:5, :5], cov[:5, 5:]).T
    own = np.sqrt(np.diag(cov[5:, 5:] - weights @ cov[:5, 5:]))
    centers = drawn[:, None] + (x[0] - drawn[:, None]) @ weights.T  # [draws, 2], each draw's
    np.testing.assert_allclose(ahead.x_mean, centers.mean(0), atol=1e-6)
    np.testing.assert_allclose(ahead.x_sd, np.sqrt(own**2 + centers.var(0)), rtol=1e-5)
    for q in ("2.5", "75"):
        below = stats.norm.cdf(ahead[f"x_q{q}"].to_numpy(), centers, own).mean(0)
        np.testing.assert_allclose(below, float(q) / 100, atol=1e-5)
    whole = np.linalg.solve((cov + 9)[:5, :5], (cov + 9)[:5, 5:]).T
    spread = np.sqrt(np.diag((cov + 9)[5:, 5:] - whole @ (cov + 9)[:5, 5:]))
    assert np.all(np.abs(ahead.x_mean - whole @ x[0]) < 5 * centers.std(0) / 50**0.5)
    np.testing.assert_allclose(ahead.x_sd, spread, rtol=0.1)


def walk_about_a_level(x=None, size=None):
    """An autoregression about a level that all series share."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with user.rows(x, size):
        z = pyro.sample("z0", dist.Normal(mu, 1.0))
        for t in range(5 if x is None else x.shape[1]):
            z = pyro.sample(f"z{t}", dist.Normal(mu + 0.5 * (z - mu), 1.0)) if t else z
            pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=None if x is None else x[:, t])


@pytest.mark.full
def test_the_picture_of_a_series_and_of_no_series():
    x = np.r_[np.zeros(6), np.full(6, 9.0)] + np.random.default_rng(0).normal(size=12)
    scene = scene_of(run("hidden_markov", pd.DataFrame({"pulse": x}), series=True, max_iter=5))
    figure = picture_of("series", scene)
    data, states = figure.axes
    assert data.get_title(loc="left") == "pulse" and states.get_ylim() == (0, 1)
    assert len({tuple(c) for c in data.collections[0].get_facecolors()}) == 2
    level = scene_of(run("linear_state_space", pd.DataFrame({"pulse": x}), series=True, max_iter=2))
    assert set(subjects(level)) == {"series", "trace"}
    assert "series" not in subjects(scene_of(run("ppca", np.random.default_rng(0).normal(size=(20, 9)), max_iter=2)))


@pytest.mark.full
def test_methods_serve_series_or_say_why_not(tmp_path):
    x = np.random.default_rng(2).poisson(5, (2, 6)) * 1.0
    fitted = run("hidden_markov", x, emission="poisson", max_iter=20, restarts=1, out=tmp_path / "run")
    found = infer(fitted, "importance", proposal="sequential", samples=2000)
    assert abs(found.claimed.value - fitted.claimed.value) < 5 * found.claimed.se + 1e-9
    with pytest.raises(Refusal, match="nuts needs a continuous latent"):
        infer(fitted, "nuts")
    drawn = infer(fitted, "gibbs", sweeps=50)
    assert drawn.draws["z0"].shape[1:] == (2,)
    bayes = run("hidden_markov", x, emission="poisson", priors=True, method="laplace")
    assert {"start", "transitions", "rates"} <= set(bayes.parameters)


def looks_back_at_data(x=None, size=None):
    """x_t depends on x_{t−1}."""
    scale = pyro.param("scale", torch.tensor(1.0), constraint=POSITIVE)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(4 if x is None else x.shape[1]):
            loc = z + (x[:, t - 1] if t and x is not None else 0.0)
            pyro.sample(f"x{t}", dist.Normal(loc, scale), obs=None if x is None else x[:, t])


def grows_with_length(x=None, size=None):
    """The noise of all steps depends on how many there are."""
    T = 4 if x is None else x.shape[1]
    scale = pyro.param("scale", torch.tensor(1.0), constraint=POSITIVE)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(T):
            pyro.sample(f"x{t}", dist.Normal(z, scale * T), obs=None if x is None else x[:, t])


def reversed_in_time(x=None, size=None):
    """The walk ends, rather than begins, at its prior."""
    T = 4 if x is None else x.shape[1]
    scale = pyro.param("scale", torch.tensor(1.0), constraint=POSITIVE)
    with user.rows(x, size):
        z = pyro.sample(f"z{T - 1}", dist.Normal(0.0, 1.0))
        for t in reversed(range(T)):
            pyro.sample(f"x{t}", dist.Normal(z, scale), obs=None if x is None else x[:, t])
            if t:
                z = pyro.sample(f"z{t - 1}", dist.Normal(0.5 * z + 1.0, 0.7))


def shared_level(x=None, size=None):
    """One level for all steps of a series: what comes next is normal about it."""
    scale = pyro.param("scale", torch.tensor(1.0), constraint=POSITIVE)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(4 if x is None else x.shape[1]):
            pyro.sample(f"x{t}", dist.Normal(z, scale), obs=None if x is None else x[:, t])


def loud_at_the_end(x=None, size=None):
    """The last step, whichever it is, is noisier than the others."""
    T = 4 if x is None else x.shape[1]
    scale = pyro.param("scale", torch.tensor(1.0), constraint=POSITIVE)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(T):
            pyro.sample(f"x{t}", dist.Normal(z, 9 * scale if t == T - 1 else scale), obs=None if x is None else x[:, t])


def counts_by_length(x=None, size=None):
    """Counts of a rate that depends on how many steps there are."""
    T = 4 if x is None else x.shape[1]
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(T):
            pyro.sample(f"x{t}", dist.Poisson((z - T / 4).exp()), obs=None if x is None else x[:, t])


def one_walk(x=None, size=None):
    """All states are one latent."""
    T = 4 if x is None else x.shape[1]
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(T), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)


def counted_walk(x=None, size=None):
    """Counts of the exponential of an autoregression."""
    with user.rows(x, size):
        z = pyro.sample("z0", dist.Normal(0.0, 1.0))
        for t in range(2 if x is None else x.shape[1]):
            z = pyro.sample(f"z{t}", dist.Normal(0.9 * z, 0.5)) if t else z
            pyro.sample(f"x{t}", dist.Poisson(z.exp()), obs=None if x is None else x[:, t])
