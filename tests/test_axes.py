"""Where rows lie among the dimensions of a value: the plates of a program, counted in one place."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import structure_of, task_of, zoo_refusal

from zoo._errors import UsageError
from zoo._program.axes import Axes
from zoo._program.latents import Layout
from zoo._program.trace import sample_nodes

X = np.random.default_rng(0).normal(size=(5, 2))


def parts_left(x=None, size=None):
    """A plate of 3 left of the rows."""
    n = len(x) if x is not None else size
    with pyro.plate("data", n, dim=-1):
        with pyro.plate("parts", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))  # [3, n, 4]
        pyro.sample("x", dist.Normal(z.sum((0, -1)).unsqueeze(-1).expand(-1, 2), 1.0).to_event(1), obs=x)


def parts_right(x=None, size=None):
    """A plate of 3 right of the rows."""
    n = len(x) if x is not None else size
    with pyro.plate("data", n, dim=-2):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0))  # [n, 1]
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(w, 1.0))  # [n, 3]
        loc = z.sum(-1, keepdim=True).unsqueeze(-1).expand(-1, 1, 2)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=None if x is None else x.unsqueeze(1))


@pytest.mark.parametrize(("program", "dim"), [(parts_left, -1), (parts_right, -2)])
def test_values_go_to_rows_and_back(program, dim):
    task = task_of(program, X)
    axes = task.structure.axes
    assert axes == Axes(2, dim)
    nodes = {n["name"]: n for n in sample_nodes(task.program.trace(task.x))}
    for site in task.structure.local_latents:
        full = axes.expand(nodes[site.name]["value"], site, 5, 1)
        rows = axes.by_datum(full, site)
        assert rows.shape == (1, 5, *(size for _, size in site.inner_dims), *site.event_shape)
        assert torch.equal(axes.as_program(rows[0], site), full[0])
        assert torch.equal(axes.datum_first(full, len(site.event_shape))[2].flatten(), rows[0, 2].flatten())
    names = [s.name for s in task.structure.local_latents]
    layout = Layout(nodes, names, axes)
    z = layout.flatten(nodes, 5)
    assert z.shape == (5, layout.L)
    for name, value in layout.unflatten(z.unsqueeze(0)).items():
        assert torch.equal(value[0].flatten(), nodes[name]["value"].flatten())


def test_a_plate_gone_through_by_for_is_no_dimension():
    def switches(x=None, size=None):
        n = len(x) if x is not None else size
        with pyro.plate("data", n):
            total = torch.zeros(())
            for i in pyro.plate("parts", 2):
                total = total + pyro.sample(f"z{i}", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(total, 1.0), obs=None if x is None else x[:, 0])

    found = structure_of(switches, X)
    assert found.exact == "enumerable" and found.assignments == 4 and found.max_plate_nesting == 1
    each = torch.distributions.Binomial(2, 0.3).log_prob(torch.arange(3.0))
    by_hand = torch.logsumexp(each + dist.Normal(torch.arange(3.0), 1.0).log_prob(torch.as_tensor(X[:, :1])), -1)
    assert torch.allclose(task_of(switches, X).exact.per_datum(), by_hand, atol=1e-6)


def test_rows_gone_through_by_for_are_refused():
    def one_by_one(x=None, size=None):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=x[i, 0])

    with pytest.raises(UsageError, match=r"with `for`; write `with pyro.plate"):
        structure_of(one_by_one, X)


def test_a_latent_counts_as_missing_by_its_mark_and_not_by_its_name():
    """No rule follows torch's foreach kernels, so that nothing computed by one is proved."""

    def named(x=None, size=None):
        n = len(x) if x is not None else size
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            loc = torch._foreach_mul([z], 2.0)[0]
            pyro.sample("x_missing", dist.Normal(loc, 1.0), obs=None if x is None else x[:, 0])

    found = structure_of(named, X)
    assert found.exact == "no" and "cannot be analysed" in found.reason and "'x_missing'" in found.reason


def test_describe_says_of_gibbs_what_run_will_do():
    def known(x=None, size=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def learned(x=None, size=None):
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(loc * z, 1.0), obs=x[:, 0])

    assert zoo_refusal("gibbs", structure_of(known, X)) == ""
    assert "has parameters to learn" in zoo_refusal("gibbs", structure_of(learned, X))
    assert not structure_of(known, X).learnable and structure_of(learned, X).learnable
