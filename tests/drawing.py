"""One picture of a run, by its name."""

from __future__ import annotations

from matplotlib.figure import Figure

from inference._pictures._draw import pictures
from inference._pictures._views.scene import Scene


def picture_of(name: str, scene: Scene) -> Figure:
    """The picture, of which the run must have the subject."""
    picture = pictures()[name]
    subject = picture.subject(scene)
    assert subject is not None
    return picture.draw(scene, subject)
