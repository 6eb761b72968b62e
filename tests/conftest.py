"""Where the real data is, and what is shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Real WOMD scenes and official results on them live outside the repository: the dataset's licence
#: forbids shipping them. `WOSAC_SHARED` names the folder; beside the checkout is looked for too.
SHARED = Path(os.environ.get("WOSAC_SHARED", Path(__file__).parents[2] / "shared"))


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no real data: {name}/ not found, set WOSAC_SHARED to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def womd_dir() -> Path:
    """Real WOMD scenes: `training/` and `validation/` with TFRecord shards."""
    return _shared_folder("womd")


@pytest.fixture(scope="session")
def goldens_dir() -> Path:
    """What the official scorer says of simulated rollouts of these scenes."""
    return _shared_folder("goldens")
