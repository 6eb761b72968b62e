"""`wosac pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wosac_toolkit.challenge import ALL_CHALLENGES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from wosac_toolkit.submission.check import Split


@click.command(
    "pack",
    cls=Command,
    examples=(
        "wosac pack rollouts/ --out submission.tar.gz --metadata method.yaml --split test",
        "wosac pack rollouts/ --out submission.tar.gz --metadata method.yaml --method-name SMART-2",
    ),
)
@click.argument("rollouts")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help="The archive, named .tar.gz. If packing is interrupted, the same command resumes it.",
)
@click.option(
    "--metadata",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The metadata as YAML, field by field as in the challenge's proto; flags go before it.",
)
@click.option("--method-name", metavar="NAME", help="unique_method_name: short; what is ranked.")
@click.option("--account", metavar="EMAIL", help="account_name: as registered at waymo.com/open.")
@click.option("--author", "authors", metavar="NAME", multiple=True, help="authors; repeat it.")
@click.option("--affiliation", metavar="TEXT", help="affiliation of the authors.")
@click.option("--description", metavar="TEXT", help="description of the method, in short.")
@click.option("--link", metavar="URL", help="method_link: a paper or page about the method.")
@click.option(
    "--num-parameters", metavar="N", help='num_model_parameters: a number like "7M" or "200K".'
)
@click.option("--lidar/--no-lidar", default=None, help="uses_lidar_data.")
@click.option("--camera/--no-camera", default=None, help="uses_camera_data.")
@click.option(
    "--public-pretraining/--no-public-pretraining",
    default=None,
    help="uses_public_model_pretraining: of public LLMs or VLMs.",
)
@click.option(
    "--public-model", "public_models", metavar="NAME", multiple=True, help="public_model_names."
)
@click.option(
    "--closed-loop",
    is_flag=True,
    help="acknowledge_complies_with_closed_loop_requirement: the rollouts were simulated in closed "
    "loop, as the rules demand.",
)
@click.option(
    "--challenge",
    type=click.Choice(list(ALL_CHALLENGES)),
    default="2025",
    show_default=True,
    help="What the submission is for; scenario_gen_2025 has 91 steps and sizes, the years are all "
    "alike.",
)
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes of the split (WOMD TFRecords), all of which must be covered. Without it: the "
    "path in the manifest.json beside the rollouts, else WOSAC_SCENARIOS, else none.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    help="The split that the submission is for, as in wosac validate.",
)
@click.option(
    "--validate/--no-validate",
    default=True,
    show_default=True,
    help="Check that all scenes are covered, and the whole archive when it is written.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, 99_999),
    metavar="N",
    help="Shards.  [default: 150, fewer for fewer scenes]",
)
@click.option(
    "--level",
    type=click.IntRange(0, 9),
    metavar="N",
    default=1,
    show_default=True,
    help="Of gzip; more hardly makes rollouts smaller.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option("--overwrite", is_flag=True, help="Replace an archive that is there.")
@click.pass_context
def command(
    ctx: click.Context,
    rollouts: str,
    out: Path,
    metadata: Path | None,
    method_name: str | None,
    account: str | None,
    authors: tuple[str, ...],
    affiliation: str | None,
    description: str | None,
    link: str | None,
    num_parameters: str | None,
    lidar: bool | None,
    camera: bool | None,
    public_pretraining: bool | None,
    public_models: tuple[str, ...],
    closed_loop: bool,
    challenge: str,
    scenarios: str | None,
    split: Split | None,
    validate: bool,
    shards: int | None,
    level: int,
    workers: int | None,
    overwrite: bool,
) -> None:
    """Pack rollouts into the archive that the evaluation server takes.

    ROLLOUTS is a folder or a file of .npz, pickles or shards. The bytes are the same whatever their
    format and the number of workers. Nothing is lost or rounded.
    """
    from wosac_toolkit.submission.metadata import make_metadata
    from wosac_toolkit.submission.pack import pack_submission

    fields = make_metadata(
        metadata,
        {
            "unique_method_name": method_name,
            "account_name": account,
            "authors": authors,
            "affiliation": affiliation,
            "description": description,
            "method_link": link,
            "num_model_parameters": num_parameters,
            "uses_lidar_data": lidar,
            "uses_camera_data": camera,
            "uses_public_model_pretraining": public_pretraining,
            "public_model_names": public_models,
            "acknowledge_complies_with_closed_loop_requirement": closed_loop or None,
        },
    )
    if validate:
        scenarios = _find_scenes(rollouts, scenarios, split)
    try:
        packed = pack_submission(
            rollouts,
            out,
            fields,
            challenge=challenge,
            scenarios=scenarios if validate else None,
            n_shards=shards,
            level=level,
            workers=workers,
            overwrite=overwrite,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished shards are kept, and the same command resumes") from None
    if packed.n_kept:
        n = f"{packed.n_kept} of {packed.n_shards}"
        click.echo(f"resumed: {n} shards were finished before", err=True)
    click.echo(
        f"{counted(packed.n_scenarios, 'scene')} packed in {counted(packed.n_shards, 'shard')}, "
        f"{packed.raw_bytes / 1e6:,.1f} MB as {packed.n_bytes / 1e6:,.1f} MB: {out}"
    )
    if validate:
        from wosac_toolkit.cli.validate import run

        checked = run(
            out,
            scenarios,
            challenge=challenge,
            split=split if scenarios else None,
            workers=workers,
        )
        if checked.n_errors:
            ctx.exit(1)


def _find_scenes(rollouts: str, scenarios: str | None, split: Split | None) -> str | None:
    """Where the scenes are; None, and a word about it, where nobody says."""
    from wosac_toolkit.manifest import find_scenarios
    from wosac_toolkit.submission.check import split_folder

    if scenarios is None:
        try:
            scenarios = find_scenarios(rollouts)
        except WosacError:
            click.echo("no --scenarios: coverage and objects are not checked", err=True)
            return None
        click.echo(f"scenes: {scenarios}", err=True)
    return str(split_folder(scenarios, split))
