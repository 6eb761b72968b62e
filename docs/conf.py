"""Sphinx's configuration. The pages are plain Markdown; `make docs` builds the site of them.

Nothing of the site is loaded from elsewhere: fonts are the reader's, and equations become MathML
when the site is built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "wosac-toolkit"
author = "wosac-toolkit contributors"
extensions = ["myst_parser", "source_pages"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["site"]
# Blocks of a shell session are text: a lexer sees errors in tables.
highlight_language = "text"
html_theme = "furo"
html_title = "wosac-toolkit"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = "mathml"


def _navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """The navigation is what index.md lists, by its headings."""
    if docname != "index":
        return
    for part in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption, _, text = part.partition("\n")
        pages = re.findall(r"^- \[.+?\]\(([\w-]+)\.md\)", text, flags=re.MULTILINE)
        tree = [":hidden:", f":caption: {caption}", "", *pages]
        source[0] += "\n```{toctree}\n" + "\n".join(tree) + "\n```\n"


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="equation">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _navigation)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
