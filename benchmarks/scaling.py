"""Draw how the time of a score grows with agents, rollouts, road-edge points and workers.

    python benchmarks/scaling.py [--repeats N] [--out docs/img]

The inputs are synthetic and of controlled size, see `scenes.controlled_scene`: one quantity grows,
the others stay at 64 agents (8 of them evaluated), 32 rollouts and 8,000 road-edge points.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import commands
import matplotlib
import scenes
from machine import Machine, median_seconds, this_machine

from wosac_toolkit import score_scenario
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.workers import n_cpus

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

AGENTS, ROLLOUTS, POINTS = 64, 32, 8000
N_SCENES = 200
COLOURS = {1: "#1f4e79", 2: "#c8551b"}


def scores_ms(n_agents: int, n_rollouts: int, n_points: int, repeats: int) -> dict[int, float]:
    """Threads -> milliseconds of `score_scenario`."""
    scenario = scenes.controlled_scene(n_agents, n_points)
    rollouts = scenes.simulate(scenario, n_rollouts)
    return {
        threads: 1e3
        * median_seconds(lambda n=threads: score_scenario(scenario, rollouts, threads=n), repeats)
        for threads in COLOURS
    }


def workers_ms(numbers: Sequence[int]) -> list[float]:
    """Milliseconds a scene of `wosac score`, for each number of workers; start-up included."""
    scenario = scenes.controlled_scene(AGENTS, POINTS)
    rollouts = scenes.simulate(scenario, ROLLOUTS)
    with tempfile.TemporaryDirectory(prefix="wosac-scaling-") as temporary:
        folder = Path(temporary)
        names = [f"{i:016x}" for i in range(N_SCENES)]
        copies = (replace(scenario, scenario_id=name) for name in names)
        write_scenarios(folder / "scenarios", copies, 4)
        (folder / "rollouts").mkdir()
        for name in names:
            write_npz(folder / "rollouts", replace(rollouts, scenario_id=name))
        return [
            1e3
            / N_SCENES
            * min(
                commands.wosac(
                    "score", folder / "rollouts", "--scenarios", folder / "scenarios",
                    "--out", folder / f"run{n}-{i}", "--workers", str(n),
                ).seconds
                for i in range(2)
            )
            for n in numbers
        ]  # fmt: skip


def draw(
    path: Path,
    x: Sequence[int],
    lines: dict[str, tuple[str, Sequence[float]]],
    xlabel: str,
    ylabel: str,
    machine: Machine,
) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 4), dpi=150, layout="constrained")
    for label, (colour, y) in lines.items():
        axes.plot(x, y, "o-", color=colour, label=label, linewidth=1.8, markersize=5)
        axes.annotate(
            f"{y[-1]:.1f}", (x[-1], y[-1]), textcoords="offset points", xytext=(7, -3),
            color=colour, fontsize=9,
        )  # fmt: skip
    axes.set_xlim(0, 1.1 * x[-1])
    axes.set_ylim(0, 1.1 * max(max(y) for _, y in lines.values()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False)
    figure.text(
        0.995, 0.005, f"{machine.cpu}, {machine.cores} cores, {machine.date}",
        ha="right", va="bottom", fontsize=6.5, color="#777777",
    )  # fmt: skip
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "img")
    arguments = parser.parse_args()
    machine = this_machine()
    arguments.out.mkdir(parents=True, exist_ok=True)

    series = {
        "agents": ([8, 16, 32, 64, 128, 192, 256], "simulated agents (8 of them evaluated)"),
        "rollouts": ([1, 8, 16, 32, 64, 96, 128], "rollouts"),
        "road_edge_points": (
            [1000, 2000, 4000, 8000, 16000, 24000, 32000], "road-edge points (0.5 m apart)",
        ),
    }  # fmt: skip
    for name, (sizes, xlabel) in series.items():
        # The largest first: having had that much memory, the allocator keeps it, as it does after
        # some scenes of a data set; else each size would pay for pages that are fetched anew.
        times = [
            scores_ms(
                size if name == "agents" else AGENTS,
                size if name == "rollouts" else ROLLOUTS,
                size if name == "road_edge_points" else POINTS,
                arguments.repeats,
            )
            for size in reversed(sizes)
        ][::-1]
        lines = {
            f"{n} thread" + "s" * (n > 1): (colour, [t[n] for t in times])
            for n, colour in COLOURS.items()
        }
        path = arguments.out / f"scaling_{name}.png"
        draw(path, sizes, lines, xlabel, "milliseconds to score a scene", machine)

    numbers = range(1, min(2 * n_cpus(), 16) + 1)
    lines = {"": (COLOURS[1], workers_ms(numbers))}
    draw(
        arguments.out / "scaling_workers.png", list(numbers), lines,
        f"workers of wosac score ({N_SCENES} scenes, {n_cpus()} cores)",
        "milliseconds a scene, start-up included", machine,
    )  # fmt: skip


if __name__ == "__main__":
    main()
