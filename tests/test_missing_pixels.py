"""The autoregressive models of binary images: against sums over all images, Jacobians, and walks pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import exact_of, hide, structure_of, task_of, tensor
from scipy import special, stats

from inference import em, laplace
from zoo._errors import UsageError
from zoo._program.load import load

D = 9  # 3 × 3
ALL = tensor(list(itertools.product([0.0, 1.0], repeat=D)))
CODE = tensor(2.0 ** np.arange(D)[::-1])
TOP = np.arange(D) < 3
NETS = [("made", (20,)), ("made", (6, 15)), ("logistic", (20,)), ("mixture", (20,))]
ORDERS = ["raster", "reversed", "observed-first"]


def images(n=40, seed=0):
    return (np.random.default_rng(seed).random((n, D)) < np.linspace(0.2, 0.7, D)).astype(float)


def program_of(net, hidden=(20,), order="raster", x=None):
    """A program whose parameters are all away from where they start; the top row is missing in every image."""
    x = np.where(TOP, np.nan, images()) if x is None else x
    program = load("missing_pixels", tensor(x), {"net": net, "hidden": hidden, "order": order, "components": 3})
    generator = torch.Generator().manual_seed(4)
    for parameter in program.parameters():
        parameter.data += 0.7 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return program


def distribution_of(program):
    return program.trace(ALL[:1], raw=True).nodes["x"]["fn"].expand(())


@torch.no_grad()
def log_prob(program, x):
    """log p(x) of complete images, by the program's own sites."""
    if "probs" not in program.values():
        return distribution_of(program).log_prob(x)
    values = program.values()
    each = torch.distributions.Bernoulli(values["probs"]).log_prob(x.unsqueeze(1)).sum(-1)
    return (each + values["weights"].log()).logsumexp(1)


# ---- a distribution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "hidden"), NETS)
@pytest.mark.parametrize("order", ORDERS)
def test_all_images_together_have_probability_one(net, hidden, order):
    program = program_of(net, hidden, order)
    assert float(log_prob(program, ALL).logsumexp(0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("net", "hidden"), NETS)
@pytest.mark.parametrize("order", ORDERS)
def test_images_are_drawn_as_often_as_their_probability_says(net, hidden, order):
    program, n = program_of(net, hidden, order), 50_000
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        drawn = program(None, size=n)
    counts = torch.bincount((drawn @ CODE).long(), minlength=len(ALL)).numpy()
    expected = n * log_prob(program, ALL).exp().numpy()
    common = expected >= 5
    counts, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(("net", "hidden"), NETS[:3])
@pytest.mark.parametrize("order", ORDERS)
def test_a_pixel_sees_those_before_it_and_no_other(net, hidden, order):
    fn = distribution_of(program_of(net, hidden, order))
    orders = {"raster": range(D), "reversed": range(D)[::-1], "observed-first": [*range(3, D), 0, 1, 2]}
    assert fn.order.tolist() == list(orders[order])
    seen = torch.zeros(D, D, dtype=torch.bool)
    for x in ALL[::7]:
        seen |= torch.autograd.functional.jacobian(fn.logits, x)[fn.order][:, fn.order] != 0
    assert torch.equal(seen, torch.ones(D, D).tril(-1).bool())


def test_one_pass_at_any_leading_dimensions_and_dtype():
    program = program_of("made")
    fn = distribution_of(program)
    np.testing.assert_allclose(fn.log_prob(ALL.reshape(4, 8, 16, D)).detach(), log_prob(program, ALL).reshape(4, 8, 16))
    single = load("missing_pixels", tensor(images()).float(), {"hidden": (20,)})
    trace = single.trace(ALL[:5].float())
    assert trace.nodes["x"]["fn"].log_prob(ALL[:5].float()).dtype == torch.float32
    assert single(None, size=2).dtype == torch.float32


# ---- pixel by pixel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "hidden"), NETS[:3])
@pytest.mark.parametrize("order", ORDERS)
def test_the_walk_has_the_logits_of_the_pass(net, hidden, order):
    fn = distribution_of(program_of(net, hidden, order))
    x = ALL[::5].reshape(-1, 1, D)
    steps, logits = fn.steps(x.shape[:-1]), fn.logits(x).detach()
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).reshape(-1, 1)
    for t in range(D):
        if t == 4:  # go on from others
            steps.select(shuffle)
            x, logits = x[shuffle[:, 0]], logits[shuffle[:, 0]]
        assert steps.entry == int(fn.order[t])
        torch.testing.assert_close(steps.logit(), logits[..., steps.entry], rtol=1e-10, atol=1e-10)
        steps.take(x[..., steps.entry])
    assert torch.equal(steps.value, x)


