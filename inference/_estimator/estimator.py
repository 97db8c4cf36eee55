"""`Estimator`: any model, by any method, as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._tags import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from inference._estimator.fitted import Fitted, Frozen, Posterior, dataset, invertible, labelled, located
from inference._method.fit import Evidence
from inference._run.prepare import find, method_module, prepare
from inference._run.request import Request
from inference._run.result import Run
from inference._run.runner import run_prepared
from zoo import _options
from zoo._data.columns import default_names
from zoo._errors import UsageError, unknown
from zoo._program.load import option_schema
from zoo._program.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

OWN = ("model", "method", "random_state", "standardize")
OF_THE_RUN = ("limit", "dtype", "device")  # options that belong to no model and no method


def _once_fitted(wanted: Callable[[Structure], object], what: str) -> Callable[[Estimator], bool]:
    """Whether a fitted estimator's program has `what` a function needs; before it is fitted nobody knows."""

    def check(estimator: Estimator) -> bool:
        if "_fitted" in vars(estimator) and not wanted((fitted := estimator._done()).structure):
            raise AttributeError(f"the program '{fitted.run.model}' has no {what}")
        return True

    return check


_LABELS = _once_fitted(labelled, "discrete latent with one value for each row whose posterior is exact: no labels")
_LATENTS = _once_fitted(lambda s: labelled(s) or located(s), "latents of the rows to transform them to")
_INVERSE = _once_fitted(
    invertible, "expectation of a row at given latents: it takes continuous latents and one observed site"
)


