"""References: what they are held against, posteriordb's format, and that a check finds what is wrong with a fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import in_full
from scipy import integrate, special, stats
from typer.testing import CliRunner

from benchmarks._references import cases, exactly, programs, reference, validate
from benchmarks._references.check import check
from benchmarks._references.moments import chains_of, numbered, of_draws
from benchmarks._references.reference import Reference, export, load
from inference._method.fit import Evidence, Fit
from zoo.__main__ import app
from zoo._errors import UsageError

POSTERIORS = sorted(programs.DATA)


def zoo(*arguments: str):
    return CliRunner().invoke(app, ["check", *arguments])


# ------------------------------------------------------------------------------------------------------------ references


def test_every_program_has_a_reference():
    assert set(cases.names()) == set(reference.bundled())


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_reference_is_held_against_what_is_not_its_own(name):
    """At m numbers the largest of m z-scores is allowed; and its own errors are small."""
    found = reference.of_name(name)
    m = found.moments
    assert len(set(m.names)) == len(m.names) and (m.sd > 0).all()
    assert (m.mcse_mean < 0.03 * m.sd).all() and (m.mcse_sd < 0.03 * m.sd).all()
    assert (abs(m.mean_square - m.mean**2 - m.sd**2) < 1e-7 * m.mean_square + 1e-4 * m.sd**2).all()  # 8 digits are kept
    assert found.validated or found.made["by"] in (validate.POSTERIORDB, validate.WEIGHED)
    for record in found.validated:
        most = stats.norm.isf(1e-4 / record["numbers"])
        assert max(record[f"largest_z_{what}"] for what in ("mean", "mean_square", "sd")) < most, record
        assert 0.9 < record["sd_ratios"][0] <= record["sd_ratios"][1] < 1.1


@pytest.mark.parametrize("name", sorted(set(cases.names()) - set(POSTERIORS)))
def test_a_maximum_is_that_of_another_package(name):
    found = reference.of_name(name)
    (record,) = found.validated
    assert abs(record["log_evidence"] - found.log_evidence["value"]) < 1e-6 * abs(record["log_evidence"])


@pytest.mark.full
def test_the_schools_by_another_quadrature():
    """SciPy's adaptive rule, over mu and tau."""
    y, error = programs.DATA["eight_schools"]().T

    def density(mu, tau):
        return np.exp(stats.norm.logpdf(y, mu, np.hypot(tau, error)).sum()) * stats.norm.pdf(mu, 0, 5)

    def prior(u):
        return 5 * np.tan(np.pi * u / 2)

    total = integrate.dblquad(lambda mu, u: density(mu, prior(u)), 0, 1, -30, 40, epsabs=0, epsrel=1e-4)[0]
    assert abs(np.log(total) - exactly.known("eight_schools").log_evidence) < 1e-3


@pytest.mark.full
def test_rats_by_a_sum_over_a_grid():
    """log p(x) with the lines integrated out as one normal of each rat's weights, over a grid of the three scales."""
    x, days = programs.DATA["rats"](), np.arange(-14.0, 15.0, 7.0)
    line = np.stack([np.ones(5), days], 1)
    center = line @ np.array([250.0, 6.0])
    shared = line @ np.diag([50.0**2, 3.0**2]) @ line.T  # of the mean of all rats
    axes = np.linspace(8, 26, 25), np.linspace(0.2, 1.1, 25), np.linspace(4.5, 8.5, 25)
    log_p = np.empty((25, 25, 25))
    for i, j, k in np.ndindex(25, 25, 25):
        a, b, s = axes[0][i], axes[1][j], axes[2][k]
        each = line @ np.diag([a**2, b**2]) @ line.T + s**2 * np.eye(5)
        of_mean = each / 30 + shared
        away = x - x.mean(0)
        gap = x.mean(0) - center
        log_p[i, j, k] = (
            -0.5 * np.einsum("nd,de,ne", away, np.linalg.inv(each), away)
            - 0.5 * gap @ np.linalg.solve(of_mean, gap)
            - 0.5 * (29 * np.linalg.slogdet(each)[1] + np.linalg.slogdet(of_mean)[1] + 5 * np.log(30))
            - 75 * np.log(2 * np.pi)
            + stats.halfnorm.logpdf(a, 0, 50)
            + stats.halfnorm.logpdf(b, 0, 3)
            + stats.halfnorm.logpdf(s, 0, 20)
        )
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    assert abs(special.logsumexp(log_p) + np.log(cell) - exactly.known("rats").log_evidence) < 0.02


