"""Tables and curves of what `run.py` has made.

    python benchmarks/ablation/table.py ablation/synthetic --against sft \
        --json benchmarks/results/ablation-synthetic.json --curves docs/img/ablation-synthetic.png

Each sequence is a model with one run a seed; differences are paired over scenes, with the 95 %
intervals of `wosac compare`, which draw scenes and seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from smart_r1.train.log import read_log
from wosac_toolkit.behaviour import mean_behaviour, read_behaviours
from wosac_toolkit.compare import HEADLINE, Model, compare_runs
from wosac_toolkit.results import read_run

FIELDS = (HEADLINE, "kinematic_metrics", "interactive_metrics", "map_based_metrics")
BEHAVIOUR = (
    *("min_ade", "speed_ratio", "stall_rate", "jerk", "wrong_way_rate"),
    *("sharp_collision_rate", "diversity", "realism_2024"),
)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--against", default="start", show_default=True, help="The sequence to compare with.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--curves", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, against: str, json_file: Path | None, curves: Path | None) -> None:
    """Print the tables of FOLDER as Markdown."""
    found = sequences(folder)
    rows = table(found, against)
    click.echo(markdown(rows, against))
    if json_file is not None:
        json_file.write_text(json.dumps({"against": against, "rows": rows}, indent=1) + "\n")
    if curves is not None:
        draw(found, curves)


def sequences(folder: Path) -> dict[str, list[Path]]:
    """Name -> the folders of its seeds, all that have scores in all seeds."""
    seeds = sorted(folder.glob("seed-*"))
    names = {
        "-".join(scores.parent.relative_to(seed).parts)
        for seed in seeds
        for scores in seed.rglob("scores")
    }
    found = {"start": [folder]}
    for name in sorted(names, key=lambda name: (name.count("-"), name)):
        folders = [seed.joinpath(*name.split("-")) for seed in seeds]
        if all((one / "scores" / "behaviour.parquet").exists() for one in folders):
            found[name] = folders
    return found


def table(found: dict[str, list[Path]], against: str) -> list[dict[str, Any]]:
    """A row a sequence: means over scenes and seeds, and the difference in realism."""
    runs = {name: [read_run(one / "scores") for one in folders] for name, folders in found.items()}
    models = {name: Model(name, tuple(some)) for name, some in runs.items()}
    others = [model for name, model in models.items() if name != against]
    compared = compare_runs([models[against], *others], largest=0)
    scores = {one.name: one for one in compared.models}
    differences = {one.name: one.differences[HEADLINE] for one in compared.against}
    rows = []
    for name, folders in found.items():
        behaviour = [
            mean_behaviour(read_behaviours(one / "scores" / "behaviour.parquet")) for one in folders
        ]
        row: dict[str, Any] = {
            "name": name,
            "seeds": len(folders),
            "n_scenes": compared.n_scenes,
            **{field: scores[name].means[field].value for field in FIELDS},
            "by_seed": list(scores[name].seed_means[HEADLINE]),
            **{key: float(np.mean([one[key] for one in behaviour])) for key in BEHAVIOUR},
        }
        if name in differences:
            estimate = differences[name].difference
            row |= {
                "difference": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p": differences[name].p,
            }
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], against: str) -> str:
    """Two tables: of the metric, and of what it does not look at."""
    lines = [
        f"| | realism | against {against} | 95 % interval | by seed | kinematic | interactive "
        "| map-based |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        difference = interval = ""
        if "difference" in row:
            difference = f"{row['difference']:+.4f}"
            interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        by_seed = ", ".join(f"{value:.4f}" for value in row["by_seed"])
        buckets = " | ".join(f"{row[field]:.4f}" for field in FIELDS[1:])
        lines.append(
            f"| {row['name']} | {row[HEADLINE]:.4f} | {difference} | {interval} | {by_seed} "
            f"| {buckets} |"
        )
    lines += [
        "",
        "| | minADE [m] | speed to log | stall | jerk [m/s3] | wrong way | sharp collisions "
        "| diversity [m] | realism 2024 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        values = [
            *(f"{row['min_ade']:.2f}", f"{row['speed_ratio']:.2f}", f"{row['stall_rate']:.3f}"),
            *(f"{row['jerk']:.1f}", f"{row['wrong_way_rate']:.3f}"),
            *(f"{row['sharp_collision_rate']:.3f}", f"{row['diversity']:.2f}"),
            f"{row['realism_2024']:.4f}",
        ]
        lines.append(f"| {row['name']} | {' | '.join(values)} |")
    return "\n".join(lines)


def draw(found: dict[str, list[Path]], file: Path) -> None:
    """The reward and the KL over the steps of each stage of reinforcement, means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, dpi=120)
    for name, folders in found.items():
        logs = [
            [line for line in read_log(one / "run") if line["event"] == "train"]
            for one in folders
            if (one / "run").exists()
        ]
        if not logs or "reward" not in logs[0][0]:
            continue
        steps = [line["step"] for line in logs[0]]
        for axes, key in ((above, "reward"), (below, "kl")):
            values = np.array([[line[key] for line in log] for log in logs], float)
            axes.plot(steps, values.mean(axis=0), marker=".", label=name)
    above.set_ylabel("realism of the step's scenes")
    below.set_ylabel("KL to the start of the stage [nats]")
    below.set_xlabel("step")
    above.legend(fontsize=8, ncols=3)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
