"""Whether all continuous latents, global and local, are jointly normal with the data: then the global ones can be integrated
out exactly. Proved from the operations, as for the local ones alone (`curvature`), and measured besides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo._program.axes import Axes
from zoo._program.program import Program
from zoo._program.trace import (
    Node,
    drawn_in_full,
    family_name,
    global_log_prob,
    is_discrete,
    is_latent,
    is_masked,
    is_plain,
    is_real,
    local_log_prob,
    sample_nodes,
    support_of,
)
from zoo._reading.curvature import NORMAL
from zoo._reading.operations import OTHER
from zoo._reading.sites import read

SIZES = (7, 5)  # rows of two readings
TOLERANCE = 1e-9
STEPS = (1.0, 10.0, 100.0)  # of a line, in units of the distance of two draws
LINES = 4


def not_jointly_normal(program: Program, probe: Tensor, nodes: Sequence[Node], axes: Axes) -> str:
    """What keeps the latents of a program, exact given its global ones, from being jointly normal; "" where nothing does."""
    latent = [n for n in nodes if is_latent(n)]
    for node in latent:
        name, family = node["name"], family_name(node["fn"])
        if is_discrete(node["fn"]):
            return f"the latent '{name}' is discrete"
        if not is_real(support_of(node["fn"])):
            return f"the latent '{name}' ({family}) does not range over all real numbers"
        if not is_plain(node) or is_masked(node):
            return f"the latent '{name}' has a mask or a scale"
    if program.completes:
        return "missing entries are latents of the program"
    names = frozenset(n["name"] for n in latent)
    for size in SIZES:
        rows = probe[: min(size, len(probe))].nan_to_num(0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(size)
            drawn = {n["name"]: drawn_in_full(n) for n in sample_nodes(program.trace(rows, raw=True)) if is_latent(n)}
        reading = read(program, rows, drawn, axes.data_dim, names)
        if reading.detached:
            return f"a latent is detached at {reading.detached}"
        for node in nodes:
            site, family = reading.sites.get(node["name"]), family_name(node["fn"])
            if site is None or (site.degree == OTHER or (site.degree == 2 and family not in NORMAL)):
                by = f", {site.curved_by}," if site is not None and site.curved_by else ""
                return f"site '{node['name']}' ({family}){by} is not Gaussian in them"
    away = _bent(program, probe, axes)
    return "" if away <= TOLERANCE else f"log p(x, z) bends by {away:.1e} of itself along random lines"


def _bent(program: Program, probe: Tensor, axes: Axes) -> float:
    """How far log p(x, z) is from a quadratic along random lines through all latents: its third differences, relative."""
    if program.dtype != torch.float64:
        program = copy.deepcopy(program).double()
        program.dtype = torch.float64
    rows, worst = probe.double(), 0.0

    def log_joint(latents: dict[str, Tensor]) -> float:
        trace = program.trace(rows, latents=latents)
        total = local_log_prob(trace, axes.data_dim, len(rows)).sum() + global_log_prob(trace)
        return float(total.detach())

    for line in range(LINES):
        ends = []
        for seed in (2 * line, 2 * line + 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                ends.append({n["name"]: drawn_in_full(n) for n in sample_nodes(program.trace(rows)) if is_latent(n)})
        for step in STEPS:
            f = [log_joint({k: v + i * step * (ends[1][k] - v) for k, v in ends[0].items()}) for i in range(4)]
            third = f[3] - 3 * f[2] + 3 * f[1] - f[0]
            worst = max(worst, abs(third) / max(1e-30, sum(map(abs, f))))
    return worst if math.isfinite(worst) else math.inf