# ------------------------------------------------------------------------------------------------------------ posteriordb


def fit_of(draws: np.ndarray, **given) -> Fit:
    """A fit with draws [C, S] of `a` and [C, S, 2] of `b`."""
    C, S = draws.shape[:2]
    b = np.stack([draws, 2 * draws], -1).reshape(C * S, 2)
    return Fit({}, None, draws={"a": draws.reshape(C * S), "b": b}, chains={"lp": draws}, **given)


def test_posteriordbs_files_are_written_and_read(tmp_path):
    fit = fit_of(np.random.default_rng(0).normal(1.0, 2.0, (4, 300)))
    whole = of_draws(*numbered(chains_of(fit)))
    draws, mean, square = export(fit, tmp_path / "pdb", "mine")
    assert whole.names == ["a", "b[1]", "b[2]"]
    chains = json.loads(draws.read_text(encoding="utf-8"))
    assert len(chains) == 4 and len(chains[0]["b[2]"]) == 300
    for found in (load(draws), load(mean, square)):
        np.testing.assert_allclose(found.moments.mean, whole.mean)
        np.testing.assert_allclose(found.moments.mcse_mean_square, whole.mcse_mean_square)
        np.testing.assert_allclose(found.moments.sd, whole.sd)
    with zipfile.ZipFile(tmp_path / "mine.json.zip", "w") as archive:
        archive.write(draws, "mine.json")
    np.testing.assert_allclose(load(tmp_path / "mine.json.zip").moments.mean, whole.mean)
    assert np.isnan(load(mean).moments.sd).all()


def test_posteriordbs_own_files():
    folder = reference.FOLDER / "posteriordb"
    found = load(folder / "gp_pois_regr.mean_value.json", folder / "gp_pois_regr.mean_squared_value.json").moments
    assert found.names[0] == "rho" and abs(found.mean[0] - 5.6665) < 1e-3
    assert abs(found.sd[0] - 25**0.5 / 4 * 0.55) < 0.1  # well within the prior's


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"a": [1], "b": [1, 2]}]', '{"names": ["a"], "mean_value": [1]}', "3"]
)
def test_what_is_no_reference_is_said_to_be_none(text, tmp_path):
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="Expected a reference posterior"):
        load(tmp_path / "file.json")


# ---------------------------------------------------------------------------------------------------------------- checks


def truth(**given) -> Reference:
    draws = np.random.default_rng(1).normal(size=(4, 5000))
    return Reference("it", of_draws(*numbered(chains_of(fit_of(draws)))), **given)


def walked(scale: float = 1.0, shift: float = 0.0, size: int = 1000, stay: float = 0.0) -> np.ndarray:
    """Four chains of N(shift, scale²), each draw correlated with the one before."""
    rng = np.random.default_rng(2)
    noise, out = rng.normal(size=(4, size)), np.empty((4, size))
    out[:, 0] = noise[:, 0]
    for s in range(1, size):
        out[:, s] = stay * out[:, s - 1] + (1 - stay**2) ** 0.5 * noise[:, s]
    return shift + scale * out


@pytest.mark.parametrize(
    ("draws", "verdict"),
    [
        (walked(), "agrees"),
        (walked(scale=1.05), "agrees"),
        (walked(scale=0.8), "differs"),
        (walked(scale=1.25), "differs"),
        (walked(shift=0.3), "differs"),
        (walked(size=20), "too few draws"),
        (walked(stay=0.99), "too few draws"),  # 4,000 draws that are worth 20
    ],
)
def test_what_a_fit_says_is_judged(draws, verdict):
    found = check(truth(), fit_of(draws), "mine")
    assert found.verdict == verdict
    assert verdict.split()[0] in found.sentence()
    if verdict == "differs":
        assert "'" in found.sentence() and found.worst.wrong > 1


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (Evidence(-5.0, 0.0, "exact"), "agrees"),
        (Evidence(-5.01, 0.0, "exact"), "differs"),
        (Evidence(-5.1, 0.05, "estimate"), "agrees"),
        (Evidence(-5.5, 0.05, "estimate"), "differs"),
        (Evidence(-9.0, 0.05, "lower bound"), "agrees"),
        (Evidence(-4.5, 0.05, "lower bound"), "differs"),
        (Evidence(-4.5, None, "estimate"), "agrees"),  # not judged: it has no error
        (Evidence(-4.0, 0.0, "exact", given="the posterior mode of a"), "agrees"),  # of something else
    ],
)
def test_evidence_is_judged_by_its_kind(evidence, verdict):
    known = truth(log_evidence={"value": -5.0, "se": 0.0, "how": "closed form"})
    assert check(known, fit_of(walked()), "mine", [None, evidence]).verdict == verdict


