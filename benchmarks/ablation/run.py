"""Train the sequences of stages that a file lists, from one model and for several seeds, and score
each on held-out scenes.

    python benchmarks/ablation/run.py benchmarks/ablation/ablation.yaml --start runs/bc/final \
        --training scenes/training --heldout scenes/heldout --out ablation/synthetic --processes 2

A sequence shares what it has in common with others: `sft-mpo` and `sft-ppo` begin with one `sft` of
the seed. What is finished is kept, so that the same command goes on where it was ended.

    OUT/start/                     the model that everything begins with
    OUT/seed-0/sft/mpo/run/        the run of the last stage of `sft-mpo`
    OUT/seed-0/sft/mpo/scores/     its scores, as `wosac score` writes them, and behaviour.parquet

`table.py` makes tables and curves of it.
"""

from __future__ import annotations

import itertools
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from smart_r1.cache import prepare_dataset
from smart_r1.evaluate import Policy, rollout_dataset
from smart_r1.model.checkpoint import fingerprint, load_model, save_model
from smart_r1.train.finetune import finetune, load_finetune_config
from smart_r1.train.sft import load_sft_config, sft
from wosac_toolkit.behaviour import measure_dataset, write_behaviours
from wosac_toolkit.io.scenarios import index_scenarios
from wosac_toolkit.scoring import score_dataset


@dataclass(frozen=True)
class Ablation:
    """What is common to all jobs."""

    settings: dict[str, Any]
    training: str
    heldout: str
    out: Path


@dataclass(frozen=True)
class Job:
    """The last stage of a sequence, for a seed."""

    seed: int
    stages: tuple[str, ...]

    def folder(self, out: Path) -> Path:
        return Path(out, f"seed-{self.seed}", *self.stages)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--start", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--training", required=True, help="Scenes to train on, TFRecords.")
@click.option("--heldout", required=True, help="Scenes to score on, TFRecords.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True)
def main(
    file: Path, start: Path, training: str, heldout: str, out: Path, seeds: int, processes: int
) -> None:
    """Run what FILE lists."""
    settings = yaml.safe_load(file.read_text())
    ablation = Ablation(settings, training, heldout, out)
    if not (out / "start" / "model.json").exists():
        spoil(start, out / "start", settings["start"]["temperature"])
    sequences = [tuple(name.split("-")) for name in settings["sequences"]]
    prefixes = {stages[:n] for stages in sequences for n in range(1, len(stages) + 1)}
    if any(settings["stages"][stage]["kind"] == "sft" for stages in prefixes for stage in stages):
        prepare_dataset(training, out / "cache", workers=1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        # What begins with another job comes after it: by length.
        for _, some in itertools.groupby(sorted(prefixes, key=len), key=len):
            jobs = [Job(seed, stages) for stages in some for seed in range(seeds)]
            for job in pool.map(partial(train, ablation), jobs):
                click.echo(f"trained {job.folder(out)}", err=True)
        scored = [out] + [Job(s, stages).folder(out) for stages in sequences for s in range(seeds)]
        for folder in pool.map(partial(evaluate, ablation), scored):
            click.echo(f"scored {folder}", err=True)


def spoil(source: Path, target: Path, temperature: float) -> None:
    """A model whose probabilities are those of `source` at a temperature; 1 is a plain copy."""
    model = load_model(source)
    with torch.no_grad():
        for parameter in model.agent_decoder.head[-1].parameters():
            parameter /= temperature
    save_model(target, model, {"from": fingerprint(source), "temperature": temperature})


def train(ablation: Ablation, job: Job) -> Job:
    """Run the last stage of a job, whose other stages are done."""
    torch.set_num_threads(1)
    folder = job.folder(ablation.out)
    before = ablation.out / "start"
    if len(job.stages) > 1:
        before = folder.parent / "run" / "final"
    stage = dict(ablation.settings["stages"][job.stages[-1]])
    kind = stage.pop("kind")
    given = [f"{key}={json.dumps(value)}" for key, value in flat(stage)]
    # The second of two stages of a kind draws anew.
    given += [f"begins_with={before}", f"seed={10 * job.seed + len(job.stages)}"]
    if kind == "sft":
        config = load_sft_config(None, [*given, f"data={ablation.out / 'cache'}"])
        sft(config, folder / "run", device="cpu")
    else:
        config = load_finetune_config(None, [*given, f"scenarios={ablation.training}"])
        finetune(config, folder / "run", device="cpu")
    return job


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    found = []
    for key, value in settings.items():
        inner = isinstance(value, dict)
        found += flat(value, f"{prefix}{key}.") if inner else [(prefix + key, value)]
    return found


def evaluate(ablation: Ablation, folder: Path) -> Path:
    """Score the model of a job, or that of the start."""
    torch.set_num_threads(1)
    scores = folder / "scores"
    if (scores / "behaviour.parquet").exists():
        return folder
    how = ablation.settings["evaluation"]
    checkpoint = folder / "start" if folder == ablation.out else folder / "run" / "final"
    policy = Policy(load_model(checkpoint), f"smart-{fingerprint(checkpoint)}", how["n_rollouts"])
    rollouts = folder / "rollouts"
    limit = how.get("limit")
    rollout_dataset(policy, ablation.heldout, rollouts, limit=limit)
    names = list(itertools.islice(index_scenarios(ablation.heldout), limit))
    score_dataset(
        *(rollouts, ablation.heldout),
        out=scores,
        n_rollouts=policy.n_rollouts,
        scenario_ids=names,
        workers=1,
    )
    measured = measure_dataset(rollouts, ablation.heldout, scenario_ids=names, workers=1)
    write_behaviours(scores / "behaviour.parquet", measured.behaviours)
    shutil.rmtree(rollouts)
    return folder


if __name__ == "__main__":
    main()
