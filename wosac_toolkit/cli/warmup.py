"""`wosac warmup`."""

from __future__ import annotations

import time

import click

from wosac_toolkit.cli.help import Command


@click.command("warmup", cls=Command, examples=("wosac warmup", "wosac warmup --clear"))
@click.option("--clear", is_flag=True, help="First delete what was compiled before.")
def command(clear: bool) -> None:
    """Compile the kernels, once a machine.

    Numba compiles a kernel when it is first called and keeps the result in a cache on disk, from
    where later processes load it. This command fills the cache ahead of the first score.
    """
    from wosac_toolkit import warmup

    if clear:
        files = warmup.cache_files()
        for path in files:
            path.unlink(missing_ok=True)
        click.echo(f"{len(files)} files of compiled kernels deleted")
    start = time.perf_counter()
    warmup.warm_up()
    folders = sorted({str(path.parent) for path in warmup.cache_files()})
    click.echo(f"kernels ready after {time.perf_counter() - start:.1f} s: {', '.join(folders)}")
