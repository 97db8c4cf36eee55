"""What `describe` reads off a program, and what it says of a program that breaks the contract."""

from __future__ import annotations

import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, structure_of, tensor

from zoo._data import datasets
from zoo._errors import UsageError
from zoo._program.describe import describe
from zoo._program.load import load

GAUSSIAN = np.random.default_rng(0).normal(size=(30, 3))
BINARY = (np.random.default_rng(1).random((30, 3)) < 0.5).astype(float)


def sites(structure) -> dict[str, tuple]:
    return {
        s.name: (s.role, s.scope, s.family, s.event_shape, s.plates, s.cardinality, s.inner) for s in structure.sites
    }


def refused(model, x=GAUSSIAN, **options) -> str:
    with pytest.raises(UsageError) as caught:
        structure_of(model, x, **options)
    return str(caught.value)


# ---- what a program is made of ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance", "family", "parameters"),
    [
        ("full", "MultivariateNormal", {"weights": (3,), "locs": (3, 2), "scale_tril": (3, 2, 2)}),
        ("tied", "MultivariateNormal", {"weights": (3,), "locs": (3, 2), "scale_tril": (2, 2)}),
        ("diagonal", "Normal", {"weights": (3,), "locs": (3, 2), "scales": (3, 2)}),
        ("spherical", "Normal", {"weights": (3,), "locs": (3, 2), "scales": (3,)}),
    ],
)
def test_gmm(covariance, family, parameters):
    x = datasets.load("faithful").x
    found = structure_of("gmm", x, components=3, covariance=covariance)
    assert sites(found) == {
        "z": ("latent", "local", "Categorical", (), ("data",), 3, 1),
        "x": ("observed", "local", family, (2,), ("data",), None, 1),
    }
    assert {p.name: p.shape for p in found.parameters} == parameters
    assert (found.program, found.n, found.exact, found.assignments) == ("gmm", 272, "enumerable", 3)


def test_gmm_with_priors_has_global_latents_and_no_parameters():
    found = structure_of("gmm", datasets.load("faithful").x, components=3, priors=True)
    assert [s.name for s in found.global_latents] == ["weights", "locs", "covariances"]
    assert [s.name for s in found.local_latents] == ["z"]
    assert found.parameters == ()
    assert found.exact == "enumerable"


def test_two_discrete_sites_multiply():
    found = structure_of(user.two_sites, GAUSSIAN)
    assert [(s.name, s.cardinality) for s in found.local_latents] == [("z1", 2), ("z2", 3)]
    assert (found.exact, found.assignments) == ("enumerable", 6)
    assert "'z1'" in found.reason and "'z2'" in found.reason


def test_a_plate_inside_data_multiplies_too():
    found = structure_of(user.causes, GAUSSIAN)
    on = found.local_latents[0]
    assert (on.name, on.cardinality, on.inner, set(on.plates)) == ("on", 2, 3, {"data", "causes"})
    assert (found.assignments, found.max_plate_nesting) == (2**3, 2)


def test_the_data_plate_may_stand_left_of_another():
    found = structure_of(user.pixels, BINARY)
    assert (found.data_dim, found.max_plate_nesting, found.assignments) == (-2, 2, 2)


def test_continuous_and_global_latents():
    found = structure_of(user.counts, np.ones((5, 1)))
    assert found.exact == "conjugate" and "'intensity' (Gamma)" in found.reason
    found = structure_of(user.coin, np.ones((5, 1)))
    assert [(s.name, s.scope) for s in found.sites] == [("p", "global"), ("x", "local")]
    assert found.exact == "enumerable" and found.integrable == "conjugate"


def test_every_model_of_the_zoo_is_described():
    from zoo import _registry

    x = datasets.load("digits", rows=50, binarize=8).x  # every model takes 0 and 1
    holes = hide(x, 0.1)
    holes[:, -1] = x[:, -1]  # a covariate, of a model that has one
    for name in _registry.models():
        found = structure_of(name, holes.reshape(50, 8, 8) if name == "deep_markov" else holes)
        assert found.observed and (found.local_latents or found.global_latents), name
        assert found.reason, name


