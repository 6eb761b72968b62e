"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from smart_r1.evaluate import Policy

Decorator = Callable[[Any], Any]


def scenarios_option(function: Any) -> Any:
    """`--scenarios`."""
    return click.option(
        "--scenarios",
        metavar="PATH",
        envvar="WOSAC_SCENARIOS",
        required=True,
        help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards.  "
        "[environment: WOSAC_SCENARIOS]",
    )(function)


_POLICY: list[Decorator] = [
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        metavar="DIR",
        required=True,
        help="Folder of the model, as smart-r1 pretrain and import write it.",
    ),
    click.option(
        "--n",
        "n_rollouts",
        type=click.IntRange(min=1),
        metavar="N",
        default=32,
        show_default=True,
        help="Rollouts a scene.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        metavar="K",
        default=48,
        show_default=True,
        help="Draw tokens among so many of the most probable.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        metavar="T",
        default=1.0,
        show_default=True,
        help="Logits are divided by it.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Of the draws: each scene and rollout has its own.",
    ),
    click.option(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:1.  [default: a GPU if there is one]",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="At most so many scenes, the first in the files.",
    ),
]


def policy_options(function: Any) -> Any:
    """What `make_policy` takes, and `--limit`."""
    for option in reversed(_POLICY):
        function = option(function)
    return function


def make_policy(
    checkpoint: Path,
    n_rollouts: int,
    top_k: int,
    temperature: float,
    seed: int,
    device: str | None,
) -> Policy:
    """The policy of the options.

    Raises:
        WosacError: no such device, or a checkpoint that cannot be read.
    """
    import torch

    from smart_r1.evaluate import Policy
    from smart_r1.model.checkpoint import fingerprint, load_model
    from smart_r1.simulate import Sampling

    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise WosacError(f"device {name}: {str(error).splitlines()[0]}") from None
    model = load_model(checkpoint, place)
    return Policy(
        model, f"smart-{fingerprint(checkpoint)}", n_rollouts, Sampling(top_k, temperature), seed
    )
