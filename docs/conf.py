"""The documentation as a site: ``make docs``. Nothing is loaded from the network, neither to build nor to read it."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import durian_adv

ROOT = Path(__file__).resolve().parent.parent

project = "durian-adv"
author = "durian-adv contributors"
project_copyright = author
version = release = durian_adv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "index"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
math_renderer = html_math_renderer = "mathml"

# a name in backticks that could be a Python object must be one, inside the docstrings
autodoc_typehints = "none"  # the signature has them, the text tells shapes
autodoc_member_order = "bysource"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(Tensor|torch\..*|Sequence|Any|Literal|Callable|Optional|NamedTuple)")]

html_theme = "furo"
html_title = f"durian-adv {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
# where the rest of the repository is, for links out of docs/; a build without it has their text only
REPOSITORY = os.environ.get("DOCS_REPOSITORY", "")


def _mathml(display: str):  # noqa: ANN202  # a pair of functions for Sphinx
    def visit(translator: HTML5Translator, node: nodes.Element) -> None:
        source = node.astext()
        try:
            formula = convert(source, display=display)
        except Exception as error:  # told with its formula; -W makes the build fail
            raise ValueError(f"not a formula that can be shown: {source!r}") from error
        # LaTeX's thin spaces around a function's name, which the converter leaves out: x log x
        thin = '<mspace width="0.17em"></mspace>'
        formula = re.sub(r"<mi>(log|min|cos)</mi>", rf"{thin}\g<0>{thin}", formula)
        formula = re.sub(rf"{thin}(<mo[^>]*>&#x00028;)", r"\1", formula)
        formula = formula.replace("<math ", f'<math alttext="{html.escape(source, quote=True)}" ', 1)
        translator.body.append(formula if display == "inline" else f'<div class="math">{formula}</div>')
        raise nodes.SkipNode

    return visit, None


def _link_out(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to files of the repository that are no pages into links to where it is published, or into text."""

    def link(match: re.Match[str]) -> str:
        path = (app.srcdir / match["path"]).resolve()
        if not path.exists():
            return match[0]  # stays an error
        return f"[{match['text']}]({REPOSITORY}/{path.relative_to(ROOT)})" if REPOSITORY else match["text"]

    source[0] = re.sub(r"\[(?P<text>[^]]+)\]\((?P<path>\.\./[^)#]+)\)", link, source[0])


def setup(app: Sphinx) -> None:
    """Show mathematics as MathML, which browsers render without scripts or fonts of ours; resolve links out of docs."""
    app.connect("source-read", _link_out)
    app.add_html_math_renderer("mathml", inline_renderers=_mathml("inline"), block_renderers=_mathml("block"))
