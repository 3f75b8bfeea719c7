"""Sphinx configuration. Build with ``make docs``: the gallery is executed and every warning is an error."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "recplug"
author = "The recplug authors"
copyright = "2026, the recplug authors"
release = installed("recplug")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "settings_tables",
    "command_tables",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "_tables", "gallery/*.ipynb", "gallery/*.py", "**sg_execution_times.rst"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the sentences say what things are; signatures with every annotation hide the names
napoleon_numpy_docstring = False
napoleon_use_ivar = True

smartquotes_action = "qe"  # no dashes: options begin with two hyphens
html_theme = "furo"
html_title = f"recplug {release}"
html_show_copyright = False

# The gallery: every examples/plot_*.py is executed, on data that lie in the repository, and a failure fails the build.
sphinx_gallery_conf = {
    "examples_dirs": [str(HERE.parent / "examples")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",
    "nested_sections": False,
    "within_subsection_order": "gallery_order.Order",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "plot_gallery": "True",
}


def _only_rst_headers(app, config):
    """The gallery takes any subfolder with a README for a section; the one of the plugin package is Markdown."""
    config.sphinx_gallery_conf["source_suffix"] = {".rst": "restructuredtext"}


def setup(app):
    app.connect("config-inited", _only_rst_headers, priority=20)  # after sphinx-gallery has filled its defaults
