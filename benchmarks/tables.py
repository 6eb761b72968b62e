"""Results to Markdown, and into the documents that quote them.

    python benchmarks/tables.py RESULTS README.md docs/performance.md

rewrites what stands between `<!-- bench:start -->` and `<!-- bench:end -->` in each document from
the JSON files in the folder RESULTS. Documents below a `docs` folder get all tables, others the
comparison and the targets. A document without the markers is left as it is, and named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def markdown(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A table; columns of figures, but never the first, are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    rules = ["---"] + [
        "---:" if all(not text or text[0] in "-0123456789" for text in column) else "---"
        for column in list(zip(*cells, strict=True))[1:]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rules, *cells])


def caption(result: dict[str, Any]) -> str:
    return f"{result['data']}; {result['machine']['text']}."


def figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e} {unit}".strip()
    digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def targets(result: dict[str, Any]) -> str:
    said = {True: "yes", False: "**no**", None: ""}
    rows = [
        (
            row["name"],
            "" if row["limit"] is None else figure(row["limit"], row["unit"]),
            figure(row["measured"], row["unit"]),
            "not measured" if row["measured"] is None else said[row["met"]],
            row["note"],
        )
        for row in result["targets"]
    ]
    return f"{caption(result)}\n\n" + markdown(("what", "target", "measured", "met", "of"), rows)


def parts(result: dict[str, Any]) -> str:
    rows = [(f"`{r['part']}`", figure(r["median_ms"])) for r in result["parts"]]
    return markdown(("part of a score, 1 thread", "median ms"), rows)


def kernels(result: dict[str, Any]) -> str:
    rows = [
        (
            f"`{r['kernel']}`" if "." in r["kernel"] else r["kernel"],
            figure(r["median_ms"]),
            figure(r["mean_ms"]),
            f"{100 * r['share']:.1f} %",
        )
        for r in result["kernels"]
    ]
    head = ("own time of each function, 1 thread", "median ms", "mean ms", "share")
    return markdown(head, rows)


def comparison(result: dict[str, Any]) -> str:
    rows = []
    for scene in result["scenes"]:
        ours = scene["ours"]
        for other in scene["others"]:
            rows.append(
                (
                    f"{scene['scenario_id']}: {scene['n_agents']} agents, "
                    f"{scene['n_rollouts']} rollouts",
                    other["name"],
                    figure(other["seconds"], "s"),
                    figure(1e3 * ours["1"], "ms"),
                    figure(1e3 * ours["2"], "ms"),
                    f"{other['seconds'] / ours['1']:,.0f} x",
                    f"{other['seconds'] / ours['2']:,.0f} x",
                    f"{other['difference']:.1e}",
                )
            )
    head = (
        "scene", "scorer", "its time", "ours, 1 thread", "ours, 2 threads",
        "ratio, 1 thread", "ratio, 2 threads", "largest difference of a metric",
    )  # fmt: skip
    return f"{caption(result)}\n\n" + markdown(head, rows)


def work(result: dict[str, Any]) -> str:
    def table(head: tuple[str, ...], key: str) -> str:
        return markdown(head, [tuple(row) for row in result[key]])

    return "\n\n".join(
        [
            caption(result),
            table(("work a scene", "median", "largest"), "counts"),
            table(("cost", "ns"), "costs"),
            table(("bound of the median scene", "ms", "how"), "bound"),
        ]
    )


def simulation(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        steps, public = row["steps_s"], row["public_rollout_s"]
        rollout = row["rollouts_s"] / 32
        rows.append(
            (
                f"{row['model']}, {row['parameters'] / 1e6:.1f}M",
                figure(row["rollouts_s"], "s"),
                figure(rollout, "s"),
                "-" if public is None else figure(public, "s"),
                "-" if public is None else f"{public / rollout:,.0f} x",
                figure(1e3 * row["map_s"], "ms"),
                figure(1e3 * row["open_loop_s"], "ms"),
                f"{sum(steps[-3:]) / sum(steps[:3]):.2f} x",
            )
        )
    head = (
        "model", "32 rollouts", "a rollout", "public code, a rollout", "ratio", "map encoder",
        "open loop, 16 steps", "last 3 steps over first 3",
    )  # fmt: skip
    return f"{caption(result)}\n\n" + markdown(head, rows)


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def section(results: Path, full: bool) -> str:
    """All tables whose results are in the folder."""

    def read(name: str) -> dict[str, Any] | None:
        path = results / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    blocks = []
    if compared := read("compare"):
        blocks += ["### Against the official scorer", comparison(compared)]
    if measured := read("targets"):
        blocks += ["### Targets", targets(measured)]
        if full:
            blocks += ["### Where the time goes", parts(measured), kernels(measured)]
    if simulated := read("simulation"):
        blocks += ["### Simulation with SMART", simulation(simulated)]
    if full and (counted := read("work")):
        blocks += ["### Work counted", work(counted)]
    return "\n\n".join(blocks)


def rewrite(document: Path, results: Path) -> None:
    """Put the tables between the markers of a document."""
    text = document.read_text() if document.is_file() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        print(f"{document}: no {START} and {END}, left as it is", file=sys.stderr)
        return
    full = "docs" in document.parts
    document.write_text(f"{before}{START}\n\n{section(results, full)}\n\n{END}{after}")
    print(f"{document}: rewritten", file=sys.stderr)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        rewrite(Path(name), Path(sys.argv[1]))