def test_a_point_is_not_compared():
    found = check(truth(), Fit({"a": np.array(0.0)}, None), "mine")
    assert found.verdict == "nothing to compare" and found.left_out == ["a", "b"]


def test_resampled_draws_are_worth_what_their_weights_were():
    draws = np.random.default_rng(0).normal(size=(1, 2000))
    fit = Fit({}, None, draws={"a": draws[0]}, notes={"effective_draws": 50.0})
    assert check(truth(), fit, "mine").verdict == "too few draws"


# --------------------------------------------------------------------------------------------------------------- command


def test_the_command_in_words_and_in_json():
    found = zoo("normal_normal", "--method", "laplace")
    assert found.exit_code == 0 and "laplace agrees with normal_normal" in found.output
    document = json.loads(zoo("beta_binomial", "--method", "laplace", "--json").stdout)
    assert document["verdict"] == "agrees" and document["log_evidence"]["agrees"] is None


def test_another_program_is_found_out(tmp_path):
    """The reference of a mean with prior sd 3, for a program whose prior says otherwise."""
    source, other = Path(programs.__file__).read_text(encoding="utf-8"), tmp_path / "other.py"
    other.write_text(source.replace('"mu", dist.Normal(1.0, 3.0)', '"mu", dist.Normal(-9.0, 1.0)'), encoding="utf-8")
    np.save(tmp_path / "x.npy", programs.DATA["normal_normal"]())
    arguments = [f"{other}:normal_normal", "--data", str(tmp_path / "x.npy"), "--method", "laplace"]
    known = ["--reference", str(reference.FOLDER / "normal_normal.json")]
    found = zoo(*arguments, *known)
    assert found.exit_code == 1 and "differs" in found.output
    refused = zoo(*arguments)
    assert refused.exit_code == 2 and "give --reference FILE" in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expects a MODEL"),
        (("gmm", "--data", "wine"), "there is no reference"),
        (("gmm",), "expects --data"),
        (("gmm-faithful", "--set", "components=3"), "of its own data and options"),
        (("gmm-faithful", "--standardize"), "of its own data and options"),
        (("rats", "--standardize"), "of its own data and options"),
        (("rats", "--all"), "nothing else"),
        (("rats", "--reference", "nowhere.json"), "there is no file"),
        (("rats", "--method", "gibbs"), "gibbs"),
    ],
)
def test_what_cannot_be_checked(arguments, said):
    found = zoo(*arguments)
    assert found.exit_code == 2 and said in found.output


@pytest.mark.full
def test_nuts_agrees_and_its_run_is_exported(tmp_path):
    found = zoo("normal_normal", "--export", str(tmp_path / "pdb"))
    assert found.exit_code == 0, found.output
    again = zoo(
        "normal_normal", "--method", "laplace", "--reference", str(tmp_path / "pdb" / "normal_normal.draws.json")
    )
    assert again.exit_code == 0, again.output


@pytest.mark.full
def test_a_model_of_the_zoo_at_its_maximum():
    found = zoo("gmm", "--data", "faithful", "--set", "restarts=3")
    assert found.exit_code == 0 and "log p(x) +0.0000" in found.output.replace("-0.0000", "+0.0000")
    worse = zoo("gmm", "--data", "faithful", "--set", "start=random", "--set", "max_iter=2")
    assert worse.exit_code == 1


@pytest.mark.parametrize("name", ["ppca-wine", *in_full("gmm-faithful", "factor_analysis-wine")])
def test_a_reference_is_found_by_its_name(name):
    found = zoo(name, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["reference"] == name
