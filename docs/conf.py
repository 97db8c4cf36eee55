"""How Sphinx builds the site: `make -C docs html`. No network is needed."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # `_site`, and the packages of this checkout, installed or not
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "Latent Zoo"
author = "the authors of Latent Zoo"
version = release = installed("latent-zoo")
html_title = project
html_show_copyright = False

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "_site.extension",
]
exclude_patterns = ["_build", "_site", "notes", "gallery", "Makefile"]
suppress_warnings = ["config.cache"]  # the gallery's order is a class
default_role = "code"  # docstrings write `names` in single backticks
nitpicky = False

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "reset_modules": ("matplotlib",),
    "abort_on_example_error": True,
    "image_scrapers": ["_site.figures.scraper"],
    "ignore_repr_types": r"matplotlib[.]",
}

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {
    page: [] for page in ("start", "choose", "concepts", "lectures", "tasks", "command", "api", "benchmarks")
}
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": ["sphinx-version", "theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "header_links_before_dropdown": 6,
}
html_context = {"default_mode": "auto"}
