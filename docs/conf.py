"""The rendered documentation: `make docs` writes docs/_build/html, which needs no network to be read.

Formulas become MathML when the pages are built, so that no script has to be loaded to show them.
"""

from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "largebatch"
author = "The largebatch authors"
version = release = installed_version("largebatch")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "myst_parser"]
intersphinx_mapping: dict[str, Any] = {}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_title = f"largebatch {version}"
html_math_renderer = "mathml"

default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def _displayed(translator: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    if "\\\\" in latex or "&" in latex:
        latex = f"\\begin{{align*}}{latex}\\end{{align*}}"
    translator.body.append(f'<div class="formula">{convert(latex, display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
