"""What the factors of a linear program keep of each row, against the row."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.factors import Factors
from inference._pictures._views.fits import explained, fits
from inference._pictures._views.images import few_images, image_rows
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import three_digits


def subject(run: Scene) -> Factors | None:
    return run.factors


def draw(run: Scene, factors: Factors) -> Figure:
    x = run.x.reshape(len(run.x), -1)[factors.rows][:, factors.columns]
    if run.image_shape is not None and len(factors.columns) == math.prod(run.image_shape):
        order = np.argsort(factors.columns)
        return _image_rows(run, x[:, order], factors.signal[:, order], factors.rows)
    title = "observed against B E[z | x] + b, what the factors keep of each row"
    return fits(run, x, factors.signal, factors.columns, title)


def _image_rows(run: Scene, x: np.ndarray, made: np.ndarray, rows: np.ndarray) -> Figure:
    """Ten images, their reconstructions below them."""
    few = few_images(len(x), run.labels_of(rows))
    kept = three_digits(float(explained(x.reshape(-1, 1), made.reshape(-1, 1))[0]))
    title = run.title(f"originals above B E[z | x] + b, what the factors keep of them; R² over all pixels {kept}")
    return image_rows(run, title, [("original", x[few]), ("reconstruction", made[few])])
