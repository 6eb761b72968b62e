"""Many scenes: simulate them with a baseline policy, keep what is finished."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wosac_toolkit import __version__
from wosac_toolkit.errors import WosacError
from wosac_toolkit.manifest import Manifest, absolute_path, read_manifest, write_manifest
from wosac_toolkit.scoring import ScoringError
from wosac_toolkit.validation import Finding
from wosac_toolkit.workers import Crew, n_workers, progress_bar

if TYPE_CHECKING:
    from wosac_toolkit.io.tfrecord import RecordRef
    from wosac_toolkit.rollouts import Rollouts

SCENES_PER_SHARD = 50


@dataclass(frozen=True, slots=True)
class RolloutsFile:
    """The scenes of one file of rollouts.

    Attributes:
        path: the file to write.
        records: scenario id and record of each scene.
    """

    path: Path
    records: Sequence[tuple[str, RecordRef]]

    def __str__(self) -> str:
        first, last = self.records[0][0], self.records[-1][0]
        return f"scenario {first}" if len(self.records) == 1 else f"scenarios {first} to {last}"


def simulate_dataset(
    scenarios: str,
    out: Path,
    policy: str,
    *,
    n_rollouts: int,
    seed: int,
    workers: int | None,
    format_: Literal["npz", "submission"],
) -> tuple[int, int]:
    """Simulate all scenes; files that an interrupted simulation has written are kept.

    Returns:
        How many scenes were simulated now, and how many there are.

    Raises:
        ScoringError: scenes that could not be simulated, each named.
        WosacError: the folder holds rollouts that were made otherwise.
    """
    from wosac_toolkit.io.scenarios import index_scenarios

    records = list(index_scenarios(scenarios, progress=True).items())
    manifest = Manifest(
        scenarios=absolute_path(scenarios),
        policy=policy,
        seed=seed,
        n_rollouts=n_rollouts,
        n_scenarios=len(records),
        format=format_,
        toolkit_version=__version__,
    )
    claim_folder(out, manifest)
    jobs = [job for job in planned_files(out, records, format_) if not job.path.exists()]
    n_left = sum(len(job.records) for job in jobs)
    findings: list[Finding] = []
    simulate = functools.partial(_simulate, policy, n_rollouts, seed)
    with (
        Crew(simulate, n_workers(workers, n_left)) as crew,
        progress_bar(n_left, what="simulating") as bar,
    ):
        for job, failures in crew.map(jobs):
            bar.update(len(job.records))
            findings += failures
    if findings:
        raise ScoringError(
            f"{len(findings)} of {len(records)} scenes could not be simulated", findings=findings
        )
    return n_left, len(records)


def claim_folder(out: Path, manifest: Manifest) -> None:
    """Make the folder of these rollouts, or see that it is theirs already.

    Raises:
        WosacError: the folder holds other rollouts.
    """
    from wosac_toolkit.io.rollouts import format_of

    out.mkdir(parents=True, exist_ok=True)
    before = read_manifest(out)
    if before is None:
        if any(format_of(path.name) for path in out.iterdir()):
            raise WosacError(
                "the folder holds rollouts that wosac simulate did not write",
                where=str(out),
                mend="choose another --out",
            )
        write_manifest(out, manifest)
    elif before != manifest:
        names = [field.name for field in dataclasses.fields(Manifest)]
        raise WosacError(
            "the folder holds rollouts that differ in "
            + ", ".join(n for n in names if getattr(before, n) != getattr(manifest, n)),
            where=str(out),
            mend="choose another --out, or delete it",
        )


def planned_files(
    out: Path, records: Sequence[tuple[str, RecordRef]], format_: Literal["npz", "submission"]
) -> Iterator[RolloutsFile]:
    """The files that the rollouts of scenes go to, the same whoever simulates them.

    Args:
        out: their folder.
        records: scenario id and record of each scene.
        format_: a file a scene, or shards of `SCENES_PER_SHARD`.
    """
    from wosac_toolkit.io.files import scenario_file

    if format_ == "npz":
        for scenario_id, record in records:
            yield RolloutsFile(scenario_file(out, scenario_id, ".npz"), [(scenario_id, record)])
        return
    shards = [
        records[first : first + SCENES_PER_SHARD]
        for first in range(0, len(records), SCENES_PER_SHARD)
    ]
    for number, shard in enumerate(shards):
        name = f"rollouts.binproto-{number:05d}-of-{len(shards):05d}"
        yield RolloutsFile(out / name, shard)


def _simulate(policy: str, n_rollouts: int, seed: int, job: RolloutsFile) -> list[Finding]:
    """Simulate the scenes of a file and write it; a scene that fails leaves no file."""
    current = job.records[0][0]

    def rollouts() -> Iterator[Rollouts]:
        from wosac_toolkit.baselines import simulate_baseline
        from wosac_toolkit.io.scenarios import read_scenario

        nonlocal current
        for scenario_id, record in job.records:
            current = scenario_id
            yield simulate_baseline(read_scenario(record), policy, n_rollouts, seed)

    try:
        write_file(job.path, rollouts(), policy)
    except (WosacError, OSError) as error:
        return [Finding("not_simulated", str(error), current)]
    except Exception as error:  # A defect of a policy must not lose the other scenes.
        return [Finding("internal_error", f"{type(error).__name__}: {error}", current)]
    return []


def write_file(path: Path, rollouts: Iterable[Rollouts], method: str) -> None:
    """Write the rollouts of a planned file; it appears when it is complete.

    Args:
        path: `.npz` for one scene, else a submission shard.
        rollouts: of its scenes, taken as they are written.
        method: the name of the method that a shard carries.
    """
    from wosac_toolkit.io.npz import write_npz
    from wosac_toolkit.io.submission import SubmissionMetadata, write_submission

    if path.suffix == ".npz":
        for one in rollouts:
            write_npz(path.parent, one)
    else:
        write_submission(path, rollouts, SubmissionMetadata(unique_method_name=method))
