from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import Browser, find_chromium

from wosac_toolkit.errors import WosacError
from wosac_toolkit.leaderboard.board import by_score, load_entries, select
from wosac_toolkit.leaderboard.entry import META_METRIC, Conflict, Entry, Link, Results, parse_entry

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")

from wosac_toolkit.leaderboard.pages import build_pages, render_pages

EVIL = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>'\"&amp;"


def an_entry(id_: str, score: float = 0.7, **changes: Any) -> Entry:
    fields = {
        "schema_version": 1,
        "method": id_,
        "challenge": "2025",
        "split": "test",
        "n_scenarios": 44_920,
        "tier": "official server",
        "results": {"values": {META_METRIC: score}, "source": {"text": "a paper"}},
        **changes,
    }
    return parse_entry(json.dumps(fields), id_)


def a_run(id_: str, score: float, **changes: Any) -> Entry:
    """An entry as `entry_of_run` makes it of a local run."""
    tier = "re-scored from rollouts"
    results = {
        "values": {META_METRIC: score},
        "source": {"text": "wosac score 0.1.0"},
        "intervals": {META_METRIC: [score - 0.01, score + 0.01]},
    }
    return an_entry(id_, tier=tier, results=results, local=True, **changes)


RUNS = [
    a_run("local-small", 0.755, split="other", n_scenarios=8, conditions="8 other scenes"),
    a_run("local-whole", 0.756, split="validation", n_scenarios=44_097),
    a_run("local-old", 0.757, challenge="2024", split="validation", n_scenarios=44_097),
]


@pytest.fixture(scope="module")
def published() -> list[Entry]:
    return load_entries()


@pytest.fixture(scope="module")
def site(published: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the published entries with three runs beside them."""
    folder = tmp_path_factory.mktemp("site")
    build_pages([*published, *RUNS], folder)
    return folder


# --------------------------------------------------------------------------------------------------
# The files


class Elements(HTMLParser):
    """The elements of a page, with a check that they are closed in order."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def addresses(self) -> list[str]:
        pairs = [(attrs.get("href") or attrs.get("src")) for _, attrs in self.found]
        return [address for address in pairs if address]


def pages_of(folder: Path) -> list[Path]:
    return [folder / "index.html", *sorted((folder / "entries").glob("*.html"))]


def test_every_entry_has_a_row_and_a_page(site: Path, published: list[Entry]) -> None:
    ids = {entry.id for entry in (*published, *RUNS)}
    assert {path.stem for path in (site / "entries").iterdir()} == ids
    rows = Elements((site / "index.html").read_text()).found
    assert {attrs["data-id"] for tag, attrs in rows if "data-id" in attrs and tag == "tr"} == ids


def test_pages_are_well_formed_and_lead_nowhere_without_a_file_or_to_other_than_the_web(
    site: Path,
) -> None:
    for page in pages_of(site):
        elements = Elements(page.read_text())
        for address in elements.addresses():
            parts = urlsplit(address)
            if parts.scheme in ("http", "https"):
                # Only a reader's click leads out: nothing is loaded from there.
                assert ("a", address) in [(t, a.get("href")) for t, a in elements.found]
            elif address != "data:,":
                assert parts.scheme == ""
                assert not parts.path or (page.parent / parts.path).is_file(), address


def test_the_style_sheet_and_the_script_load_nothing(site: Path) -> None:
    for name in ("board.css", "board.js"):
        text = (site / name).read_text()
        for word in ("http:", "https:", "url(", "@import", "fetch(", "innerHTML", "eval("):
            assert word not in text, (name, word)


def test_the_same_entries_give_the_same_bytes(published: list[Entry], tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_pages(reversed(published) if name == "two" else published, tmp_path / name)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in folder.rglob("*.*")}
        for name in ("one", "two")
        for folder in [tmp_path / name]
    ]
    assert files[0] == files[1]


def test_text_of_entries_stays_text(tmp_path: Path) -> None:
    honest = an_entry("evil", challenge="other", conditions="x", split="other")
    # Made without `parse_entry`, which would refuse the addresses.
    link = Link(EVIL, "javascript:document.title='evil'")
    results = Results({META_METRIC: 0.5}, link, EVIL, conflicts=(Conflict(EVIL),))
    evil = replace(
        honest,
        method=EVIL,
        conditions=EVIL,
        venue=EVIL,
        notes=(EVIL,),
        signature=EVIL,
        code="javascript:document.title='evil'",
        paper=link,
        results=results,
        other_results=(results,),
        local=True,
    )
    build_pages([evil, an_entry("fine")], tmp_path)
    for page in pages_of(tmp_path):
        text = page.read_text()
        elements = Elements(text)
        assert "<img" not in text
        scripts = [attrs for tag, attrs in elements.found if tag == "script"]
        assert all(attrs == {"src": "board.js", "defer": None} for attrs in scripts)
        assert not any(a.startswith("javascript") for a in elements.addresses())
        assert not any(name.startswith("on") for _, attrs in elements.found for name in attrs)


