"use strict";
// Tabs, filters, search and sorting of the table. What is chosen is kept in the address after the #,
// so that it can be linked to.
(() => {
  const find = (selector) => document.querySelector(selector);
  const table = find("#table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const heads = [...table.tHead.rows[0].cells];
  const search = find("#search");
  const split = find("#split");
  const tier = find("#tier");
  const rates = find("#rates");
  const local = find("#local");
  const years = tabs.map((tab) => tab.dataset.year);
  const columns = heads.map((head) => head.querySelector("button").dataset.sort);

  const initial = () => ({
    year: years[0],
    split: "test",
    tier: "all",
    q: "",
    rates: "",
    local: "1",
    sort: "realism_meta_metric",
    order: "descending",
  });
  let state = initial();

  const inYear = (row) => row.dataset.year === state.year;
  const isLocal = (row) => "local" in row.dataset;
  const onSplit = (row, wanted) => wanted === "all" || row.dataset.split === wanted;

  function shown(row) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.every((word) => row.dataset.search.includes(word))) return false;
    if (isLocal(row)) return state.local === "1";
    if (state.tier !== "all" && row.dataset.tier !== state.tier) return false;
    return inYear(row) && onSplit(row, state.split);
  }

  function compare(a, b) {
    const column = columns.indexOf(state.sort);
    const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
    // What is not known comes last, whichever way the rest is sorted.
    if (x === "" || y === "") return (x === "") - (y === "");
    const numeric = heads[column].classList.contains("num");
    const difference = numeric ? x - y : x.localeCompare(y, "en");
    return state.order === "ascending" ? difference : -difference;
  }

  // Why a run of one's own cannot be compared with what stands around it.
  function remark(row) {
    const badge = row.querySelector(".here");
    badge.dataset.own ??= badge.hidden ? "" : badge.textContent.trim().replace(/^[^:]*: /, "");
    const own = badge.dataset.own;
    const reasons = own ? [own] : [];
    if (!inYear(row)) reasons.unshift(`${row.dataset.year} metric`);
    if (!own && !onSplit(row, state.split)) reasons.push(`${row.dataset.split} split`);
    badge.textContent = `not comparable: ${reasons.join(", ")}`;
    badge.hidden = reasons.length === 0;
    row.classList.toggle("apart", !badge.hidden);
  }

  function show() {
    const wholeSplit = state.split === "test" || state.split === "validation";
    const ofYear = rows.filter((row) => inYear(row) && !isLocal(row));
    let visible = 0;
    for (const row of rows) {
      row.hidden = !shown(row);
      visible += !row.hidden;
      if (isLocal(row)) remark(row);
    }
    // Sorting is stable, and `rows` are in the order of the board.
    body.append(...[...rows].sort(compare));
    heads.forEach((head, column) => {
      if (columns[column] === state.sort) head.setAttribute("aria-sort", state.order);
      else head.removeAttribute("aria-sort");
    });
    table.className = ["one-year", wholeSplit ? "" : "no-places", state.rates ? "" : "no-rates"].join(" ");
    for (const tab of tabs) {
      const selected = tab.dataset.year === state.year;
      tab.setAttribute("aria-selected", selected);
      tab.tabIndex = selected ? 0 : -1;
    }
    for (const option of split.options) {
      const n = ofYear.filter((row) => onSplit(row, option.value)).length;
      option.text = `${option.text.replace(/ \(\d+\)$/, "")} (${n})`;
    }
    search.value = state.q;
    split.value = state.split;
    tier.value = state.tier;
    rates.checked = Boolean(state.rates);
    if (local) local.checked = state.local === "1";
    const metric = state.year === "other" ? "Other metrics" : `WOSAC ${state.year} metric`;
    const where = { test: "whole test split", validation: "whole validation split", otherwise: "scored otherwise", all: "all entries" };
    find("#caption").textContent = `${metric}, ${where[state.split]}`;
    find("#count").textContent = `${visible} of ${ofYear.length + rows.filter(isLocal).length} entries`;
    find("#nothing").hidden = visible > 0;
    remember();
  }

  function remember() {
    const plain = initial();
    const chosen = Object.entries(state).filter(([name, value]) => value !== plain[name]);
    const hash = new URLSearchParams(chosen).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  // The address may hold anything: only known choices are taken from it.
  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    const choices = {
      year: years,
      split: [...split.options].map((option) => option.value),
      tier: [...tier.options].map((option) => option.value),
      rates: ["1"],
      local: ["", "1"],
      sort: columns,
      order: ["ascending", "descending"],
    };
    state = initial();
    for (const [name, known] of Object.entries(choices)) {
      if (known.includes(given.get(name))) state[name] = given.get(name);
    }
    state.q = given.get("q") ?? "";
    if (!given.has("split")) chooseSplit();
    show();
  }

  // The first split that has entries: a version of the metric may have none on the test split.
  function chooseSplit() {
    const has = (wanted) => rows.some((row) => inYear(row) && !isLocal(row) && onSplit(row, wanted));
    if (!has(state.split)) state.split = ["test", "validation"].find(has) ?? "all";
  }

  function chooseYear(year) {
    state.year = year;
    chooseSplit();
    show();
  }

  for (const tab of tabs) {
    tab.addEventListener("click", () => chooseYear(tab.dataset.year));
    tab.addEventListener("keydown", (event) => {
      const now = tabs.indexOf(tab);
      const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const target = tabs[(next + tabs.length) % tabs.length];
      chooseYear(target.dataset.year);
      target.focus();
    });
  }
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => {
      const other = { ascending: "descending", descending: "ascending" };
      state.order = state.sort === columns[column] ? other[state.order] : button.dataset.first;
      state.sort = columns[column];
      show();
    });
  });
  const listen = (control, type, name, value) =>
    control?.addEventListener(type, () => {
      state[name] = value();
      show();
    });
  listen(search, "input", "q", () => search.value);
  listen(split, "change", "split", () => split.value);
  listen(tier, "change", "tier", () => tier.value);
  listen(rates, "change", "rates", () => (rates.checked ? "1" : ""));
  listen(local, "change", "local", () => (local.checked ? "1" : ""));
  const controls = find("#controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => {
    event.preventDefault();
    state = { ...initial(), year: state.year };
    chooseSplit();
    show();
  });
  window.addEventListener("hashchange", recall);
  controls.hidden = false;
  recall();
})();
