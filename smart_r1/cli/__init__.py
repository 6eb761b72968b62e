"""The command `smart-r1`.

Each subcommand is a module of this package that is imported when it is called, so that
`smart-r1 --help` does not import torch. For exit codes see `wosac_toolkit.cli.group.LazyGroup`.
"""

from __future__ import annotations

import click

from wosac_toolkit.cli.group import LazyGroup, print_version

# name -> (module, what `smart-r1 --help` says of it: the first sentence of its own help)
_COMMANDS = {
    "tokens": ("smart_r1.cli.tokens", "Build and check vocabularies."),
    "prepare": ("smart_r1.cli.prepare", "Turn scenes into what the model trains on."),
    "pretrain": ("smart_r1.cli.pretrain", "Train SMART to predict the next token."),
    "sft": ("smart_r1.cli.sft", "Fine-tune a model in closed loop (CAT-K)."),
    "finetune": (
        "smart_r1.cli.finetune",
        "Make a model more realistic by rewards (SMART-R1).",
    ),
    "recipe": (
        "smart_r1.cli.recipe",
        "Train in stages, and compare the models after each (SMART-R1).",
    ),
    "rollout": ("smart_r1.cli.rollout", "Simulate scenes in closed loop."),
    "evaluate": ("smart_r1.cli.evaluate", "Simulate scenes and score them."),
    "import": ("smart_r1.cli.import_", "Read a checkpoint of CAT-K."),
}


@click.group(
    cls=LazyGroup,
    program="smart-r1",
    commands=_COMMANDS,
    examples=(
        "smart-r1 finetune --reward meta_score",
        "smart-r1 prepare --scenarios womd/training --out cache/",
        "smart-r1 pretrain --data cache/ --out runs/bc --model tiny",
        "smart-r1 evaluate --checkpoint runs/bc/best --scenarios womd/validation",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@print_version("smart-r1")
def main() -> None:
    """Train and run SMART, a traffic model of next tokens, and make it realistic (SMART-R1)."""
