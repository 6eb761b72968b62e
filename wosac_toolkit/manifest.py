"""`manifest.json`: what our simulators write beside their rollouts.

It says which scenes were simulated, how, and with which seed, so that `wosac score ROLLOUTS` finds
the scenes by itself and a simulation that was interrupted knows whether it may go on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.files import atomic_write

if TYPE_CHECKING:
    from wosac_toolkit.io.tfrecord import ShardPath

SCHEMA_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """How the rollouts of a folder were made.

    Attributes:
        scenarios: absolute path of the scenes: a file, a folder, a glob or a list of shards.
        policy: what simulated them.
        seed: seed of the policy.
        n_rollouts: rollouts a scene.
        n_scenarios: how many scenes there are to simulate.
        format: `npz`, a file a scene, or `submission`, shards of the challenge's protos.
        toolkit_version: version of this package.
        schema_version: version of this layout.
    """

    scenarios: str
    policy: str
    seed: int
    n_rollouts: int
    n_scenarios: int
    format: str
    toolkit_version: str
    schema_version: int = SCHEMA_VERSION


def write_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write `manifest.json` into a folder that exists, whole or not at all."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    with atomic_write(Path(directory) / NAME) as stream:
        stream.write(text.encode())


def read_manifest(rollouts: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of rollouts, None where they have none.

    Args:
        rollouts: the folder of the rollouts, or a file in it.

    Raises:
        FormatError: there is one, but it is damaged or of a newer schema.
    """
    path = Path(rollouts)
    path = (path if path.is_dir() else path.parent) / NAME
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise FormatError("not a text file", where=str(path), mend=_MEND) from None
    try:
        fields: Any = json.loads(text)
    except ValueError as error:
        raise FormatError(f"not JSON: {error}", where=str(path), mend=_MEND) from None
    if not isinstance(fields, dict):
        raise FormatError("not a JSON object", where=str(path), mend=_MEND)
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"schema version {version!r} is unknown to this toolkit, which knows {SCHEMA_VERSION}",
            where=str(path),
            mend="upgrade wosac-toolkit, or give --scenarios",
        )
    wanted = [f for f in dataclasses.fields(Manifest) if f.name != "schema_version"]
    for field in wanted:
        kind, words = (int, "a whole number") if field.type == "int" else (str, "text")
        if type(fields.get(field.name)) is not kind:
            what = f"{field.name!r} must be {words}, not {fields.get(field.name)!r}"
            raise FormatError(what, where=str(path), mend=_MEND)
    return Manifest(**{field.name: fields[field.name] for field in wanted})


_MEND = "delete it and give --scenarios"


def absolute_path(scenarios: ShardPath) -> str:
    """A path of scenes, such as `find_shards` takes, that is good from any folder."""
    if isinstance(scenarios, (str, os.PathLike)):
        text = os.fspath(scenarios)
        scenarios = [text] if os.path.exists(text) else text.split(",")
    return ",".join(os.path.abspath(path) for path in scenarios)


def find_scenarios(rollouts: str | os.PathLike[str]) -> str:
    """Where the scenes of rollouts are: their manifest says so, else `WOSAC_SCENARIOS`.

    Raises:
        WosacError: neither does.
    """
    manifest = read_manifest(rollouts)
    if manifest is not None:
        return manifest.scenarios
    if path := os.environ.get("WOSAC_SCENARIOS"):
        return path
    raise WosacError(
        "no --scenarios PATH, no manifest.json beside the rollouts, and the environment variable "
        "WOSAC_SCENARIOS is not set",
        where=str(rollouts),
        mend="give one of them",
    )
