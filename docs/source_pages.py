"""A Sphinx extension: files of the repository that pages link to become pages of the site.

In the Markdown a link goes to the file, `../wosac_toolkit/metric.py`, which is what a forge or an
editor opens. In the site it goes to a highlighted copy of it and, where the link's text is the name
of something that the file defines, to its line.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
_LANGUAGES = {".py": "python", ".md": "markdown", ".json": "json", ".yaml": "yaml"}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
_linked: set[str] = set()


def definitions(path: Path) -> dict[str, int]:
    """Name -> line of what a Python file defines; members of classes as `Class.member`."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, int]]:
        for node in body:
            match node:
                case ast.FunctionDef(name=name):
                    yield prefix + name, node.lineno
                case ast.ClassDef(name=name):
                    yield prefix + name, node.lineno
                    yield from walk(node.body, f"{prefix}{name}.")
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    yield prefix + name, node.lineno

    return dict(walk(ast.parse(path.read_text()).body, ""))


def _link_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to files outside of the documentation into links to their pages."""
    folder = Path(app.env.doc2path(docname)).parent

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = Path(os.path.normpath(folder / target))
        if path.is_dir():
            return text
        name = path.relative_to(ROOT).as_posix()
        _linked.add(name)
        lines = definitions(path) if path.suffix == ".py" else {}
        line = lines.get(text.strip("`"))
        return f"[{text}](source:{name}.html" + (f"#L-{line})" if line else ")")

    source[0] = _LINK.sub(link, source[0])


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page of each linked file."""
    for name in sorted(_linked):
        text = (ROOT / name).read_text()
        language = _LANGUAGES.get(Path(name).suffix, "text")
        code = app.builder.highlighter.highlight_block(  # type: ignore[attr-defined]
            text, language, force=True, lineanchors="L"
        )
        body = f'<h1 class="source">{name}</h1>\n{code}'
        yield f"source/{name}", {"title": name, "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    schemes = {"http": None, "https": None, "source": {"url": "source/{{path}}#{{fragment}}"}}
    app.config["myst_url_schemes"] = schemes
    app.connect("source-read", _link_pages)
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": False}
