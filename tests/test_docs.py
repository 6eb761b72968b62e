"""The pages hold: examples run and print what is shown, commands parse, links lead somewhere.

In the pages `<!-- run -->` stands before a block that is run, in a folder of the page's own, after
those before it; `<!-- output -->` before what the last block printed, `<!-- output: begins -->`
before the first lines of it. Numbers may differ by what other processors round differently.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from browser import Browser, find_chromium

from smart_r1.cli import main as smart_r1
from wosac_toolkit.challenge import CHALLENGES, COMPONENTS, Histogram
from wosac_toolkit.cli import main as wosac

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "leaderboard" / "README.md"]
PROGRAMS = {"wosac": wosac, "smart-r1": smart_r1}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(
    r"^<!-- (run|output)(?:: (\w+))? -->\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --------------------------------------------------------------------------------------------------
# Examples


@dataclass(frozen=True)
class Example:
    """A block that is run, and what it is said to print."""

    language: str
    text: str
    needs: str
    output: str | None = None
    only_begins: bool = False


def _examples(page: Path) -> list[Example]:
    examples: list[Example] = []
    for kind, option, language, text in _MARK.findall(page.read_text()):
        if kind == "run":
            examples.append(Example(language, text, option))
        else:
            last = examples.pop()
            examples.append(Example(last.language, last.text, last.needs, text, option == "begins"))
    return examples


def _run(example: Example, folder: Path) -> str:
    """What an example prints to stdout."""
    programs = Path(sys.executable).parent
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    command = [sys.executable, "-c"] if example.language == "python" else ["bash", "-euc"]
    done = subprocess.run(
        [*command, example.text],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{example.text}\n{done.stderr[-3000:]}"
    return done.stdout


_NUMBER = re.compile(r"[-+]?\d+\.\d+")


def _assert_alike(shown: str, printed: str) -> None:
    """The same text, with numbers that differ by at most 2 in the last digit but one."""
    assert _NUMBER.sub("#", shown).split() == _NUMBER.sub("#", printed).split()
    for a, b in zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True):
        unit = 10.0 ** -len(a.partition(".")[2])
        assert abs(float(a) - float(b)) <= 20 * unit, (a, b)


@pytest.mark.parametrize("page", [p for p in PAGES if _examples(p)], ids=_name)
def test_examples_run_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    for example in _examples(page):
        if example.needs:
            pytest.importorskip(example.needs)
        printed = _run(example, tmp_path)
        if example.output is not None:
            n_lines = example.output.count("\n") if example.only_begins else None
            # Trailing blanks of tables are not kept in the pages.
            lines = [line.rstrip() for line in printed.splitlines()][:n_lines]
            _assert_alike(example.output.strip(), "\n".join(lines).strip())


def test_other_numbers_are_told_apart() -> None:
    _assert_alike("realism 0.5022\n", "realism  0.5023\n")
    for other in ("realism 0.5122", "realism 0.5022 x", "score 0.5022"):
        with pytest.raises(AssertionError):
            _assert_alike("realism 0.5022", other)


def test_there_are_examples() -> None:
    with_examples = {page.name for page in PAGES if any(e.output for e in _examples(page))}
    assert with_examples >= {"quick-start.md", "comparing.md", "reward-api.md"}


# --------------------------------------------------------------------------------------------------
# Commands


def _shell_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines that begin with one of our programs, and whether they stand in a block of code."""
    prose = text
    for language, block in _FENCE.findall(text):
        prose = prose.replace(block, "")
        if language in ("", "bash", "sh", "shell", "console", "text"):
            for line in block.replace("\\\n", " ").splitlines():
                yield line, True
    for line in re.findall(r"^(?: {4,}|\t)(\S.*)$", prose.replace("\\\n", " "), re.MULTILINE):
        yield line, True
    for line in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        yield " ".join(line.split()), False


def _commands(text: str) -> Iterator[tuple[list[str], bool]]:
    for line, in_block in _shell_lines(text):
        words = line.strip().removeprefix("$ ")
        if not words.startswith(("wosac ", "smart-r1 ")):
            continue
        # An ellipsis stands for more of the same; what follows > is a file.
        split = shlex.split(words, comments=True)
        yield (
            [w for w in split[: split.index(">")] if w != "..."]
            if ">" in split
            else [w for w in split if w != "..."],
            in_block and "..." not in split,
        )


