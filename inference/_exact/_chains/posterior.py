"""The posterior of many normal latents of which each meets few others: a chain, a tree, several chains.

The same posterior as that of `LinearGaussian` and `Quadratic`, found by elimination along the graph of parents: for T steps of
L numbers O(T L³), where a dense solution takes O(T³ L³). Rows may differ in their parameters and in what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact._chains import solve
from inference._exact._chains.banded import Band, band
from inference._exact._chains.plan import best_plan
from inference._exact._chains.sites import Graph, Group, Seen, observed, seen
from inference._exact._chains.solve import LOG_2PI, Solved
from inference._exact.by_rows import ByMoments
from inference._exact.engine import Points, Values
from inference._exact.moments import Moments
from inference._families._family import Params
from inference._families._registry import parameters_of
from inference._numerics.replayed import Replayed
from inference._numerics.slices import fitting, slices
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import global_log_prob, local_log_prob, node_of, nodes_of

CHUNK_NUMBERS = 2**23  # in the tables of some rows
CHUNK_ROWS = 4096
DIGITS = 1e5  # by which elimination may make an entry of the precision smaller, before it goes by square roots
FEWEST = 1e16  # and by which even those lose too much


@dataclass
class At:
    """The program at one setting of the parameters: its groups, and the parameters of the other sites."""

    seen: list[Seen]
    others: dict[str, Params]
    log_prior: Tensor


@dataclass
class White:
    """Sites of a group in units of their noise: their log-density is `constant` − ‖r − J z‖² / 2."""

    J: Tensor  # [S, A, R, E, c]
    r: Tensor  # [S, A, R, E, M]
    constant: Tensor  # [A, R]


@dataclass
class ChainPosterior:
    """q(a, z | x) of some rows. R = 1 and M = n where they have the same covariance, else R = n and M = 1."""

    log_evidence: Tensor  # [n, A]
    mean: Tensor  # [L, A, R, M]
    solve: Callable[[], Solved]

    @cached_property
    def solved(self) -> Solved:
        """All steps of the plan, which log p(x) and the mean may not need."""
        return self.solve()

    @property
    def weights(self) -> Tensor:
        return self.log_evidence.softmax(1)


@dataclass
class ChainMoments(Moments):
    """The moments of classes; and for sites whose parameters differ by row the posterior of each chunk of rows."""

    loose: list[tuple[slice, Tensor, Tensor, list[Tensor]]] = field(
        default_factory=list
    )  # rows, weights, mean, covariances


class ByElimination(ByMoments[ChainMoments]):
    """Evidence, posterior and draws by the steps of a plan.

    `backwards`: in another order, which begins at the other end of a chain.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        x: Tensor,
        graph: Graph,
        weights: Tensor | None = None,
        backwards: bool = False,
    ) -> None:
        super().__init__(program, structure, x, weights)
        self.graph = graph
        self.values, self._others = observed(self, graph)
        self.missing = any(v is not None and bool(v.isnan().any()) for v in self.values)
        for name in graph.others:
            if name in self.assignments:
                self._others[name] = self.assignments[name].reshape(self.A, -1).to(x.dtype)
        self.families = {n: family(self._others[n]) for n, family in graph.others.items()}
        if weights is not None:
            for name in self.families.keys() - self.assignments.keys():
                self.families[name].weigh(self._others[name], weights)
        scopes = [g.scopes for g in graph.groups]
        some = slice(0, min(self.N, CHUNK_ROWS))
        matrices = self._splits(some)
        self.steps = best_plan(self.layout.places, scopes, some.stop, matrices, backwards)
        self.band: Band | None = None
        if not backwards:
            found = band([g.columns for g in graph.groups], self.L)
            if found.seconds(some.stop, matrices) < self.steps.seconds(some.stop, matrices):
                self.band = found

    @property
    def size(self) -> float:
        return self.N * self.A * self.steps.numbers()

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose temporaries stay small."""
        points = len(self.graph.points) * self.x[0].numel() if self.graph.by_row else 0
        yield from slices(self.N, fitting(CHUNK_NUMBERS, self.A * (self.steps.numbers() + points), 1, CHUNK_ROWS))

    # --------------------------------------------------------------------------------------------------- the program

    def _trace(self, x: Tensor, parameters: Values | None, globals: Values | None) -> Trace:
        points = self.graph.points.repeat(self.A, 1).unsqueeze(1)
        return self.trace(x, points, parameters, globals, raw=True)

    def at(self, parameters: Values | None = None, globals: Values | None = None) -> At:
        """The program at these values; groups whose parameters differ by row as they are in the first rows."""
        alone = not (globals or self.structure.global_latents or self.graph.by_row or self.program.is_hiding)
        if torch.is_grad_enabled() or not alone:
            return self._at(self._trace(self._probe, parameters, globals))
        sites, others, log_prior = self._replayed({**self.program.values(), **(parameters or {})})
        return At([Seen(*s) for s in sites], others, log_prior)

    @cached_property
    def _replayed(self) -> Replayed[tuple[list[tuple[Tensor, ...]], dict[str, Params], Tensor]]:
        """All sites at values of θ, without a run of the program for each."""

        def look(values: Values) -> tuple[list[tuple[Tensor, ...]], dict[str, Params], Tensor]:
            at = self._at(self._trace(self._probe, values, None))
            return [(s.coefficients, s.offset, s.given, s.scale) for s in at.seen], at.others, at.log_prior

        return Replayed(look, lambda values: {**values, **self.program.elsewhere()})

    def _at(self, trace: Trace) -> At:
        return At(self._seen(trace, self.graph.groups, len(self._probe)), self._params(trace), global_log_prob(trace))

    def _seen(self, trace: Trace, groups: Sequence[Group], rows: int) -> list[Seen]:
        return [seen(g, trace, self.A, len(self.graph.points), rows, self.x.dtype) for g in groups]

    def _params(self, trace: Trace) -> dict[str, Params]:
        out = {}
        for name in self.graph.others:
            params = parameters_of(node_of(trace, name)["fn"], self.A * len(self.graph.points), self.x.dtype)
            assert params is not None
            out[name] = {k: v.reshape(self.A, -1, *v.shape[1:])[:, 0] for k, v in params.items()}
        return out

    def _of_rows(self, rows: slice, at: At, parameters: Values | None, globals: Values | None) -> At:
        """With the parameters of these rows, where they differ by row."""
        if not self.graph.by_row:
            return at
        trace = self._trace(self.x[rows], parameters, globals)
        return At(self._seen(trace, self.graph.groups, rows.stop - rows.start), at.others, at.log_prior)

    def log_prior(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        return global_log_prob(self._trace(self._probe, parameters, globals))

    @torch.no_grad()
    def agrees(self) -> bool:
        """Whether the sites as they were read have the program's own density, at points near and far: a second witness."""
        rows = slice(0, min(self.N, 3))
        x, n = self.x[rows], rows.stop
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            drawn = [nodes_of(self.program.trace(x)) for _ in range(2)]
        globals = {s.name: drawn[0][s.name]["value"] for s in self.structure.global_latents}
        one, other = (self.layout.flatten(nodes, n).expand(self.A, n, self.L) for nodes in drawn)
        at = self._of_rows(rows, self.at(None, globals), None, globals)
        whites = self._whitened(rows, at, n)
        for size in (0.0, 1.5, 100.0):
            z = one + size * (other - one)  # [A, n, L]
            own = (
                local_log_prob(self.trace(x, z, None, globals), self.structure.data_dim, n)
                .reshape(-1, n)
                .expand(self.A, n)
            )
            point = z.permute(2, 0, 1).unsqueeze(-1)
            mine = sum(
                (self._density(g, w, point) for g, w in zip(self.graph.groups, whites, strict=True)), start=0 * own
            )
            mine = mine + self._of_others(rows, at).mT
            if not torch.allclose(own, mine, rtol=1e-9, atol=1e-6):
                return False
        return True

    def _of_others(self, rows: slice, at: At) -> Tensor:
        """log p of the sites that no normal latent enters [n, A]."""
        total = self.x.new_zeros(rows.stop - rows.start, self.A)
        for name, params in at.others.items():
            latent, values = name in self.assignments, self._others[name]
            found = self.families[name].log_prob(values if latent else values[rows], params)
            total = total + (found.diagonal() if latent else found)
        return total

    # ----------------------------------------------------------------------------------------------------- whitening

    def _mask(self, k: int, rows: slice, R: int) -> Tensor | None:
        """What was observed [S, R, M, E], or [S, 1, 1, E] where all rows have the same; None where all was."""
        values = self.values[k]
        if values is None or not self.missing:
            return None
        mask = ~values[:, rows].isnan()
        if bool(mask.all()):
            return None
        return (mask[:, :1].unsqueeze(1) if R == 1 else mask.unsqueeze(2)).to(self.x.dtype)

    def _splits(self, rows: slice) -> int:
        """R: 1 where these rows share their covariance, else their number."""
        n = int(rows.stop - rows.start)
        if self.graph.by_row:
            return n
        if self.missing:
            for values in self.values:
                if values is not None and bool((values[:, rows].isnan() != values[:, rows][:, :1].isnan()).any()):
                    return n
        return 1

    def _raw(self, k: int, rows: slice, s: Seen, R: int) -> tuple[Tensor, Tensor]:
        """J [S, A, 1 or R, E, c] and r [S, A, 1 or R, E, 1 or M] of the residual r − J z."""
        g, values = self.graph.groups[k], self.values[k]
        if values is None:
            identity = -torch.eye(g.E, dtype=self.x.dtype).expand(*s.coefficients.shape[:-1], g.E)
            return torch.cat([identity, s.coefficients], -1), -s.offset.unsqueeze(-1)
        x = values[:, rows].nan_to_num(0.0)
        x = x.mT[:, None, None] if R == 1 else x[:, None, :, :, None]
        return s.coefficients, x - s.offset.unsqueeze(-1)

    def _whitened(self, rows: slice, at: At, R: int) -> list[White]:
        out, n = [], rows.stop - rows.start
        for k, (g, s) in enumerate(zip(self.graph.groups, at.seen, strict=True)):
            J, r = self._raw(k, rows, s, R)
            mask, scale = self._mask(k, rows, R), s.scale
            if mask is not None:  # [S, 1, R, E]
                mask = mask[:, None, :, 0]
                J, r = J * mask.unsqueeze(-1), r * mask.unsqueeze(-1)
            if g.family.joint:
                if mask is not None:  # what is missing stands apart, with variance 1 and residual 0
                    whole = (scale @ scale.mT) * mask.unsqueeze(-1) * mask.unsqueeze(-2) + torch.diag_embed(1 - mask)
                    scale = torch.linalg.cholesky(whole)
                J = torch.linalg.solve_triangular(scale, J.expand(*_wider(scale, J)), upper=False)
                r = torch.linalg.solve_triangular(scale, r.expand(*_wider(scale, r)), upper=False)
                logs = scale.diagonal(dim1=-2, dim2=-1).log()
            else:
                J, r, logs = J / scale.unsqueeze(-1), r / scale.unsqueeze(-1), scale.log()
            constant = -logs - 0.5 * LOG_2PI if mask is None else mask * (-logs - 0.5 * LOG_2PI)
            M = n // R
            out.append(
                White(
                    J.expand(*J.shape[:2], R, *J.shape[3:]),
                    r.expand(*r.shape[:2], R, g.E, M),
                    constant.sum((0, -1)).expand(self.A, R),
                )
            )
        return out

    def _tables(self, whites: Sequence[White], by_products: bool = True) -> list[Tensor]:
        out = []
        for w in whites:
            table = torch.cat([w.J, w.r], -1)
            out.append(w.J.mT @ table if by_products else table)
        return out

    def _residual(self, g: Group, w: White, z: Tensor) -> Tensor:
        """r − J z at z [L, A, R, M]."""
        return w.r - w.J @ z[g.columns].movedim(1, -2)

    def _density(self, g: Group, w: White, z: Tensor) -> Tensor:
        """Σ over the sites of log p at z [L, A, R, M], of each row [A, n]."""
        found = w.constant.unsqueeze(-1) - 0.5 * self._residual(g, w, z).square().sum((0, -2))
        return found.flatten(1)

    # ----------------------------------------------------------------------------------------------------- posterior

    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, ChainPosterior]]:
        at = self.at(parameters, globals)
        for rows in self.chunks():
            yield rows, self._posterior(rows, self._of_rows(rows, at, parameters, globals))

    def _posterior(self, rows: slice, at: At) -> ChainPosterior:
        whites, groups = self._whitened(rows, at, self._splits(rows)), self.graph.groups
        with torch.no_grad():
            mean, log_det, solved = self._middle(whites)
        total = torch.stack([self._density(g, w, mean) for g, w in zip(groups, whites, strict=True)]).sum(0)
        if torch.is_grad_enabled():  # about the mean, a constant: the value is the same, and so are all derivatives
            about = [White(w.J, self._residual(g, w, mean), w.constant) for g, w in zip(groups, whites, strict=True)]
            again = solve.eliminate(self.steps, self._tables(about))
            total = total + (0.5 * again.squares() - again.log_det().unsqueeze(-1)).flatten(1)
        else:
            total = total - log_det.unsqueeze(-1).expand(mean.shape[1:]).flatten(1)
        log_p = total.mT + 0.5 * self.L * LOG_2PI + self._of_others(rows, at)
        return ChainPosterior(log_p, mean, solved)

    def _middle(self, whites: Sequence[White]) -> tuple[Tensor, Tensor, Callable[[], Solved]]:
        """The posterior mean, ½ log det P, and what carries out the steps of the plan."""
        if self.band is not None:
            with contextlib.suppress(torch.linalg.LinAlgError):
                mean, log_det, lost = self.band.solve([(w.J.detach(), w.r.detach()) for w in whites])
                if lost <= DIGITS:
                    return mean, log_det, lambda: self._solved(whites)
        solved = self._solved(whites)
        return solve.solutions(solved, self.L), solved.log_det(), lambda: solved

    @torch.no_grad()
    def _solved(self, whites: Sequence[White]) -> Solved:
        """By products where they keep enough digits, else by square roots."""
        tables = self._tables(whites)
        diagonal = self._diagonal(tables)
        try:
            solved = solve.eliminate(self.steps, tables)
            if solve.digits_lost(solved, diagonal) <= DIGITS:
                return solved
        except torch.linalg.LinAlgError:
            pass
        solved = solve.eliminate(self.steps, self._tables(whites, by_products=False), by_products=False)
        self.delicate |= not solve.digits_lost(solved, diagonal) <= FEWEST
        return solved

    def _diagonal(self, tables: Sequence[Tensor]) -> Tensor:
        """The diagonal of the precision [L, A, R]."""
        out = tables[0].new_zeros(self.L, *tables[0].shape[1:3])
        for g, table in zip(self.graph.groups, tables, strict=True):
            own = table.detach().diagonal(dim1=-2, dim2=-1, offset=0)[..., : g.columns.shape[1]]
            out.index_put_((g.columns,), own.movedim(-1, 1), accumulate=True)
        return out

    @torch.no_grad()
    def draw(self, responsibilities: Tensor | None, draws: int, globals: Values | None = None) -> dict[str, Tensor]:
        pieces = []
        for rows, posterior in self.posteriors(None, globals):
            n = rows.stop - rows.start
            weights = posterior.weights if responsibilities is None else responsibilities[rows]
            chosen = torch.multinomial(weights, draws, replacement=True)  # [n, draws]
            z = solve.solutions(posterior.solved, self.L, draws=draws).reshape(self.L, self.A, n, draws)
            z = z.gather(1, chosen.expand(self.L, 1, n, draws))[:, 0].permute(2, 1, 0)
            one = {k: v.reshape(self.A, -1).squeeze(-1)[chosen.mT] for k, v in self.assignments.items()}
            pieces.append({**one, **self.layout.natural(z)})
        return {k: torch.cat([p[k] for p in pieces], 1) for k in pieces[0]}

    @torch.no_grad()
    def summary(self, globals: Values | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        out = self.x.new_empty(2, 1, self.N, self.L)
        for rows, posterior in self.posteriors(None, globals):
            weights, mean = posterior.weights.mT, posterior.mean.flatten(2)  # [A, n], [L, A, n]
            variance = self._variance(posterior).expand(*posterior.mean.shape).flatten(2)
            middle = (weights * mean).sum(1)
            spread = (weights * (variance + (mean - middle.unsqueeze(1)).square())).sum(1).sqrt()
            out[0, 0, rows], out[1, 0, rows] = middle.mT, spread.mT
        means, deviations = ({k: v[0] for k, v in self.layout.natural(each).items()} for each in out)
        return means, deviations

    def _variance(self, posterior: ChainPosterior) -> Tensor:
        """Of each number of z [L, A, R, 1]."""
        out = posterior.mean.new_empty(*posterior.mean.shape[:3], 1)
        for front, C in zip(self.steps.fronts, solve.covariances(posterior.solved), strict=True):
            out[front.own, ..., 0] = C.diagonal(dim1=-2, dim2=-1)[..., : front.own.shape[1]].movedim(-1, 1)
        return out

    @torch.no_grad()
    def points(self, rows: slice, globals: Values | None = None) -> Points:
        # the mean of a quadratic over m ± √L S e_l, for l = 1 … L, is its expectation under N(m, S Sᵀ)
        at = self._of_rows(rows, self.at(None, globals), None, globals)
        posterior = self._posterior(rows, at)
        mean = posterior.mean.flatten(2)
        for column in range(self.L):
            step = solve.root_column(posterior.solved, self.L, column).expand(posterior.mean.shape).flatten(2)
            for size in (self.L**0.5, -(self.L**0.5)):
                z = mean + size * step  # [L, A, n]
                for a in range(self.A):
                    discrete = {k: v[a] for k, v in self.assignments.items()}
                    values = {k: v[0] for k, v in self.layout.unflatten(z[:, a].mT.unsqueeze(0)).items()}
                    yield posterior.weights[:, a] / (2 * self.L), {**discrete, **values}

    @torch.no_grad()
    def trials(self, draws: int, others: Tensor, globals: Values | None = None) -> tuple[Tensor, Tensor]:
        """z [D, A, N, L] and log p(z | x, a) [D, A, N]: at posterior draws, at as many ten times as far away, and at `others`.

        `others` [·, N, L]. The densities are products of conditional ones.
        """
        rows, D = slice(0, self.N), 2 * draws + len(others)
        posterior = self._posterior(rows, self._of_rows(rows, self.at(None, globals), None, globals))
        near = solve.solutions(posterior.solved, self.L, draws=2 * draws).reshape(self.L, self.A, self.N, 2 * draws)
        middle = posterior.mean.reshape(self.L, self.A, self.N, 1)
        wide = torch.ones(2 * draws, dtype=middle.dtype)
        wide[draws:] = 10.0
        plain = others.permute(2, 1, 0).unsqueeze(1).expand(self.L, self.A, self.N, -1)
        z = torch.cat([middle + (near - middle) * wide, plain], -1)
        density = solve.log_density(posterior.solved, z.reshape(*posterior.mean.shape[:3], -1))
        return z.permute(3, 1, 2, 0), density.reshape(self.A, self.N, D).permute(2, 0, 1)


def _wider(matrix: Tensor, right: Tensor) -> tuple[int, ...]:
    """The shape of what is solved, with the batch of both."""
    return (*torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-2]), *right.shape[-2:])
