"""README.txt of a run folder: what is what, in which units, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference._answers.rows import NAMES, Rows

WIDTH = 16
MOST_UNITS = 50  # columns whose centre and scale are written out


@dataclass(frozen=True)
class About:
    """What there is to explain."""

    document: Mapping[str, Any]  # run.json
    columns: tuple[str, ...]  # of rows.csv
    rows: Rows
    rows_left_out: bool  # rows.csv would be too large
    large: Sequence[str] = ()  # parameters too large for parameters.csv


def text(about: About) -> str:
    """The whole file."""
    said = about.document
    lines = [
        f"{said['model']} on {said['data']} by {said['method']}, seed {said['seed']}: {said['n']:,} rows.",
        *_evidence(said),
        "",
        "FILES",
        *_entry("run.json", "what was asked for and what was found: evidence, options, warnings, versions"),
        *_entry("parameters.csv", _parameters(about)),
        *_entry("rows.csv", "what is known of each row, in ten digits; its columns are explained below"),
        *_entry("fit.nc", _arrays(said)),
        *_entry("state.safetensors", "the program's parameters and the guide's, as torch holds them"),
        "",
        *_rows(about),
        "",
        *_units(said),
        "",
        "LOADING IT",
        "  from latent_zoo import load",
        "  run = load('this folder')                # the same object that made the folder",
        "  run.parameters.to_frame()                # parameters.csv",
        "  run.predict(new), run.score(new)         # rows.csv and log p(x) of new rows (a table with the same columns)",
        "  run.sample(100), run.impute(new)         # rows from the program; what is missing in new rows",
        "  pandas.read_csv('rows.csv')              # or any other program that reads CSV (UTF-8, commas)",
        "  zoo predict RUN --data new.csv           # the same on the command line; also zoo score, sample, impute, plot",
    ]
    return "\n".join(lines) + "\n"


def _evidence(said: Mapping[str, Any]) -> list[str]:
    out = []
    for what, name in (("log p(x)", "log_evidence"), ("verified", "verified_log_evidence")):
        if (found := said[name]) is not None and found["value"] is not None:
            error = f" ± {found['se']:.3f}" if found["se"] else ""
            given = f", given {found['given']}" if found.get("given") else ""
            out.append(f"{what} = {found['value']:.3f}{error} nats ({found['kind']}{given}).")
    return out


def _entry(name: str, what: str) -> list[str]:
    return [f"  {name:<{WIDTH}} {what}"] if len(name) < WIDTH else [f"  {name}", f"  {'':<{WIDTH}} {what}"]


def _parameters(about: About) -> str:
    out = "name, index of the entry (a column of the data by its name), estimate; where known: se (standard error), sd and"
    out += "\n" + " " * (WIDTH + 3) + "lower, upper (of the posterior draws: their standard deviation and central 95%)"
    if about.large:
        out += "\n" + " " * (WIDTH + 3) + f"left out, being large: {', '.join(about.large)} (they are in fit.nc)"
    return out


def _arrays(said: Mapping[str, Any]) -> str:
    out = "all arrays, in ArviZ's schema (netCDF): posterior, sample_stats, observed_data, …"
    kept = said["notes"].get("stored")
    return out + (f"\n{'':<{WIDTH + 3}}it holds {kept}, to stay near the size of the data" if kept else "")


def _rows(about: About) -> list[str]:
    if about.rows_left_out:
        return [
            "THE COLUMNS OF ROWS",
            "  rows.csv was not written, being large; `zoo predict RUN` writes it. Its columns:",
            *_explained(about),
        ]
    return ["THE COLUMNS OF rows.csv", *_explained(about)]


def _explained(about: About) -> list[str]:
    rows, columns = about.rows, about.columns
    what = {
        "exact": "log p(x_i) in nats, exact",
        "lower bound": "a lower bound of log p(x_i) in nats: its expectation lies below it",
        "estimate": "an estimate of log p(x_i) in nats; _se: its standard error",
        "upper bound": "an upper bound of log p(x_i) in nats: its expectation lies above it",
    }
    out = [*_entry("row", "the row's name, else its number, counting from 0")]
    if rows.log_p is not None:
        out += _entry(NAMES[rows.kind], what[rows.kind] + (f", given {rows.given}" if rows.given else ""))
    for site in rows.probabilities:
        out += _entry(site, "the most probable state of this latent, numbered from 0")
        out += _entry(f"{site}_probability", "the probability of that state")
        out += _entry(f"P({site}=k)", "the probability of state k")
    for site in rows.means:
        out += _entry(
            f"{site}_mean, _sd", "mean and standard deviation of this latent, one column for each of its numbers"
        )
    if rows.probabilities or rows.means:
        out.append(f"  Probabilities, means and sds are of the posterior of each row: {rows.source}.")
    if "khat" in columns:
        out += _entry("khat", "Pareto k-hat: above 0.7 the row's importance weights cannot be trusted")
    if "ess" in columns:
        out += _entry("ess", "effective sample size of the row's importance weights")
    return out


def _own_units(said: Mapping[str, Any]) -> list[str]:
    """What holds for programs that scale the data themselves, or that read some columns and do not model them."""
    return [
        f"  If the program scales the data itself (`zoo help {said['model'].partition(':')[0]}` says so), its parameters are",
        "  in units of its own. Covariates have no density: their log(scale) does not count.",
    ]


def _units(said: Mapping[str, Any]) -> list[str]:
    center, scale = said["center"], said["scale"]
    if center is None:
        return [
            "UNITS",
            "  Parameters, latents and log p(x) are in the units of the data as they were given to the method.",
            *_own_units(said),
        ]
    out = [
        "UNITS",
        "  The data were standardized: parameters, latents and log p(x) are of (x - centre) / scale. For log p(x_i) in the",
        "  data's own units subtract the sum of log(scale) over the columns that are observed in the row. `sample` and",
        "  `impute` give the data's own units.",
        *_own_units(said),
    ]
    names = said["columns"]
    if names and len(names) <= MOST_UNITS and len(names) == len(center):
        out += [f"  {'column':<24} {'centre':>16} {'scale':>16}"]
        out += [f"  {n:<24} {c:>16.10g} {s:>16.10g}" for n, c, s in zip(names, center, scale, strict=True)]
    else:
        out += ["  Centre and scale are in run.json."]
    return out
