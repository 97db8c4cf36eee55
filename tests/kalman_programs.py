"""State space models as plain loops, their matrices, and the Kalman filter and smoother in NumPy."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import user_programs as user
from torch.distributions import constraints

POSITIVE = constraints.positive


def local_level(T, first=2.0):
    def program(x=None, size=None):
        q = pyro.param("q", torch.tensor(0.5), constraint=POSITIVE)
        r = pyro.param("r", torch.tensor(0.8), constraint=POSITIVE)
        with user.rows(x, size):
            z, out = None, []
            for t in range(T):
                z = pyro.sample(f"z{t}", dist.Normal(0.0, first) if z is None else dist.Normal(z, q))
                out.append(pyro.sample(f"x{t}", dist.Normal(z, r), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    program.matrices = lambda q, r: (np.eye(1), np.eye(1) * q**2, np.eye(1), np.eye(1) * r**2, np.eye(1) * first**2)
    return program


def local_trend(T):
    """Two scalar latents a step: the level and its slope."""

    def program(x=None, size=None):
        q = pyro.param("q", torch.tensor([0.5, 0.2]), constraint=POSITIVE)
        r = pyro.param("r", torch.tensor(0.8), constraint=POSITIVE)
        with user.rows(x, size):
            level = slope = None
            out = []
            for t in range(T):
                if level is None:
                    level = pyro.sample("level0", dist.Normal(0.0, 2.0))
                    slope = pyro.sample("slope0", dist.Normal(0.0, 1.0))
                else:
                    level = pyro.sample(f"level{t}", dist.Normal(level + slope, q[0]))
                    slope = pyro.sample(f"slope{t}", dist.Normal(slope, q[1]))
                out.append(pyro.sample(f"x{t}", dist.Normal(level, r), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    def matrices(q, r):
        A = np.array([[1.0, 1.0], [0.0, 1.0]])
        return A, np.diag(np.asarray(q) ** 2), np.array([[1.0, 0.0]]), np.eye(1) * r**2, np.diag([4.0, 1.0])

    program.matrices = matrices
    return program


def ar2(T):
    """An autoregression of order two that is seen with noise."""

    def program(x=None, size=None):
        a = pyro.param("a", torch.tensor([0.9, -0.4]))
        q = pyro.param("q", torch.tensor(0.5), constraint=POSITIVE)
        r = pyro.param("r", torch.tensor(0.4), constraint=POSITIVE)
        with user.rows(x, size):
            z, out = [], []
            for t in range(T):
                loc = a[0] * z[-1] + a[1] * z[-2] if t > 1 else torch.zeros(())
                z.append(pyro.sample(f"z{t}", dist.Normal(loc, q if t > 1 else torch.tensor(1.0))))
                out.append(pyro.sample(f"x{t}", dist.Normal(z[-1], r), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    def matrices(a, q, r):
        A = np.array([[a[0], a[1]], [1.0, 0.0]])
        return A, np.diag([q**2, 0.0]), np.array([[1.0, 0.0]]), np.eye(1) * r**2, np.eye(2)

    program.matrices, program.lag = matrices, 1
    return program


def tracking(T, joint=False, first=3.0):
    """A place and a velocity in the plane, of which the place is seen; `joint`: by multivariate normals."""

    def program(x=None, size=None):
        q = pyro.param("q", torch.tensor([0.3, 0.3, 0.2, 0.2]), constraint=POSITIVE)
        r = pyro.param("r", torch.tensor([0.5, 0.7]), constraint=POSITIVE)
        A = torch.eye(4) + 0.5 * torch.diag(torch.ones(2), 2)
        normal = (
            (lambda m, s: dist.MultivariateNormal(m, scale_tril=s.diag()))
            if joint
            else (lambda m, s: dist.Normal(m, s).to_event(1))
        )
        with user.rows(x, size):
            z, out = None, []
            for t in range(T):
                fn = normal(torch.zeros(4), first * torch.ones(4)) if z is None else normal(z @ A.mT, q)
                z = pyro.sample(f"z{t}", fn)
                out.append(pyro.sample(f"x{t}", normal(z[..., :2], r), obs=None if x is None else x[:, t]))
            return torch.stack(out, -2)

    def matrices(q, r):
        A = np.eye(4) + 0.5 * np.diag(np.ones(2), 2)
        return A, np.diag(np.asarray(q) ** 2), np.eye(2, 4), np.diag(np.asarray(r) ** 2), np.eye(4) * first**2

    program.matrices = matrices
    return program


def kalman(x, A, Q, H, R, P0, lag=0):
    """log p(x) of one series [T, D], filtered and predicted moments. `lag`: steps before which the state does not move."""
    m, P, total, kept = np.zeros(len(A)), P0, 0.0, []
    for t, row in enumerate(np.asarray(x).reshape(len(x), -1)):
        if t > lag:
            m, P = A @ m, A @ P @ A.T + Q
        elif t and lag:  # of an AR(2): the second value comes from the same prior as the first
            m, P = np.array([0.0, m[0]]), np.diag([1.0, P[0, 0]])
        predicted = m, P
        seen = ~np.isnan(row)
        if seen.any():
            Hs = H[seen]
            S = Hs @ P @ Hs.T + R[np.ix_(seen, seen)]
            v = row[seen] - Hs @ m
            solved = np.linalg.solve(S, v)
            total -= 0.5 * (v @ solved + np.linalg.slogdet(S)[1] + seen.sum() * np.log(2 * np.pi))
            K = P @ Hs.T @ np.linalg.inv(S)
            rest = np.eye(len(A)) - K @ Hs
            m, P = m + K @ v, rest @ P @ rest.T + K @ R[np.ix_(seen, seen)] @ K.T
        kept.append((*predicted, m, P))
    return total, kept


def smooth(kept, A):
    """Means [T, L] and standard deviations [T, L] given all data: Rauch, Tung & Striebel."""
    m, P = kept[-1][2:]
    means, deviations = [m], [np.sqrt(np.diag(P))]
    for (mp, Pp, *_), (*_, mf, Pf) in zip(kept[:0:-1], kept[-2::-1], strict=True):
        G = Pf @ A.T @ np.linalg.pinv(Pp)
        m, P = mf + G @ (m - mp), Pf + G @ (P - Pp) @ G.T
        means.append(m)
        deviations.append(np.sqrt(np.diag(P)))
    return np.array(means[::-1]), np.array(deviations[::-1])
