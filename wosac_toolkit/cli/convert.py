"""`wosac convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from wosac_toolkit.cli.help import Command

if TYPE_CHECKING:
    from wosac_toolkit.convert import Format


@click.command(
    "convert",
    cls=Command,
    examples=(
        "wosac convert rollouts/ shards/ --to submission",
        "wosac convert submission.tar.gz rollouts/ --to npz",
        "wosac convert pickles/ model.binproto",
        "wosac convert rollouts/637f20cafde22ff8.npz 637f20cafde22ff8.pkl",
    ),
)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["npz", "submission", "pickle"]),
    help="The format of OUT. Needed where OUT is a folder.",
)
@click.option(
    "--scenes-per-shard",
    type=click.IntRange(min=1),
    metavar="N",
    default=50,
    show_default=True,
    help="Scenes in each shard of a folder of shards.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What is printed.",
)
def command(source: str, out: Path, to: str | None, scenes_per_shard: int, format_: str) -> None:
    """Convert rollouts between .npz, submission shards and pickles of CAT-K and TrajTok.

    IN is a folder, a file or a glob of rollouts, or a .tar.gz of submission shards. OUT is a
    folder, or a file whose name tells the format: <scenario_id>.npz, <scenario_id>.pkl or
    <name>.binproto. All numbers stay as they are, in float32. No scenes are needed: every format
    names its objects.

    The metadata of a submission goes from shards to shards and is lost elsewhere; an archive for
    upload is made by `wosac pack`. If the conversion is interrupted, the same command resumes it.
    """
    import dataclasses
    import json

    from wosac_toolkit.cli.tables import counted
    from wosac_toolkit.convert import convert_rollouts

    try:
        done = convert_rollouts(
            source,
            out,
            cast("Format | None", to),
            scenes_per_shard=scenes_per_shard,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "what is converted to a folder is kept, and the same command resumes"
        ) from None
    if format_ == "json":
        click.echo(json.dumps({**dataclasses.asdict(done), "out": str(done.out)}, indent=2))
        return
    n_new = done.n_scenes - done.n_kept
    kept = f", {done.n_kept} were there already" if done.n_kept else ""
    files = f"{counted(done.n_files, 'file')}, {done.n_bytes / 1e6:.1f} MB"
    click.echo(f"{counted(n_new, 'scene')} converted{kept}: {done.out} ({files})")
