"""Which exact engine serves a program."""

from __future__ import annotations

from torch import Tensor

from inference._exact._chains.engine import Chains
from inference._exact._chains.sites import graph
from inference._exact._sums.elimination import Elimination
from inference._exact.compressed import Compressed, worth_it
from inference._exact.conjugate_engine import ConjugateEngine
from inference._exact.engine import AnyEngine
from inference._exact.enumeration import Enumeration
from inference._exact.latent_program import LatentProgram
from inference._exact.linear import LinearGaussian
from inference._exact.linear_model import site_data
from inference._exact.quadratic import Quadratic
from zoo._program.program import Program
from zoo._program.structure import Structure

LEAST_NUMBERS = 32  # of z, from which on elimination along the graph may pay
SAVING = 8  # times fewer products than a dense solution


def engine_for(program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> AnyEngine | None:
    """The engine of `program` for the data `x` [N, …], NaN where unobserved; None where its posterior is not exact.

    `weights` [N]: how many times each row counts; None: once each.
    """
    if not structure.is_exact:
        return None
    if structure.enumerable:
        return Enumeration(program, structure, x, weights)
    if structure.eliminable:
        return Elimination(program, structure, x, weights)
    if structure.conjugate:
        return ConjugateEngine(program, structure, x, weights)
    sparse = sparse_engine(program, structure, x, weights)
    if sparse is not None:
        return sparse
    engine = normal_engine(program, structure, x, weights)
    if isinstance(engine, LinearGaussian) and worth_it(engine):
        return Compressed(program, structure, x, engine.data, weights)
    return engine


def normal_engine(
    program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None
) -> LinearGaussian | Quadratic:
    """The engine of a program with normal latents, over the data themselves: by matrix products where rows are alike."""
    data = site_data(LatentProgram(program, structure, x, weights))
    if data is None:
        return Quadratic(program, structure, x, weights)
    return LinearGaussian(program, structure, x, data, weights)


def sparse_engine(
    program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None, backwards: bool = False
) -> Chains | None:
    """The engine of a program whose normal latents meet few others each; None where a dense solution costs no more, or the
    sites as they are read do not have the program's own density."""
    latent = LatentProgram(program, structure, x, weights)
    if latent.L < LEAST_NUMBERS or (found := graph(latent)) is None:
        return None
    engine = Chains(program, structure, x, found, weights, backwards)
    return engine if SAVING * engine.steps.products() <= engine.L**3 and engine.agrees() else None
