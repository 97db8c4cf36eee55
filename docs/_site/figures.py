"""The pictures of a gallery script: those of pyplot, and a figure that is the last value of a block, as `run.plot(…)` is."""

from __future__ import annotations

import re
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

ICONS = re.compile(
    r'<link rel="stylesheet"\s+href="https:[^"]*font-awesome[^"]*">'
)  # the theme has them, without a network


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    of_pyplot = [pyplot.figure(number) for number in pyplot.get_fignums()]
    shown: str = ICONS.sub("", matplotlib_scraper(block, block_vars, gallery_conf))
    names = block_vars["example_globals"]
    last = names.get("___")  # sphinx-gallery's name for it
    if not isinstance(last, Figure):
        return shown
    names["___"] = None  # neither shown again by the next block, nor as text
    if last in of_pyplot:
        return shown
    path = next(block_vars["image_path_iterator"])
    last.savefig(path, dpi=150)
    return shown + str(figure_rst([path], gallery_conf["src_dir"]))