def test_describing_draws_no_random_number_and_touches_no_parameter_store():
    pyro.get_param_store().clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    structure_of(user.poisson, BINARY)
    structure_of("gmm", GAUSSIAN, priors=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store().keys()) == []
    assert torch.get_default_dtype() == torch.float32


def test_a_structure_is_plain_json():
    import json

    document = json.loads(json.dumps(structure_of(user.causes, GAUSSIAN).to_json(), allow_nan=False))
    assert document["assignments"] == 8
    assert [s["name"] for s in document["sites"]] == ["on", "x"]
    assert {p["name"]: p["shape"] for p in document["parameters"]}["effects"] == [3, 3]


def test_missing_entries_do_not_change_the_structure():
    assert sites(structure_of(user.normal, hide(GAUSSIAN, 0.5))) == sites(structure_of(user.normal, GAUSSIAN))


# ---- the forms a program may have -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (user.poisson, {"weights", "rates"}),
        (user.Mixture, {"weights", "rates"}),
        (user.Plain, {"heads.weight", "heads.bias"}),
        (f"{user.__file__}:poisson", {"weights", "rates"}),
        (f"{user.__file__}:Mixture", {"weights", "rates"}),
    ],
)
def test_functions_classes_modules_and_files(model, parameters):
    found = structure_of(model, BINARY)
    assert {p.name for p in found.parameters} == parameters
    assert [(s.name, s.role) for s in found.sites] == [("z", "latent"), ("x", "observed")]


@pytest.mark.parametrize("model", [user.Decoder, user.Decoder(), user.instance, f"{user.__file__}:instance"])
def test_a_module_with_a_network_has_all_its_parameters(model):
    found = structure_of(model, GAUSSIAN)
    assert sorted(p.shape for p in found.parameters) == sorted([(2,), (2, 2), (4, 2), (4,), (3, 4), (3,)])


def test_the_program_is_a_copy_of_the_instance():
    before = {n: p.detach().clone() for n, p in user.instance.named_parameters()}
    program = load(user.instance, tensor(GAUSSIAN))
    with torch.no_grad():
        for p in program.parameters():
            p.add_(1.0)
    assert all(torch.equal(p, before[n]) and p.dtype == torch.float32 for n, p in user.instance.named_parameters())


def test_options_of_classes_and_functions():
    def choice(x=None, size=None, *, components: int = 2):
        weights = pyro.param("weights", torch.full((components,), 1 / components), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * 1.0, 1.0).expand([*z.shape, 3]).to_event(1), obs=x)

    assert structure_of(choice, GAUSSIAN, components="4").assignments == 4
    assert structure_of(user.Mixture, BINARY, components=5).assignments == 5
    assert "did you mean components?" in refused(user.Mixture, BINARY, component=3)


