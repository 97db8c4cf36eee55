"""The loadings of a run, and scores of its rows or of others."""

from __future__ import annotations

from collections.abc import Callable

from inference._loadings.affine import of_task
from inference._loadings.table import Loadings, Rows, table
from inference._method.task import Task
from inference._run.entrance import entrance
from inference._run.failures import in_words
from inference._run.record import Record
from inference._run.reopen import other_data
from zoo import _options
from zoo._errors import UsageError


@entrance
def loadings_of(
    run: Record, at_theta: Callable[[], Task], rotation: str | None, standardized: bool, kaiser: bool | None
) -> Loadings:
    """`Run.loadings`; `at_theta` gives the program at the run's θ."""
    _options.flags(standardized=standardized, **({} if kaiser is None else {"kaiser": kaiser}))
    with in_words(run.model, "reading its loadings"):
        task = at_theta()
        affine = of_task(task)
    notes = ["the run did not converge: other loadings may fit better."] if run.converged is False else []

    def rows(data: object) -> Rows:
        own = run.dataset
        if data is None and not own.has_rows:
            raise UsageError(
                "there are no rows to score: the run's data are a covariance matrix. Give rows (data=…, on the command line "
                "--data), in its units and less their means."
            )
        if data is None:
            return Rows(own.x, own.row_names)
        other = other_data(own, data, 0, {})
        return Rows(other.x, other.row_names)

    return table(
        affine,
        task,
        run.dataset,
        rows,
        rotation=rotation,
        standardized=standardized,
        kaiser=kaiser,
        title=f"{run.model} on {run.data} (n = {run.n:,})",
        notes=notes,
    )
