"""Files that are written whole or not at all, and files named after their scenario."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from wosac_toolkit.errors import RolloutsError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A stream for the new content of `path`, which takes its place when the block ends well.

    Until then, and for good where the block raises, `path` stays as it was. The temporary file
    lies in the same folder under a hidden name, which the readers of folders pass over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def scenario_file(directory: Path, scenario_id: str, suffix: str) -> Path:
    """The path `<directory>/<scenario_id><suffix>`.

    Raises:
        RolloutsError: the id cannot be the name of a file in that folder.
    """
    if not scenario_id or scenario_id.startswith(".") or not scenario_id.isprintable():
        usable = False
    else:
        usable = not {"/", "\\", ":"} & set(scenario_id) and len(scenario_id) <= 200
    if not usable:
        raise RolloutsError(
            f"scenario id {scenario_id[:80]!r} cannot be the name of a file", where=str(directory)
        )
    return directory / f"{scenario_id}{suffix}"


def one_line(error: Exception) -> str:
    """What another library says of a file, fit for one line of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
