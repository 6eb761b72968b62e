"""What the package brings along to begin with: a small model and settings, and synthetic scenes.

`model/` is `pico`, pre-trained on synthetic scenes alone; `finetune.yaml` and `recipe.yaml` fit it
and the scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Folder of the model."""

FINETUNE = Path(__file__).parent / "finetune.yaml"
"""Settings of reinforcement fine-tuning of that model."""

RECIPE = Path(__file__).parent / "recipe.yaml"
"""Settings of the stages of a recipe on these scenes."""

_SCENES = {"training": (64, 20_001), "validation": (16, 20_002)}
"""How many scenes, and their seed: none that the model was trained on."""


def fitting(assignments: Sequence[str], policy: str) -> list[str]:
    """Assignments over the settings here, with what else the algorithm needs that they name.

    The files have credit for each agent, and a weight of the KL that suits it: for mpo and mloo.
    What compares whole rollouts has a credit of its own, and all but these two their own weight.

    Args:
        assignments: KEY=VALUE, later ones over earlier ones.
        policy: the key of the policy's settings.
    """
    named = {key: value for key, _, value in (a.partition("=") for a in assignments)}
    algo = named.get(f"{policy}.algo", "mpo").strip("\"'")
    own = {"mpo": (), "mloo": (), "reinforce": ("beta",)}.get(algo, ("credit", "beta"))
    return [*(f"{policy}.{name}=null" for name in own), *assignments]


def synthetic_scenes(folder: Path) -> tuple[Path, Path]:
    """Scenes to train and to validate on, as TFRecords; generated where they are not there yet.

    Args:
        folder: they are in `training` and `validation` in it.
    """
    from tqdm import tqdm

    from wosac_toolkit.io.scenarios import write_scenarios
    from wosac_toolkit.synthetic import generate_scenarios

    for part, (n, seed) in _SCENES.items():
        # Files appear when all scenes are written.
        if not list((folder / part).glob("*.tfrecord*")):
            scenes = generate_scenarios(n, seed)
            shown = tqdm(scenes, f"generating {part}", total=n, unit=" scenes")
            write_scenarios(folder / part, shown, 1)
    return folder / "training", folder / "validation"