def test_filling_in_keeps_what_is_known_and_weighs_it():
    fn = distribution_of(program_of("made"))
    known = tensor(hide(images(300), 0.4))
    torch.manual_seed(0)
    value, each = fn.fill(known)
    seen = ~known.isnan()
    assert torch.equal(value[seen], known[seen]) and bool(((value == 0) | (value == 1)).all())
    torch.testing.assert_close(each, fn.conditionals(value).detach())
    value, each = fn.fill(known[:5].expand(4000, 5, D))  # E[p(known | drawn before)] is p(known)
    weights = torch.where(seen[:5], each, torch.zeros_like(each)).sum(-1).exp()
    exact = exact_of(
        "missing_pixels", known[:5], {n: v.detach() for n, v in program_of("made").values().items()}, **TINY
    )
    error = (weights.mean(0) - exact.per_datum().exp()).abs()
    assert bool((error < 4.5 * weights.std(0) / 4000**0.5 + 1e-12).all())


TINY = {"net": "made", "hidden": (20,)}


# ---- missing pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "hidden"), NETS)
@pytest.mark.parametrize("order", ORDERS)
def test_evidence_under_holes_is_the_sum_over_completions(net, hidden, order):
    x = hide(images(), 0.3)
    x[1], x[6] = np.nan, images()[6]
    program = program_of(net, hidden, order, x)
    table = log_prob(program, ALL).numpy()
    values = {n: v.detach() for n, v in program.values().items()}
    exact = exact_of("missing_pixels", x, values, net=net, hidden=hidden, order=order, components=3)
    want = [special.logsumexp(table[(np.isnan(row) | (ALL.numpy() == row)).all(1)]) for row in x]
    np.testing.assert_allclose(exact.per_datum(), want, atol=1e-11)
    assert {s.name for s in exact.structure.local_latents} == {"z" if net == "mixture" else "x_missing"}


def test_with_observed_pixels_first_the_evidence_is_a_product_of_conditionals():
    x = np.where(TOP, np.nan, images())
    program = program_of("made", order="observed-first")
    values = {n: v.detach() for n, v in program.values().items()}
    exact = exact_of("missing_pixels", x, values, order="observed-first", **TINY)
    fn = distribution_of(program)
    each = fn.conditionals(tensor(x).nan_to_num(0.0)).detach()
    np.testing.assert_allclose(exact.per_datum(), each[:, ~TOP].sum(1), atol=1e-11)
    joint = exact.responsibilities().log()  # and p(missing | observed) as well
    for a, top in enumerate(exact.assignments["x_missing"][:, 0]):
        full = tensor(x)
        full[:, TOP] = top
        np.testing.assert_allclose(joint[:, a], fn.conditionals(full)[:, TOP].sum(1).detach(), atol=1e-9)


def test_half_an_image_missing_cannot_be_enumerated():
    x = (np.random.default_rng(0).random((20, 784)) < 0.2).astype(float)
    x[:, :392] = np.nan
    found = structure_of("missing_pixels", x, hidden=(10,))
    assert found.exact == "no" and "'x_missing' have 2^392 joint values" in found.reason
    assert (found.local_latents[0].event_shape, found.local_latents[0].cardinality) == ((392,), 2**392)
    for method in (em, laplace):
        assert "x_missing" in method.refusal(found)