def test_a_file_may_hold_dataclasses(tmp_path):
    path = tmp_path / "with_dataclass.py"
    path.write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            from dataclasses import dataclass
            import pyro, pyro.distributions as dist

            @dataclass
            class Settings:
                scale: float = 1.0

            def model(x=None, size=None):
                with pyro.plate("data", len(x)):
                    pyro.sample("x", dist.Normal(0.0, Settings().scale).expand([len(x), 3]).to_event(1), obs=x)
            """
        )
    )
    assert [s.name for s in structure_of(f"{path}:model", GAUSSIAN).sites] == ["x"]


def test_two_files_of_one_name_are_two_programs(tmp_path):
    for folder, site in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "program.py").write_text(
            "import pyro, pyro.distributions as dist\n"
            "def model(x=None, size=None):\n"
            '    with pyro.plate("data", len(x)):\n'
            f'        pyro.sample("{site}", dist.Normal(0.0, 1.0).expand([len(x), 3]).to_event(1), obs=x)\n'
        )
    names = [structure_of(f"{tmp_path}/{f}/program.py:model", GAUSSIAN).sites[0].name for f in "ab"]
    assert names == ["first", "second"]


def test_running_a_program_at_other_values_leaves_its_parameters_in_their_order():
    program = load(user.Decoder, tensor(GAUSSIAN))
    names = [n for n, _ in program.named_parameters()]
    values = {n: v.detach() + 1 for n, v in program.values().items()}
    program.trace(tensor(GAUSSIAN), parameters=dict(reversed(values.items())))
    program.trace(tensor(GAUSSIAN), parameters={"embedding": values["embedding"]})
    assert [n for n, _ in program.named_parameters()] == names
    assert all(torch.equal(v, program.values()[n] + 1) for n, v in values.items())


# ---- programs that break the contract -------------------------------------------------------------------------


def test_no_data_plate():
    def other_name(x=None, size=None):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x), 3]).to_event(1), obs=x)

    def none_at_all(x=None, size=None):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x), 3]).to_event(2), obs=x)

    assert "a plate named 'data' around the latents and observations of 'other_name', got the plates" in refused(
        other_name
    )
    assert "got the plates rows" in refused(other_name)
    assert "got no plate" in refused(none_at_all)


def test_a_data_plate_of_the_wrong_size():
    def wrong(x=None, size=None):
        with pyro.plate("data", 7):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x[:7])

    said = refused(wrong)
    assert "size 7" in said and "len(x)" in said


def test_nothing_observed():
    def blind(x=None, size=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    assert "'blind' observes nothing" in refused(blind)


def test_an_observation_of_another_shape_than_its_distribution():
    """A program for [n] values would pair every row of a table with every other."""

    def scalar(x=None, size=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    said = refused(scalar, np.ones((6, 3)))
    assert "'x'" in said and "shape" in said and "'scalar'" in said


def test_an_observation_that_broadcasts_over_the_event_is_refused():
    """One entry that stands for three would count three times."""

    def wide(x=None, size=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    for n in (1, 3, 6):
        assert f"expects values of its distribution's shape ({n}, 3), got shape ({n}, 1)" in refused(
            wide, np.ones((n, 1))
        )


def test_a_program_that_raises_says_where(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        "import pyro\n\ndef model(x=None, size=None):\n    scale = 1 / 0\n\ndef wrong_shape(x=None, size=None):\n"
        "    return x @ x\n"
    )
    said = refused(f"{path}:model")
    assert "ZeroDivisionError at broken.py:4: division by zero" in said
    said = refused(f"{path}:wrong_shape")
    assert "RuntimeError at broken.py:7" in said and "\n" not in said


def test_a_program_that_raises_on_a_row_that_was_not_probed():
    def picky(x=None, size=None):
        if bool((x == 99).any()):
            raise RuntimeError("no 99 please")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    x = np.zeros((500, 3))
    x[7] = 99
    assert "'picky' raised RuntimeError at test_structure.py" in refused(picky, x)


def test_a_file_that_raises_or_is_not_there(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import pyro\nnumber = undefined_name\n")
    assert "NameError at broken.py:2" in refused(f"{path}:model")
    path.write_text("def model(:\n")
    assert "SyntaxError" in refused(f"{path}:model") and "line 1" in refused(f"{path}:model")
    assert "there is no file" in refused(f"{tmp_path}/nothing.py:model")
    assert "name the callable in it too" in refused(f"{path}")
    path.write_text("def modle(x=None, size=None): pass\nnot_callable = 3\n")
    assert "did you mean modle?" in refused(f"{path}:model")
    assert "modle" in refused(f"{path}:not_callable")


def test_an_invalid_distribution_names_the_program():
    def negative_scale(x=None, size=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, -1.0).expand([3]).to_event(1), obs=x)

    said = refused(negative_scale)
    assert "'negative_scale' raised ValueError at test_structure.py" in said and "scale" in said


def test_a_parameter_read_before_it_has_a_value():
    def model(x=None, size=None):
        pyro.param("w")

    assert "'w'" in refused(model)


@pytest.mark.parametrize(
    ("model", "column", "value"), [(user.poisson, 1, -2.0), (user.bernoulli, 2, 3.0), (user.poisson, 0, 0.5)]
)
def test_data_outside_the_support_name_site_and_row(model, column, value):
    x = BINARY.copy()
    x[17, column] = value
    said = refused(model, x)
    assert "site 'x'" in said and "row 17 " in said and str(value) in said


def test_data_outside_the_support_of_a_site_in_an_inner_plate():
    x = BINARY.copy()
    x[17, 1] = 3.0
    said = refused(user.pixels, x)
    assert "site 'x'" in said and "row 17 " in said


def test_a_missing_entry_that_the_program_computes_with():
    x = GAUSSIAN[:, :2].copy()
    x[17, 1] = np.nan  # y: observed by a site, so it may be missing
    assert structure_of(user.regressions, x).exact == "enumerable"
    x[21, 0] = np.nan  # u: what y's mean is made from
    said = refused(user.regressions, x)
    assert "site 'y'" in said and "row 21 " in said and "missing" in said


def test_missing_entries_are_in_every_support():
    x = BINARY.copy()
    x[17, 1] = np.nan
    x[3] = np.nan
    assert structure_of(user.poisson, x).n == 30


def test_deterministic_sites_change_nothing():
    def named(x=None, size=None):
        weights, locs = user.simplex(), user.real("locs", 2, 3)
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            loc = pyro.deterministic("loc", locs[z], event_dim=1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    found = structure_of(named, GAUSSIAN)
    assert [s.name for s in found.sites] == ["z", "x"]
    assert found.exact == "enumerable"


# ---- exact or not, and why --------------------------------------------------------------------------------------


def test_rows_that_depend_on_one_another():
    def centred(x=None, size=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + x.mean(0), 1.0).to_event(1), obs=x)

    found = structure_of(centred, GAUSSIAN)
    assert found.exact == "no"
    assert "the rows are not independent" in found.reason


def test_one_row_is_a_data_set():
    assert structure_of("gmm", GAUSSIAN[:1], components=1).exact == "enumerable"


def test_the_limit_of_enumeration():
    def wide(x=None, size=None):
        with pyro.plate("data", len(x)):
            with pyro.plate("bits", 14):
                b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample(
                "x", dist.Normal(b.sum(-2).unsqueeze(-1), 1.0).expand([*b.shape[:-2], len(x), 3]).to_event(1), obs=x
            )

    program = load(wide, tensor(GAUSSIAN))
    found = describe(program, tensor(GAUSSIAN), limit=2**14 - 1)
    assert found.exact == "no"
    assert "'b'" in found.reason and "16,384" in found.reason and "16,383" in found.reason
    assert describe(program, tensor(GAUSSIAN), limit=2**14).exact == "enumerable"


def test_a_discrete_site_without_a_finite_support():
    def unbounded(x=None, size=None):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(k.unsqueeze(-1), 1.0).expand([len(x), 3]).to_event(1), obs=x)

    found = structure_of(unbounded, GAUSSIAN)
    assert found.exact == "no" and "'k' (Poisson) cannot be enumerated" in found.reason


def test_a_discrete_global_latent():
    def switch(x=None, size=None):
        on = pyro.sample("on", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(on, 1.0).expand([len(x), 3]).to_event(1), obs=x)

    found = structure_of(switch, GAUSSIAN)
    assert found.exact == "no" and "'on'" in found.reason


# ---- what the models say for themselves --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"components": 31}, "got components=31 for 30 rows"),
        ({"components": 0}, "components must be more than zero"),
        ({"components": -2}, "components must be more than zero, got -2"),
        ({"components": "2.5"}, "components must be a whole number, got '2.5'"),
        ({"components": True}, "components must be a whole number"),
        ({"covariance": "diag"}, "full, tied, diagonal, spherical, EII, VII, EEI, VEI, EVI,"),
        ({"priors": "maybe"}, "priors must be true or false"),
        ({"comps": 2}, "unknown option 'comps' of model 'gmm'"),
    ],
)
def test_options_of_gmm(options, says):
    assert says in refused("gmm", **options)


def test_gmm_takes_a_table():
    assert "expects a 2-D table" in refused("gmm", np.zeros((4, 2, 2)))
    assert "got components=31 for 30 rows" in refused("gmm", components=31)


def test_a_model_near_the_name():
    assert "did you mean gmm?" in refused("gm")
    assert "known: " in refused("zzzzz")