def test_two_entries_with_one_id_are_refused() -> None:
    with pytest.raises(WosacError, match="two entries have the id 'a'"):
        render_pages([an_entry("a"), an_entry("a", 0.6)])


def test_a_page_is_replaced_and_what_is_gone_is_deleted(tmp_path: Path) -> None:
    build_pages([an_entry("a"), an_entry("b")], tmp_path)
    build_pages([an_entry("b"), an_entry("c")], tmp_path)
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"b.html", "c.html"}
    assert "entries/a.html" not in (tmp_path / "index.html").read_text()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>My home page</title>")
    with pytest.raises(WosacError, match="something else than a page of wosac leaderboard"):
        build_pages([an_entry("a")], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<title>My home page</title>"
    (tmp_path / "index.html").unlink()
    build_pages([an_entry("a")], tmp_path)
    assert (tmp_path / "entries" / "a.html").is_file()


def test_the_page_of_an_entry_tells_all_that_is_known(site: Path) -> None:
    text = (site / "entries" / "2025-test-smart-tiny-rlftsim.html").read_text()
    for words in ("0.7857", "0.7867", "0.7844", "44,920 scenes", "official server", "CVPR 2026"):
        assert words in text
    assert 'href="https://arxiv.org/abs/2605.19033"' in text
    text = (site / "entries" / "2025-test-rosettasim.html").read_text()
    assert "a realism meta-metric of 0.78367; printed is 0.7833, a difference of +0.00037" in text
    text = (site / "entries" / "local-whole.html").read_text()
    assert "0.7460 to 0.7660" in text


# --------------------------------------------------------------------------------------------------
# The page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    find_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Browser]:
    """The page on a laptop, freshly opened; it must end without a complaint on the console."""
    browser.resize(1366, 850)
    browser.open(site / "index.html")
    yield browser
    assert browser.problems == []
    assert {urlsplit(url).scheme for url in browser.requests} <= {"file", "data"}


VISIBLE = "[...document.querySelectorAll('tbody tr:not([hidden])')]"


def shown(page: Browser) -> list[str]:
    """The ids of the entries in the table, from above."""
    ids: list[str] = page.run(f"{VISIBLE}.map((row) => row.dataset.id)")
    return ids


def column(page: Browser, name: str) -> list[str]:
    """What a column shows, from above."""
    cells: list[str] = page.run(
        "(() => { const heads = [...document.querySelectorAll('thead th')];"
        f"const at = heads.findIndex((h) => h.querySelector('[data-sort={name}]'));"
        f"return {VISIBLE}.map((row) => row.cells[at].dataset.value); }})()"
    )
    return cells


def press_head(page: Browser, name: str) -> None:
    page.click(f"thead [data-sort={name}]")


def sorting(page: Browser) -> dict[str, str]:
    found: dict[str, str] = page.run(
        "Object.fromEntries([...document.querySelectorAll('th[aria-sort]')].map("
        "(head) => [head.querySelector('button').dataset.sort, head.ariaSort]))"
    )
    return found


def choose(page: Browser, control: str, value: str) -> None:
    page.run(
        f"(() => {{ const s = document.querySelector('#{control}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def tab(page: Browser) -> str:
    selected: str = page.run("document.querySelector('[role=tab][aria-selected=true]').textContent")
    return selected


def count(page: Browser) -> str:
    text: str = page.run("document.querySelector('#count').textContent")
    return text


def published_ids(published: list[Entry], challenge: str, split: str) -> list[str]:
    return [entry.id for entry in select(published, challenge, split)]


def without_runs(ids: list[str]) -> list[str]:
    return [id_ for id_ in ids if not id_.startswith("local-")]


def test_it_opens_on_the_latest_metric_and_the_test_split(
    page: Browser, published: list[Entry]
) -> None:
    assert tab(page) == "2025"
    assert without_runs(shown(page)) == published_ids(published, "2025", "test")
    assert sorting(page) == {META_METRIC: "descending"}
    assert page.run("document.querySelector('caption').textContent") == (
        "WOSAC 2025 metric, whole test split"
    )
    n_year = sum(entry.challenge == "2025" for entry in published)
    assert count(page) == f"{17 + len(RUNS)} of {n_year + len(RUNS)} entries"
    places = [place for place in column(page, "place") if place]
    assert places == [str(number) for number in range(1, 16)]


def test_tabs_choose_the_metric(page: Browser, published: list[Entry]) -> None:
    for year in ("2024", "2023", "2025"):
        page.click(f"#tab-{year}")
        assert tab(page) == year
        assert without_runs(shown(page)) == published_ids(published, year, "test")
    # None of the others is on a whole split: all of them are shown.
    page.click("#tab-other")
    assert without_runs(shown(page)) == published_ids(published, "other", "all")
    assert page.run("document.querySelector('#split').value") == "all"


def test_tabs_work_from_the_keyboard(page: Browser) -> None:
    page.run("document.querySelector('#tab-2025').focus()")
    page.press("ArrowRight")
    assert (tab(page), page.run("document.activeElement.id")) == ("2024", "tab-2024")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert (tab(page), page.run("document.activeElement.id")) == ("Other", "tab-other")
    page.press("Home")
    assert tab(page) == "2025"
    page.press("End")
    assert tab(page) == "Other"
    # One stop of the Tab key for all tabs.
    assert page.run("document.querySelectorAll('[role=tab][tabindex=\"0\"]').length") == 1
    page.press("Tab")
    assert page.run("document.activeElement.id") == "search"


@pytest.mark.parametrize(
    ("name", "first", "key"),
    [
        (META_METRIC, "descending", float),
        ("kinematic_metrics", "descending", float),
        ("min_ade", "ascending", float),
        ("parameters", "ascending", float),
        ("method", "ascending", str.casefold),
        ("date", "descending", str),
    ],
)
def test_columns_sort_both_ways_with_the_unknown_last(
    page: Browser, name: str, first: str, key: Callable[[str], Any]
) -> None:
    choose(page, "split", "all")
    if name == META_METRIC:
        press_head(page, "method")
    for order in (first, "ascending" if first == "descending" else "descending"):
        press_head(page, name)
        assert sorting(page) == {name: order}
        cells = column(page, name)
        known = [cell for cell in cells if cell]
        assert cells == known + [""] * (len(cells) - len(known))
        values = [key(cell) for cell in known]
        if name == "method":
            # Browsers put words with digits and hyphens in an order of their own.
            assert [v[0] for v in values if v[0].isalpha()] == sorted(
                (v[0] for v in values if v[0].isalpha()), reverse=order == "descending"
            )
        else:
            assert values == sorted(values, reverse=order == "descending")
        assert len(known) > 5


def test_a_column_is_sorted_from_the_keyboard(page: Browser) -> None:
    page.run("document.querySelector('[data-sort=min_ade]').focus()")
    page.press("Enter")
    assert sorting(page) == {"min_ade": "ascending"}
    assert shown(page)[0] == "2025-test-logged-oracle"


def test_search_finds_words_of_method_paper_and_venue(page: Browser) -> None:
    page.run("document.querySelector('#search').focus()")
    page.type("smart R1")
    assert without_runs(shown(page)) == ["2025-test-smart-r1"]
    page.run("document.querySelector('#search').select()")
    page.type("2606.31209")
    assert shown(page) == ["2025-test-rosettasim"]
    page.run("document.querySelector('#search').select()")
    page.type("no such method <b>")
    assert shown(page) == []
    assert page.run("!document.querySelector('#nothing').hidden")
    assert count(page).startswith("0 of ")


def test_filters_choose_scenes_and_tier(page: Browser, published: list[Entry]) -> None:
    choose(page, "split", "validation")
    assert without_runs(shown(page)) == published_ids(published, "2025", "validation")
    choose(page, "split", "otherwise")
    otherwise = [e.id for e in by_score(published) if e.challenge == "2025" and e.obstacles]
    assert without_runs(shown(page)) == otherwise
    # Without one whole split there are no places.
    assert page.run("getComputedStyle(document.querySelector('th.place')).display") == "none"
    choose(page, "split", "all")
    choose(page, "tier", "official server")
    assert without_runs(shown(page)) == published_ids(published, "2025", "test")
    choose(page, "tier", "self-reported")
    assert not set(shown(page)) & set(published_ids(published, "2025", "test"))


def test_rates_are_shown_on_demand(page: Browser) -> None:
    visible = "getComputedStyle(document.querySelector('th.rate')).display !== 'none'"
    assert not page.run(visible)
    page.click("#rates")
    assert page.run(visible)


def test_local_runs_stand_beside_the_published_and_say_what_keeps_them_apart(
    page: Browser,
) -> None:
    def remarks() -> dict[str, str]:
        found: dict[str, str] = page.run(
            "Object.fromEntries([...document.querySelectorAll('tr[data-local]:not([hidden])')].map("
            "(row) => [row.dataset.id, [...row.querySelectorAll('.here:not([hidden])')].map("
            "(badge) => badge.textContent).join()]))"
        )
        return found

    small = "not comparable: 8 other scenes"
    assert remarks() == {
        "local-small": small,
        "local-whole": "not comparable: validation split",
        "local-old": "not comparable: 2024 metric, validation split",
    }
    choose(page, "split", "validation")
    assert remarks() == {
        "local-small": small,
        "local-whole": "",
        "local-old": "not comparable: 2024 metric",
    }
    page.click("#tab-2024")
    choose(page, "split", "validation")
    assert remarks() == {
        "local-small": "not comparable: 2025 metric, 8 other scenes",
        "local-whole": "not comparable: 2025 metric",
        "local-old": "",
    }
    assert "local run" in page.run("document.querySelector('tr[data-local]').textContent")
    assert "0.7450 to 0.7650" in page.run(
        "document.querySelector('[data-id=local-small]').innerText"
    )
    page.click("#local")
    assert remarks() == {}


def test_what_is_chosen_is_kept_in_the_address(page: Browser, site: Path) -> None:
    page.click("#tab-2024")
    choose(page, "split", "all")
    press_head(page, "min_ade")
    page.run("document.querySelector('#search').focus()")
    page.type("smart")
    before = shown(page)
    address = page.run("location.href")
    assert len(before) > 3
    page.open(address)
    assert shown(page) == before
    assert (tab(page), sorting(page)) == ("2024", {"min_ade": "ascending"})
    page.click("#reset")
    assert page.run("location.hash") == "#year=2024"
    assert len(shown(page)) > len(before)


def test_an_address_with_anything_else_is_taken_as_none(page: Browser, site: Path) -> None:
    index = (site / "index.html").as_uri()
    page.open(f"{index}#year=1999&split=%3Cb%3E&sort=__proto__&order=up&tier=x&rates=2&local=3")
    assert (tab(page), sorting(page)) == ("2025", {META_METRIC: "descending"})
    assert len(without_runs(shown(page))) == 17


def test_it_can_be_read_with_assistive_technology(page: Browser) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            role = node["role"]["value"]
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert named["table"] == ["WOSAC 2025 metric, whole test split"]
    assert named["tablist"] == ["Version of the metric"]
    assert named["tab"] == ["2025", "2024", "2023", "Other"]
    assert named["searchbox"] == ["Search"]
    assert named["combobox"] == ["Scored on", "Tier"]
    assert named["checkbox"] == ["Rates", "Local runs"]
    assert {"main", "search", "status"} <= set(named)
    assert len(named["rowheader"]) == 17 + len(RUNS)
    assert "Place" in named["columnheader"]
    for role in ("button", "link", "columnheader", "rowheader"):
        assert all(named[role]), role
    # The first stop of the Tab key skips what stands before the content.
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1366])
def test_it_fits_the_window_and_can_be_read_in_light_and_dark(
    browser: Browser, site: Path, width: int, dark: bool
) -> None:
    browser.resize(width, 850, dark=dark, mobile=width < 600)
    for name in ("index.html", "entries/2025-test-smart-tiny-rlftsim.html"):
        browser.open(site / name)
        # Wide tables scroll by themselves, the page does not.
        assert browser.run("document.documentElement.scrollWidth") == width
        lowest = browser.run(CONTRAST)
        assert lowest["ratio"] >= 4.5, (name, lowest)
        assert browser.problems == []
        assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark


# The lowest contrast of text and the first opaque background behind it, by the formula of WCAG 2.
CONTRAST = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = { ratio: 21, text: "" };
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest.ratio) lowest = { ratio, text: element.textContent.trim() };
  }
  return lowest;
})()"""


def test_without_the_script_the_table_is_whole(browser: Browser, site: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(site / "index.html")
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
    assert roles.count("rowheader") == len(list((site / "entries").iterdir()))
    assert "tab" not in roles


def test_hostile_text_does_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    evil = replace(an_entry("evil"), method=EVIL, venue=EVIL, notes=(EVIL,), local=True)
    build_pages([evil, an_entry("fine")], tmp_path)
    for name in ("index.html", "entries/evil.html"):
        browser.open(tmp_path / name)
        assert "evil" not in browser.run("document.title").replace(EVIL, "")
        assert browser.run("document.images.length") == 0
        assert browser.problems == []
        assert EVIL in browser.run("document.body.innerText")