def _parse(words: list[str], complete: bool) -> None:
    """Parse a command line without running it; raise what click says of it."""
    command: click.Command = PROGRAMS[words[0]]
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no command {rest[0]}")
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    # A sentence may name an option without its value.
    context.resilient_parsing = not complete
    given, others, _ = command.make_parser(context).parse_args(list(rest))
    if others and not isinstance(command, click.Group):
        raise click.UsageError(f"too many arguments: {others}")
    for parameter in command.params:
        value = given.get(parameter.name or "")
        missing = value is None or parameter.value_is_missing(value)
        if complete and parameter.required and parameter.envvar is None and missing:
            raise click.MissingParameter(param=parameter, ctx=context)
        if isinstance(parameter.type, click.Choice) and isinstance(value, str) and "|" not in value:
            parameter.type.convert(value, parameter, context)


ALL_COMMANDS = [
    (page, words, complete) for page in TEXTS for words, complete in _commands(page.read_text())
]


@pytest.mark.parametrize(
    ("words", "complete"),
    [
        pytest.param(words, complete, id=f"{_name(page)}: {' '.join(words)}")
        for page, words, complete in ALL_COMMANDS
    ],
)
def test_commands_parse(words: list[str], complete: bool) -> None:
    _parse(words, complete)


@pytest.mark.parametrize(
    "line",
    [
        "wosac scor rollouts/",
        "wosac score rollouts/ --challange 2025",
        "wosac score rollouts/ --challenge 2022",
        "wosac score",
        "wosac score a b",
        "wosac simulate --scenarios scenes --out rollouts",
        "smart-r1 finetune --reward",
    ],
)
def test_wrong_commands_do_not(line: str) -> None:
    with pytest.raises(click.UsageError):
        _parse(line.split(), complete=True)


def test_every_command_is_in_the_pages() -> None:
    told = {tuple(words[:2]) for _, words, _ in ALL_COMMANDS}
    for name, program in PROGRAMS.items():
        for command in program.list_commands(click.Context(program)):
            assert (name, command) in told, f"{name} {command} is told nowhere"


# --------------------------------------------------------------------------------------------------
# Links


def _links(text: str) -> list[tuple[str, str]]:
    """(text, target) of the links outside of code blocks."""
    prose = re.sub(r"^(```|<!--).*?(```|-->)$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\[((?:[^\[\]]|\n)+)\]\(([^)\s]+)\)", prose)


def _slugs(path: Path) -> set[str]:
    """Anchors of the headings, as a forge and the site make them."""
    text = _FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


RELATIVE = [
    pytest.param(page, text, target, id=f"{_name(page)}: {target}")
    for page in TEXTS
    for text, target in _links(page.read_text())
    if not re.match(r"\w+:", target)
]