def test_complete_images_have_no_latents():
    found = structure_of("missing_pixels", images())
    assert found.exact == "enumerable" and not found.local_latents
    program = program_of("made", x=images())
    np.testing.assert_allclose(
        exact_of("missing_pixels", images(), {n: v.detach() for n, v in program.values().items()}, **TINY).per_datum(),
        log_prob(program, tensor(images())),
    )


def test_an_order_is_kept_with_the_parameters():
    """A state goes back into a program that was made for images with other holes."""
    first = program_of("made", order="observed-first")
    other = load("missing_pixels", tensor(images()), {**TINY, "order": "observed-first"})
    other.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(log_prob(other, ALL), log_prob(first, ALL))


# ---- learning -----------------------------------------------------------------------------------------------------


def test_it_begins_at_the_share_of_images_in_which_a_pixel_is_on():
    x = hide(images(400), 0.3)
    x[:, 8] = np.nan  # never seen
    for net in ("made", "logistic"):
        program = load("missing_pixels", tensor(x), {"net": net})
        probs = distribution_of(program).logits(tensor(images(200, 1))).sigmoid().mean(0).detach().numpy()
        np.testing.assert_allclose(probs[:8], np.nanmean(x[:, :8], 0), atol=0.06)
        assert probs[8] == pytest.approx(np.nanmean(x), abs=0.06)


def test_the_mixture_is_learned_by_exact_em():
    x = hide(images(200), 0.2)
    task = task_of("missing_pixels", x, net="mixture", components=3)
    fit = em.fit(task)
    assert set(fit.notes["closed_form"]) == {"weights", "probs"} and not fit.notes["numeric"]
    assert np.diff(fit.trace["log_likelihood"]).min() > -1e-8
    probs, weights = fit.parameters["probs"], fit.parameters["weights"]
    each = np.nansum(np.where(x[:, None] == 1, np.log(probs), np.log1p(-probs)) * ~np.isnan(x)[:, None], -1)
    np.testing.assert_allclose(fit.claimed.per_datum, special.logsumexp(each + np.log(weights), axis=1), atol=1e-9)


def test_made_is_learned_from_images_with_holes_by_em():
    x = np.where(np.arange(D) == 4, np.nan, images(30))
    task = task_of("missing_pixels", x, **TINY)
    fit = em.fit(task, max_iter=4, start="program")
    climb = fit.trace["log_likelihood"]
    assert np.diff(climb).min() > -1e-9 and climb[-1] > climb[0] + 1


def test_parameters_can_be_put_in_the_place_of_its_own():
    program = program_of("made", x=images())
    leaves = {n: v.detach().clone().requires_grad_() for n, v in program.values().items()}
    trace = program.trace(ALL[:5], parameters=leaves)
    trace.nodes["x"]["fn"].log_prob(ALL[:5]).sum().backward()
    assert {n for n, v in leaves.items() if v.grad is not None} == set(leaves)


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (np.eye(D) * 0.5, {}, "got 0.5 at pixel 0 of image 0 (counting from 0). Binarise them (--binarize"),
        (images().reshape(40, 3, 3), {}, "a 2-D table with an image in each row"),
        (images(), {"hidden": ()}, "net=logistic"),
        (images(), {"net": "mixture", "components": 41}, "at most as many components as images, got 41 for 40 images"),
        (images(), {"order": "random"}, "raster, reversed, observed-first"),
        (images(), {"hidden": (0,)}, "hidden must be more than zero"),
    ],
)
def test_what_it_does_not_take(x, options, says):
    with pytest.raises(UsageError) as caught:
        structure_of("missing_pixels", x, **options)
    assert says in str(caught.value)
