"""`smart-r1 finetune`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from smart_r1.cli.options import assigned, run_stage, stage_options
from wosac_toolkit.cli.help import Command
from wosac_toolkit.errors import WosacError


def _alpha(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A number, or `auto`, as the setting is written."""
    if value is None or value == "auto":
        return None if value is None else "null"
    try:
        return str(float(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


@click.command(
    "finetune",
    cls=Command,
    examples=(
        "smart-r1 finetune --reward meta_score",
        "smart-r1 finetune --checkpoint runs/sft/best --scenarios womd/training --out runs/rft",
        "smart-r1 finetune --checkpoint runs/sft/best --scenarios womd/training --out runs/mloo "
        "--algo mloo --n 4 optimizer.learning_rate=1e-5",
        "smart-r1 finetune --reward my_package.rewards:comfort --out runs/comfort",
    ),
)
@click.option(
    "--checkpoint",
    "begins_with",
    metavar="DIR",
    help="Folder of the model to begin with, which is the reference of the KL too.  "
    "[default: a small model of the package]",
)
@click.option(
    "--scenarios",
    metavar="PATH",
    help="Scenes (WOMD TFRecords) to train on.  [default: synthetic scenes, made in RUN]",
)
@click.option(
    "--reward",
    metavar="NAME",
    help="meta_score, kinematic, interactive, map_based, collision_free, on_road, min_ade, a "
    "component of the metric, or package.module:name of your own.  [default: meta_score]",
)
@click.option(
    "--algo",
    type=click.Choice(["mpo", "mloo", "reinforce", "grpo", "ppo", "dpo"]),
    help="How the policy learns.  [default: mpo, SMART-R1's]",
)
@click.option(
    "--credit",
    type=click.Choice(["group", "leave_one_out", "single", "agent"]),
    help="How the reward is shared among a scene's rollouts.  [default: the algorithm's own; agent "
    "with the scenes and the model of the package]",
)
@click.option(
    "--alpha",
    callback=_alpha,
    metavar="A",
    help="Reward above which mpo and reinforce reinforce; auto: what the scene used to get.  "
    "[default: 0.77, about what the paper's model gets]",
)
@click.option(
    "--beta",
    type=click.FloatRange(min=0),
    metavar="B",
    help="Weight of the KL.  [default: the algorithm's own, 0.04 for mpo; 0.001 with the "
    "scenes and the model of the package]",
)
@click.option(
    "--n",
    "n_rollouts",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rollouts a scene.  [default: 8]",
)
@click.option("--limit", type=int, metavar="N", help="At most so many scenes to train on.")
@click.option("--epochs", type=int, metavar="N", help="Passes over the scenes.  [default: 1]")
@click.option(
    "--batch", type=int, metavar="N", help="Scenes a step, over all processes.  [default: 8]"
)
@stage_options(out="runs/finetune")
def command(
    out: Path,
    config: Path | None,
    device: str | None,
    assignments: tuple[str, ...],
    algo: str | None,
    credit: str | None,
    alpha: str | None,
    beta: float | None,
    n_rollouts: int | None,
    **options: str | int,
) -> None:
    """Make a model more realistic by rewards (SMART-R1).

    The model simulates scenes in closed loop, all agents together; the reward, by default the
    realism meta-metric of WOSAC, says what the rollouts are worth; the model learns to do what was
    worth more, and stays near to the model that it began with. KEY=VALUE, torchrun and what RUN
    gets are as for smart-r1 pretrain.
    """
    from smart_r1 import builtin
    from smart_r1.train.finetune import finetune, load_finetune_config

    policy = {"algo": algo, "credit": credit, "beta": beta, "n_rollouts": n_rollouts}
    given = assigned(options | {f"policy.{name}": value for name, value in policy.items()})
    if alpha is not None:
        given.append(f"policy.alpha={alpha}")
    defaults = []
    named = {assignment.partition("=")[0] for assignment in (*given, *assignments)}
    if config is None:
        if "begins_with" not in named:
            defaults.append(f"begins_with={builtin.MODEL}")
        if "scenarios" not in named:
            training, validation = _scenes(out)
            defaults += [f"scenarios={training}", f"validation_scenarios={validation}"]
        if not named & {"begins_with", "scenarios"}:
            config, given = builtin.FINETUNE, builtin.fitting([*given, *assignments], "policy")
    settings = load_finetune_config(config, [*defaults, *given, *assignments])
    run_stage(out, lambda: finetune(settings, out, device=device, progress=True))
    if os.environ.get("RANK", "0") == "0" and (told := _realism(out)):
        click.echo(told)


def _realism(out: Path) -> str:
    """What the validations of a run have found; empty where there were none."""
    from smart_r1.train.log import read_log

    key = "closed_loop/metametric"
    found = [line[key] for line in read_log(out) if line["event"] == "validation" and key in line]
    if len(found) < 2:
        return ""
    return f"realism of the validation scenes: {found[0]:.4f} before, {found[-1]:.4f} after"


def _scenes(out: Path) -> tuple[Path, Path]:
    """The synthetic scenes of a run."""
    from smart_r1 import builtin

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise WosacError(
            "synthetic scenes are made by one process alone",
            mend="make them with wosac synth, and name them with --scenarios",
        )
    return builtin.synthetic_scenes(out / "scenarios")
