"""The priors of global latents, as an M-step asks for them: which are the same whatever θ and the other globals are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference._exact.engine import Values
from inference._families._family import Family
from inference._families._prior import has_mode
from inference._families._registry import base_of
from zoo._program.program import Program
from zoo._program.trace import global_log_prob, is_plain, node_of, support_of


def fixed(
    program: Program, x: Tensor, globals: Values
) -> tuple[dict[str, Distribution], dict[str, Constraint]]:
    """Global latent → its prior where that depends on nothing, without what is wrapped around it; and all their supports."""
    leaves = {n: v.detach().clone().requires_grad_() for n, v in {**program.values(), **globals}.items()}
    if not globals:
        return {}, {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        trace = program.trace(x[:2], parameters=_but(leaves, globals), latents={n: leaves[n] for n in globals})
        nodes = {n: node_of(trace, n) for n in globals}
        supports = {n: support_of(node["fn"]) for n, node in nodes.items()}
        still = [
            n
            for n, node in nodes.items()
            if is_plain(node) and not node["fn"].log_prob(node["value"].detach()).requires_grad
        ]
    return {n: base_of(nodes[n]["fn"]) for n in still}, supports


def of_priors(program: Program, x: Tensor, leaves: Values, globals: Values) -> Tensor:
    """Σ log p of the sites outside the rows, of which only what their distributions depend on can be differentiated."""
    trace = program.trace(x[:2], parameters=_but(leaves, globals), latents={n: leaves[n] for n in globals})
    return global_log_prob(trace, values=False)


def serves(family: Family, name: str, prior: Distribution) -> bool:
    """Whether the most probable value of a family's parameter, or a form of it, has a closed form under this prior."""
    return type(prior) in family.priors.get(name, ()) and has_mode(prior)


def _but(leaves: Values, names: Mapping[str, object]) -> dict[str, Tensor]:
    return {n: v for n, v in leaves.items() if n not in names}
