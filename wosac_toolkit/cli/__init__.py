"""The command `wosac`.

Each subcommand is a module of this package that is imported when it is called, so that
`wosac --help` imports neither numba nor pandas nor pyarrow. For exit codes see `LazyGroup`.
"""

from __future__ import annotations

import click

from wosac_toolkit.cli.group import LazyGroup, print_version

# name -> (module, what `wosac --help` says of it: the first sentence of its own help)
_COMMANDS = {
    "score": ("wosac_toolkit.cli.score", "Score rollouts with the WOSAC metric."),
    "compare": (
        "wosac_toolkit.cli.compare",
        "Compare runs scene by scene with the first of them.",
    ),
    "explain": (
        "wosac_toolkit.cli.explain",
        "Explain the score of a scene: which agents, components and steps cost it.",
    ),
    "report": (
        "wosac_toolkit.cli.report",
        "Write an HTML report on runs, with figures and pictures, in one file.",
    ),
    "behaviour": (
        "wosac_toolkit.cli.behaviour",
        "Watch for what the metric does not see: standing still, wrong ways, sharp boxes.",
    ),
    "leaderboard": (
        "wosac_toolkit.cli.leaderboard",
        "Published WOSAC results, with your runs beside them.",
    ),
    "simulate": ("wosac_toolkit.cli.simulate", "Simulate scenes with a baseline policy."),
    "synth": ("wosac_toolkit.cli.synth", "Generate synthetic scenes, in the format of WOMD."),
    "validate": (
        "wosac_toolkit.cli.validate",
        "Find what the evaluation server would refuse, before the upload.",
    ),
    "pack": (
        "wosac_toolkit.cli.pack",
        "Pack rollouts into the archive that the evaluation server takes.",
    ),
    "convert": (
        "wosac_toolkit.cli.convert",
        "Convert rollouts between .npz, submission shards and pickles of CAT-K and TrajTok.",
    ),
    "doctor": (
        "wosac_toolkit.cli.doctor",
        "Check this installation: packages, threads, kernel cache, scenes, and exactness.",
    ),
    "warmup": ("wosac_toolkit.cli.warmup", "Compile the kernels, once a machine."),
}


@click.group(
    cls=LazyGroup,
    program="wosac",
    commands=_COMMANDS,
    examples=(
        "wosac synth --n 100 --out scenes/",
        "wosac simulate --policy constant_velocity --scenarios scenes/ --out rollouts/",
        "wosac score rollouts/",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@print_version("wosac")
def main() -> None:
    """The metric of the Waymo Open Sim Agents Challenge, exact and fast."""