class Estimator(TransformerMixin, DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A model of the zoo, a `"file.py:callable"` or a Pyro callable as a scikit-learn estimator. NaN means "not observed".

        >>> import numpy as np
        >>> from latent_zoo import Estimator
        >>> x = np.concatenate([np.random.default_rng(0).normal(m, 1, size=(50, 2)) for m in (0, 6)])[:90]
        >>> found = Estimator("gmm", components=2).fit(x)
        >>> found.predict(x)[[0, -1]].tolist(), round(found.score(x))
        ([0, 1], -3)
        >>> Estimator("ppca", latents=1).fit(x).set_output(transform="pandas").transform(x).columns.tolist()
        ['z']

    - `method`: `em`, `laplace`, `svi`, …; `options`: the model's and the method's, as keywords or in a mapping, and `limit`,
      `dtype`, `device`. They are parameters of the estimator, so that a grid may search over `components`.
    - `random_state`: a seed, or a `RandomState`; None is 0. A seed gives the same fit, and the same sample, every time.
    - `standardize`: fit in units of each column's standard deviation. Scores and samples are in the data's own.

    Once fitted: `run_` is the `Run`, with its verified evidence, warnings and pictures; `parameters_` a data frame;
    `n_features_in_`, `feature_names_in_`. Which of `predict`, `transform` and `inverse_transform` there are depends on the
    program's latents. What is said of rows is exact where `run_.claimed.kind` is; `evidence(X)` says what `score(X)` is.
    """

    def __init__(
        self,
        model: object = None,
        *,
        method: str = "em",
        random_state: Any = None,
        standardize: bool = False,
        options: Mapping[str, object] | None = None,
        **more: object,
    ) -> None:
        self.model = model
        self.method = method
        self.random_state = random_state
        self.standardize = standardize
        self.options: Any = (
            {**options, **more} if isinstance(options, Mapping) else more if options is None else options
        )

    # ------------------------------------------------------------------------------------------------- parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name: model, method, random_state, standardize, and each option that was set."""
        options = self.options if isinstance(self.options, Mapping) else {"options": self.options}
        return {name: getattr(self, name) for name in OWN} | dict(options)

    def _options(self) -> dict[str, object]:
        if not isinstance(self.options, Mapping):
            raise UsageError(f"Expected a mapping of names to values for options, got {self.options!r:.40}.")
        return dict(self.options)

    def set_params(self, **params: object) -> Self:
        """Set parameters and options of these names. Raises `UsageError` for a name that neither model nor method knows."""
        for name in (*OWN, "options"):
            if name in params:
                setattr(self, name, params.pop(name))
        if more := params:
            known = self._known()
            if known and (wrong := next((k for k in more if k not in known), None)):
                raise unknown(f"parameter of Estimator({self.model!r}, method={self.method!r})", wrong, known)
            self.options = {**(self.options if isinstance(self.options, Mapping) else {}), **more}
        return self

    def _known(self) -> set[str]:
        """The names of all parameters; empty where the model or the method is not to be found, which `fit` says."""
        try:
            method = method_module(self.method)
            return {*OWN, *OF_THE_RUN, *option_schema(find(self.model).target), *_options.schema(method.fit)}
        except UsageError:
            return set()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return "_fitted" in vars(self)

    # ---------------------------------------------------------------------------------------------------- fitting

    def fit(self, X: Any, y: object = None, sample_weight: Any = None) -> Self:
        """Fit the program to the rows of X [n, columns], NaN where unobserved; `y` is not used.

        `sample_weight` [n]: how many times each row counts: a whole number fits as that many copies of the row would.
        """
        x = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
        if self.model is None:
            raise UsageError("Expected a model, got none: give a name, 'file.py:callable' or a callable.")
        weights = _weights(sample_weight, x)
        options = self._options()
        how = {k: options.pop(k) for k in OF_THE_RUN if k in options}
        named = getattr(self, "feature_names_in_", None)
        columns = default_names(x.shape[1]) if named is None else tuple(map(str, named))
        data = dataset(x, columns, weights, bool(self.standardize))
        request = Request(self.model, data, self.method, options, seed=self._seed(), **how)  # type: ignore[arg-type]
        try:
            self._fitted = _fit(request)
        except UsageError as error:
            if x.shape[1] > 1:
                raise
            raise type(error)(f"{error} (n_features=1)") from error
        category = ConvergenceWarning if self.run_.converged is False else UserWarning
        for sentence in self.run_.warnings:
            warnings.warn(sentence, category, stacklevel=2)
        return self

    def _seed(self) -> int:
        given = 0 if self.random_state is None else self.random_state
        return int(given) if isinstance(given, int | np.integer) else int(check_random_state(given).randint(2**31 - 1))

    @available_if(_LABELS)
    def fit_predict(self, X: Any, y: object = None, sample_weight: Any = None) -> np.ndarray:
        """`fit`, then `predict` of the same rows."""
        found: np.ndarray = self.fit(X, y, sample_weight).predict(X)
        return found

    @property
    def run_(self) -> Run:
        """The run, with its parameters, evidence as claimed and verified, warnings and pictures."""
        return self._done().run

    @property
    def parameters_(self) -> pd.DataFrame:
        """One line for each number of θ: its name, its index ("" for a single number), the estimate, and its standard error
        where the method gives one."""
        import pandas as pd

        run, lines = self.run_, []
        for name, values in run.parameters.items():
            errors = run.standard_errors.get(name)
            for index in np.ndindex(np.shape(values)):
                error = np.nan if errors is None else float(errors[index])
                lines.append((name, ",".join(map(str, index)), float(np.asarray(values)[index]), error))
        return pd.DataFrame(lines, columns=["name", "index", "estimate", "standard_error"])

    def _done(self) -> Fitted:
        check_is_fitted(self)
        if isinstance(self._fitted, Frozen):
            self._fitted = self._fitted.thawed()
        return self._fitted

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        rows: np.ndarray = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return rows

    # --------------------------------------------------------------------------------------------- latents of rows

    @available_if(_LABELS)
    def predict(self, X: Any) -> np.ndarray:
        """The most probable value of each row's discrete latent [n]; of several latents [n, latents]."""
        found = self._posterior(X)
        labels = [found.values[s][p.argmax(1)] for s, p in found.probabilities.items()]
        return labels[0] if len(labels) == 1 else np.stack(labels, 1)

    @available_if(_LABELS)
    def predict_proba(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """The posterior probability of each value of that latent [n, K]; of several latents a list of such arrays."""
        found = list(self._posterior(X).probabilities.values())
        return found[0] if len(found) == 1 else found

    @available_if(_LATENTS)
    def transform(self, X: Any) -> np.ndarray:
        """What the data say of each row's latents: the probabilities of the discrete ones, the posterior means of the others.

        `get_feature_names_out` names them: `z=0`, `z=1` for a discrete latent `z`, `z0`, `z1` for one of two numbers.
        """
        found = self._posterior(X)
        return np.concatenate([*found.probabilities.values(), *found.means.values()], 1)

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """The names of the columns of `transform`."""
        fitted = self._done()
        names = []
        for site in labelled(fitted.structure):
            values = fitted.run.task.engine.values_of(site.name).tolist()
            names += [f"{site.name}={value:g}" for value in values]
        for site in located(fitted.structure):
            size = int(np.prod(site.event_shape, dtype=int)) * site.inner
            names += [site.name] if size == 1 else [f"{site.name}{i}" for i in range(size)]
        return np.array(names, dtype=object)

    @available_if(_INVERSE)
    def inverse_transform(self, X: Any) -> np.ndarray:
        """E[x | z], the expectation of a row at the latents in each row of X, in the data's own units."""
        fitted = self._done()
        z = np.asarray(X, dtype=np.float64)
        names = self.get_feature_names_out()
        if z.ndim != 2 or z.shape[1] != len(names):
            raise UsageError(f"Expected rows of {len(names)} latents ({', '.join(names)}), got shape {z.shape}.")
        return fitted.at_latents(z)

    def _posterior(self, X: Any) -> Posterior:
        rows = self._rows(X)
        return self._done().posterior(rows)

    # ------------------------------------------------------------------------------------------- density of rows

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x_i) of each row [n], in nats and the data's own units; over its observed entries."""
        found = self.evidence(X).per_datum
        assert found is not None  # `evidence` has it
        return found

    def score(self, X: Any, y: object = None, sample_weight: Any = None) -> float:
        """The mean of log p(x_i), weighted where rows have weights: higher is better, as `GaussianMixture.score`."""
        rows = self.score_samples(X)
        weights = _weights(sample_weight, rows[:, None])
        return float(np.average(rows, weights=weights))

    def evidence(self, X: Any, sample_weight: Any = None) -> Evidence:
        """log p(x) of the rows of X with its kind (exact, lower bound, estimate) and each row's own part of it."""
        rows = self._rows(X)
        weights = _weights(sample_weight, rows)
        return self._done().evidence(rows, weights)

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Rows simulated from the fitted program [n_samples, columns], in the data's own units."""
        if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
            raise UsageError(f"Expected a whole number of 1 or more for n_samples, got {n_samples!r:.40}.")
        return self._done().sample(int(n_samples), self._seed())

    # ------------------------------------------------------------------------------------------------- to be kept

    def __getstate__(self) -> dict[str, Any]:
        """Plain values: the fitted θ, the request and the data, from which the program is made again."""
        state = dict(super().__getstate__())
        if isinstance(state.get("_fitted"), Fitted):
            state["_fitted"] = state["_fitted"].frozen()
        return state


def _weights(given: Any, rows: np.ndarray) -> np.ndarray | None:
    """The weights of rows [n]. Raises `UsageError` for one below 0."""
    if given is None:
        return None
    weights: np.ndarray = _check_sample_weight(given, rows, dtype=np.float64)
    if (weights < 0).any():
        row = int((weights < 0).argmax())
        raise UsageError(f"Expected weights of 0 or more, got {weights[row]:g} at row {row} (counting from 0).")
    return weights


def _fit(request: Request) -> Fitted:
    method = str(request.method)
    options, how = request.options, {"limit": request.limit, "dtype": request.dtype}
    prepared = prepare(request.model, request.data, options, [method], seed=request.seed, **how)  # type: ignore[arg-type]
    found = run_prepared(prepared, method, options, seed=request.seed, simulated=False, request=request)
    return Fitted(found, prepared)