@pytest.mark.parametrize(("page", "text", "target"), RELATIVE)
def test_relative_links_and_anchors_resolve(page: Path, text: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    assert file.is_relative_to(ROOT)
    assert not anchor or anchor in _slugs(file)


def _definitions(path: Path) -> set[str]:
    """What a Python file defines, members of classes as `Class.member`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        owners = [("", node)]
        if isinstance(node, ast.ClassDef):
            owners += [(f"{node.name}.", member) for member in node.body]
        for prefix, each in owners:
            if isinstance(each, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + each.name)
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                names.add(prefix + each.target.id)
            elif isinstance(each, ast.Assign):
                names |= {prefix + t.id for t in each.targets if isinstance(t, ast.Name)}
    return names


CODE = [
    (page, text.strip("`"), target)
    for page in PAGES
    for text, target in _links(page.read_text())
    if target.endswith(".py") and text.strip("`").rpartition("/")[2] != Path(target).name
]


@pytest.mark.parametrize(
    ("page", "symbol", "target"),
    [pytest.param(*link, id=f"{_name(link[0])}: {link[1]}") for link in CODE],
)
def test_links_to_code_name_what_is_there(page: Path, symbol: str, target: str) -> None:
    assert symbol.removesuffix("()") in _definitions((page.parent / target).resolve())


def test_the_metric_is_linked_to_its_code() -> None:
    assert len([page for page, _, _ in CODE if page.name == "metric.md"]) > 30


def test_every_page_is_in_the_navigation() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        assert page.name == "index.md" or re.search(rf"^- \[.+\]\({page.name}\)", index, re.M)


# --------------------------------------------------------------------------------------------------
# What pages say of the code


def _table(page: Path, mark: str) -> list[list[str]]:
    """The rows of the table below `<!-- table: mark -->`, without its head."""
    _, _, text = page.read_text().partition(f"<!-- table: {mark} -->\n\n")
    rows = text.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def _bins(year: str, name: str) -> str:
    component = CHALLENGES[year].component(name)
    if component is None:
        return "-"
    if not isinstance(component.estimator, Histogram):
        return "yes or no"
    unit = {"speed": "s", "acceleration": "s²"}.get(name.partition("_")[2], "")
    unit = f"{'m' if name.startswith('linear') else 'rad'}/{unit}" if unit else "m"
    unit = "s" if name == "time_to_collision" else unit
    e = component.estimator
    return f"{e.low:g} to {e.high:g} {unit}, {e.n_bins}"


def test_the_table_of_components_is_the_code_s() -> None:
    expected = []
    for name in COMPONENTS:
        weights = [CHALLENGES[year].component(name) for year in ("2025", "2024", "2023")]
        component = CHALLENGES["2025"].component(name)
        assert component is not None
        assert _bins("2024", name) in (_bins("2025", name), "-")
        expected.append(
            [name, component.bucket, _bins("2025", name), _bins("2023", name)]
            + ["-" if c is None else f"{c.weight:.2f}" for c in weights]
        )
    assert _table(ROOT / "docs" / "metric.md", "components") == expected


def test_the_numbers_of_the_metric_page() -> None:
    text = (ROOT / "docs" / "metric.md").read_text()
    unseen = 0.1 / (32 * 80 + 10 * 0.1)
    never = 0.001 / (32 + 2 * 0.001)
    assert f"$p = 0.1 / 2561 = {unseen * 1e5:.1f} \\cdot 10^{{-5}}$" in text
    assert f"$p = {never * 1e5:.1f} \\cdot 10^{{-5}}$" in text
    assert f"component\nto {never**0.25:.3f} for" in text
    assert f"$0.75^{{1/4}} = {0.75**0.25:.2f}$" in text
    assert sum(c.weight for c in CHALLENGES["2023"].components) == pytest.approx(0.99)


# --------------------------------------------------------------------------------------------------
# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew, with warnings as errors."""
    for package in ("sphinx", "myst_parser", "furo", "latex2mathml"):
        pytest.importorskip(package, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d"]
    done = subprocess.run(
        [*command, str(out / "doctrees"), str(ROOT / "docs"), str(out / "html")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


def test_links_to_code_lead_to_its_line(site: Path) -> None:
    page = (site / "metric.html").read_text()
    addresses = re.findall(r'href="(source/[^"#]+)#L-(\d+)"', page)
    assert len(addresses) > 30
    for address, line in addresses:
        text = (site / address).read_text()
        assert f'id="L-{line}"' in text


def test_all_links_within_the_site_resolve(site: Path) -> None:
    for page in site.glob("*.html"):
        for address in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            if not re.match(r"(\w+:|#|//)", address):
                path = re.split(r"[?#]", address)[0]
                assert not path or (page.parent / path).exists(), f"{page.name}: {address}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in (*site.glob("*.html"), *site.glob("source/**/*.html")):
        text = page.read_text()
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text)
        assert not re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//', text)
    for style in site.glob("_static/**/*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text())


def test_pages_fit_phones_and_desktops(site: Path, tmp_path: Path) -> None:
    find_chromium()
    with Browser(tmp_path / "profile") as browser:
        for name in ("index", "quick-start", "metric", "reward-api"):
            for width, mobile in ((1280, False), (390, True)):
                browser.resize(width, 900, mobile=mobile)
                browser.open(site / f"{name}.html")
                assert browser.problems == []
                assert all(url.startswith(("file:", "data:", "about:")) for url in browser.requests)
                assert browser.run("document.documentElement.scrollWidth") <= width
                assert browser.run("document.querySelector('h1').innerText.length") > 3
        assert browser.run("document.querySelectorAll('math').length") > 5
