"""`wosac warmup`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from wosac_toolkit.cli.help import Command


@click.command("warmup", cls=Command, examples=("wosac warmup", "wosac warmup --clear"))
@click.option("--clear", is_flag=True, help="First delete what was compiled before.")
def command(clear: bool) -> None:
    """Compile the kernels, once a machine.

    Numba compiles a kernel when it is first called and keeps the result in a cache on disk, from
    where later processes load it. This command fills the cache ahead of the first score.
    """
    from wosac_toolkit import metric

    if clear:
        files = cache_files()
        for path in files:
            path.unlink(missing_ok=True)
        click.echo(f"{len(files)} files of compiled kernels deleted")
    start = time.perf_counter()
    metric.warmup()
    _warm_up_readers()
    folders = sorted({str(path.parent) for path in cache_files()})
    click.echo(f"kernels ready after {time.perf_counter() - start:.1f} s: {', '.join(folders)}")


def _warm_up_readers() -> None:
    """Compile the kernels that read scenes and submissions, by reading one of each."""
    from wosac_toolkit.baselines import simulate_baseline
    from wosac_toolkit.io.rollouts import load_rollouts
    from wosac_toolkit.io.scenarios import index_scenarios, read_scenario, write_scenarios
    from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
    from wosac_toolkit.synthetic import generate_scenarios

    with TemporaryDirectory() as folder:
        write_scenarios(folder, generate_scenarios(1, seed=0), 1)
        (record,) = index_scenarios(folder).values()
        rollouts = simulate_baseline(read_scenario(record), "constant_velocity", n_rollouts=1)
        write_submission(Path(folder) / "warmup.binproto", [rollouts], SubmissionMetadata())
        list(load_rollouts(folder))


def cache_files() -> list[Path]:
    """The files in which numba keeps the compiled kernels of this package."""
    from wosac_toolkit import metric  # noqa: F401
    from wosac_toolkit.io import rollouts, scenarios  # noqa: F401

    folders = {
        Path(function.stats.cache_path)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "wosac_toolkit"
        for function in vars(module).values()
        # Numba's dispatchers; the folder of a module's cache holds nothing of other packages.
        if hasattr(function, "stats") and getattr(function.stats, "cache_path", None)
    }
    return sorted(
        path for folder in folders for kind in ("*.nbi", "*.nbc") for path in folder.glob(kind)
    )
