"""The documentation as a site: ``sphinx-build -W --keep-going -b html docs build/docs``.

The build reads this checkout and the installed wfcast, and nothing from the network.
"""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import wfcast

logger = logging.getLogger(__name__)

project = "wfcast"
author = "the wfcast developers"
copyright = f"2026, {author}"
version = release = wfcast.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb"]
exclude_patterns = ["_static", "_templates"]
templates_path = ["_templates"]

# Names in single backticks, as docstrings have them, are links where there is such an object.
default_role = "py:obj"
add_module_names = False
autodoc_typehints = "none"  # the docstrings give the types
autodoc_member_order = "bysource"
autosummary_imported_members = True
numpydoc_show_class_members = False  # the template of a class lists them

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook carries its outputs; tests/test_notebook.py runs it

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
html_title = f"wfcast {release}"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}
html_sidebars = {page: [] for page in ("install", "results", "solver")}  # no pages below them
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"


def _math(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s: %s", error, node.astext(), location=node)
        raise nodes.SkipNode from error
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers show by themselves: MathJax comes from the network."""
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
