"""What the package brings along to begin with: a small model and settings, and synthetic scenes.

`model/` is `pico`, pre-trained on synthetic scenes alone; `finetune.yaml` fits it.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Folder of the model."""

FINETUNE = Path(__file__).parent / "finetune.yaml"
"""Settings of reinforcement fine-tuning of that model."""

_SCENES = {"training": (64, 20_001), "validation": (16, 20_002)}
"""How many scenes, and their seed: none that the model was trained on."""


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
            write_scenarios(folder / part, tqdm(scenes, f"generating {part}", total=n), 1)
    return folder / "training", folder / "validation"
