"""A whole submission, checked in one pass, as the evaluation server will see it."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.errors import FormatError, RolloutsError, WosacError, some_ids
from wosac_toolkit.io import submission
from wosac_toolkit.io.rollouts import RolloutsRef, is_archive, rollout_files
from wosac_toolkit.io.submission import Message, SubmissionMetadata
from wosac_toolkit.submission.archive import (
    DAMAGE,
    Shard,
    check_size,
    iter_shards,
    not_sound,
    report_numbers,
)
from wosac_toolkit.submission.findings import severity
from wosac_toolkit.submission.metadata import check_metadata
from wosac_toolkit.validation import Finding
from wosac_toolkit.workers import Crew, n_workers, progress_bar

if TYPE_CHECKING:
    from wosac_toolkit.io.tfrecord import RecordRef, ShardPath
    from wosac_toolkit.scenario import Scenario

Split = Literal["test", "val"]

SPLIT_FOLDERS: Mapping[Split, tuple[str, ...]] = {
    "test": ("testing", "test"),
    "val": ("validation", "val"),
}
"""How WOMD and others call the folder of a split."""

MAX_MESSAGE_BYTES = 1 << 28
"""The largest rollouts of one scenario; 32 of 128 objects are 5.4 MB."""

MAX_SCENARIOS = 1_000_000
"""The most rollouts of scenarios that are looked at; a split has 45,000."""

USUAL_ARCHIVE_BYTES = 30 * 10**9
"""The maintainers of the challenge call 10 to 30 GB usual; a limit is not known."""

_SCENE_SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<total>\d{5})(\.gz)?")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has seen.

    Attributes:
        n_expected: scenes that a submission must cover; None where there were none to compare with.
        n_scenarios: different scenarios with rollouts.
        n_shards: shards or files.
        n_bytes: of the archive or of all files.
        metadata: of the first shard; None where there is none.
        counts: code -> findings.
        n_errors: findings that are errors.
        n_warnings: findings that are warnings.
    """

    n_expected: int | None
    n_scenarios: int
    n_shards: int
    n_bytes: int
    metadata: SubmissionMetadata | None
    counts: Mapping[str, int]
    n_errors: int
    n_warnings: int


def check_submission(
    path: str | os.PathLike[str],
    scenarios: ShardPath | None,
    report: Callable[[Finding], object],
    *,
    challenge: str | Challenge = "2025",
    split: Split | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Checked:
    """Check a submission, each of its files read once and in order.

    At any time as much is in memory as a few scenes and the ids of all. The findings are the same,
    in the same order, for any number of workers. A script that uses more than one worker must call
    this below `if __name__ == "__main__":`.

    Args:
        path: a `.tar.gz` of shards, as it is going to be submitted; or a folder, a glob or a file
            of shards, `.npz` or pickles, which have no archive layout and perhaps no metadata.
        scenarios: the scenes of the split, with or without a future; None does not check coverage
            and objects.
        report: gets each finding: those about scenes in the order of the submission, then those
            about the archive, the metadata and the coverage.
        challenge: the version of the metric that the submission is for: Scenario Generation wants
            other lengths, and sizes. The metadata do not tell, as the two have one type.
        split: expect the scenes of this split; where `scenarios` is WOMD's folder, its subfolder
            is taken.
        workers: processes; None for one a CPU, fewer where there is little to check.
        progress: show a progress bar on stderr.

    Raises:
        WosacError: there is nothing to check, or the scenes cannot be read or are not of `split`.
    """
    from wosac_toolkit.io.scenarios import index_scenarios

    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def tell(finding: Finding) -> None:
        counts[finding.code] += 1
        kinds[severity(finding)] += 1
        report(finding)

    path = Path(path)
    files = [path] if is_archive(path) and path.exists() else rollout_files(path)
    n_bytes = sum(file.stat().st_size for file in files)
    check = functools.partial(_check, get_challenge(challenge))
    # Rollouts of 25 objects are a megabyte, half of it in an archive.
    with Crew(check, n_workers(workers, n_bytes >> 19), _prepare) as crew:
        records: Mapping[str, RecordRef] | None = None
        if scenarios is not None:
            scenarios = split_folder(scenarios, split)
            records = index_scenarios(scenarios, progress=progress)
            _expect_split(records, split)
        walk = _Walk(files, records)
        if scenarios is not None:
            walk.note_partial(scenarios)
        n_scenes = len(files) if records is None else len(records)
        with progress_bar(n_scenes, what="checking", show=progress) as bar:
            for findings in _in_order(crew.map(walk.tasks())):
                bar.update()
                for finding in findings:
                    tell(finding)
    walk.finish(n_bytes)
    for finding in walk.findings:
        tell(finding)
    return Checked(
        n_expected=None if records is None else len(records),
        n_scenarios=len(walk.places),
        n_shards=walk.n_shards,
        n_bytes=n_bytes,
        metadata=walk.metadata,
        counts=dict(counts),
        n_errors=kinds["error"],
        n_warnings=kinds["warning"],
    )


def split_folder(scenarios: ShardPath, split: Split | None) -> ShardPath:
    """The scenes of a split: the subfolder of that name, where there is one."""
    if split is None or not isinstance(scenarios, (str, os.PathLike)):
        return scenarios
    folders = (Path(scenarios) / name for name in SPLIT_FOLDERS[split])
    return next((folder for folder in folders if folder.is_dir()), scenarios)


def _expect_split(records: Mapping[str, RecordRef], split: Split | None) -> None:
    from wosac_toolkit.io.scenarios import read_scenario

    if split is None or not records:
        return
    first = read_scenario(next(iter(records.values())))
    has_future = first.n_steps > first.current_time_index + 1
    if has_future != (split == "val"):
        raise WosacError(
            f"these are not the scenes of --split {split}: scenario {first.scenario_id} has "
            f"{first.n_steps} steps",
            where=next(iter(records.values())).path,
            mend="scenes of the test split end at the current step, those of val do not",
        )


def _in_order(done: Iterator[tuple[_Task, list[Finding]]]) -> Iterator[list[Finding]]:
    """The findings in the order of the tasks; those that are ready early wait."""
    waiting: dict[int, list[Finding]] = {}
    number = 0
    for task, findings in done:
        waiting[task.number] = findings
        while number in waiting:
            yield waiting.pop(number)
            number += 1


# --------------------------------------------------------------------------------------------------
# Through the files


@dataclass(frozen=True, slots=True)
class _Task:
    """The rollouts of one scenario, and its scene where there is one.

    Attributes:
        number: in the order of the submission.
        rollouts: a serialized `ScenarioRollouts`, or where an `.npz` or a pickle is.
        where: the place, as findings name it.
        record: where the scene is.
    """

    number: int
    rollouts: bytes | RolloutsRef
    where: str
    record: RecordRef | None

    def __str__(self) -> str:
        return self.where


@dataclass
class _Walk:
    """What is learnt on the way through the files.

    Attributes:
        files: an archive, or files of any other format.
        records: the scenes by their ids; None where there are none.
        findings: about anything but the rollouts of a scene.
        places: scenario id -> where its rollouts are.
        n_shards: shards and other files so far.
        metadata: of the first shard.
        complete: everything could be read, so that what was not found is not there.
    """

    files: list[Path]
    records: Mapping[str, RecordRef] | None
    findings: list[Finding] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    n_shards: int = 0
    metadata: SubmissionMetadata | None = None
    complete: bool = True
    _metadata_place: str = ""
    _n_tasks: int = 0

    def report(self, code: str, what: str, file: str, scenario_id: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(code, what, scenario_id, file=file))

    def note_partial(self, scenarios: ShardPath) -> None:
        """Report scenario files that are named as parts of more than there are."""
        from wosac_toolkit.io.tfrecord import find_shards

        found: Counter[tuple[str, int]] = Counter()
        for shard in find_shards(scenarios):
            if match := _SCENE_SHARD.fullmatch(shard.name):
                found[str(shard.parent / match["name"]), int(match["total"])] += 1
        for (name, total), n in found.items():
            if n < total:
                what = (
                    f"only {n} of {total} shards of scenes are there; "
                    "the coverage of the others cannot be checked"
                )
                self.report("partial_scenes", what, name)

    def tasks(self) -> Iterator[_Task]:
        """All rollouts, in order, read as they are asked for."""
        if len(self.files) == 1 and is_archive(self.files[0]):
            try:
                for shard in iter_shards(self.files[0], self.report):
                    yield from self._shard(shard)
            except FormatError as error:
                self._damaged(error, str(self.files[0]))
            except DAMAGE as error:  # Met in the middle of a shard.
                self._damaged(not_sound(error, self.files[0]), str(self.files[0]))
            return
        names = []
        for file in self.files:
            if submission.FILE_NAME.fullmatch(file.name):
                names.append(file.name)
                yield from self._shard_file(file)
            elif is_archive(file):
                what = "an archive among other files; validate it by itself"
                self.report("stray_member", what, str(file))
            else:
                yield from self._single(file)
        report_numbers(names, str(self.files[0].parent), self.report)

    def finish(self, n_bytes: int) -> None:
        """Report what only shows at the end."""
        if len(self.files) == 1 and is_archive(self.files[0]) and n_bytes > USUAL_ARCHIVE_BYTES:
            what = f"{n_bytes / 1e9:.1f} GB, more than the 10 to 30 GB that are usual"
            self.report("archive_size", what, str(self.files[0]))
        if not self.n_shards and self.complete:
            mend = "its members must be named <name>.binproto-00000-of-00150"
            self.report("no_shards", f"no shards; {mend}", str(self.files[0]))
        elif self.records is not None and self.complete:
            for scenario_id in self.records:
                if scenario_id not in self.places:
                    self.report("no_rollouts", "has no rollouts", "", scenario_id)

    def _shard_file(self, file: Path) -> Iterator[_Task]:
        where = str(file)
        try:
            size = file.stat().st_size
            if check_size(size, where, self.report):
                with open(file, "rb") as stream:
                    yield from self._shard(Shard(file.name, where, stream, size))
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            self._damaged(FormatError(message, where=where), where)

    def _shard(self, shard: Shard) -> Iterator[_Task]:
        self.n_shards += 1
        try:
            parts = submission.iter_parts(
                shard.stream, where=shard.where, size=shard.size, max_message=MAX_MESSAGE_BYTES
            )
            for part in parts:
                if isinstance(part, Message):
                    yield from self._message(part, shard.where)
                else:
                    self._metadata(part, shard.where)
        except FormatError as error:
            self._damaged(error, shard.where)

    def _message(self, message: Message, where: str) -> Iterator[_Task]:
        if message.offset == 0:
            what = "a bare ScenarioRollouts; it must be inside a SimAgentsChallengeSubmission"
            self.report("bare_message", what, where)
        where = f"{where}, message at byte {message.offset}"
        if message.content is None:
            what = f"{message.length} bytes of rollouts of one scenario"
            self.report("message_too_large", what, where)
            self.complete = False
            return
        try:
            scenario_id = submission.message_scenario_id(message.content, where=where)
        except RolloutsError as error:
            self.report("no_scenario_id", error.what, where)
        except FormatError as error:
            self._damaged(error, where)
        else:
            yield self._task(scenario_id, message.content, where)

    def _single(self, file: Path) -> Iterator[_Task]:
        from wosac_toolkit.io.rollouts import index_rollouts

        self.n_shards += 1
        try:
            for ref in index_rollouts(file):
                yield self._task(ref.scenario_id, ref, str(file))
        except WosacError as error:
            self._damaged(error, str(file))

    def _task(self, scenario_id: str, rollouts: bytes | RolloutsRef, where: str) -> _Task:
        if self._n_tasks == MAX_SCENARIOS:
            raise WosacError(f"rollouts of more than {MAX_SCENARIOS} scenarios", where=where)
        record = None if self.records is None else self.records.get(scenario_id)
        if self.records is not None and record is None:
            what = "is not in the scenario files"
            self.report("no_scenario", what, where, scenario_id)
        if scenario_id in self.places:
            what = f"has rollouts here and in {self.places[scenario_id]}"
            self.report("duplicate_rollouts", what, where, scenario_id)
        self.places.setdefault(scenario_id, where)
        self._n_tasks += 1
        return _Task(self._n_tasks - 1, rollouts, where, record)

    def _metadata(self, metadata: SubmissionMetadata, where: str) -> None:
        if self.metadata is None:
            self.metadata, self._metadata_place = metadata, where
            self.findings += check_metadata(metadata, where)
        elif metadata != self.metadata:
            names = [
                field.name
                for field in dataclasses.fields(SubmissionMetadata)
                if getattr(metadata, field.name) != getattr(self.metadata, field.name)
            ]
            what = f"differs in {some_ids(names)} from {self._metadata_place}"
            self.report("metadata_differs", what, where)

    def _damaged(self, error: WosacError, where: str) -> None:
        self.complete = False
        place = error.where or where
        what = error.what + (f" ({error.mend})" if error.mend else "")
        self.report("damaged", f"{what}; coverage cannot be checked", place)


# --------------------------------------------------------------------------------------------------
# One scene, in its worker


def _check(challenge: Challenge, task: _Task) -> list[Finding]:
    from wosac_toolkit.io.scenarios import read_scenario
    from wosac_toolkit.submission.scene import check_scene

    scenario_id = ""
    try:
        scenario: Scenario | None = None
        if task.record is not None:
            scenario = read_scenario(task.record)
        misfits: list[submission.Misfit] = []
        if isinstance(task.rollouts, bytes):
            try:
                rollouts = submission.decode_scenario_rollouts(task.rollouts, where=task.where)
                sound = rollouts.sizes is not None or not challenge.whole_record
            except RolloutsError:
                sound = False
            if not sound:
                rollouts, misfits = submission.salvage_scenario_rollouts(
                    task.rollouts, where=task.where, with_sizes=challenge.whole_record
                )
        else:
            scenario_id = task.rollouts.scenario_id
            rollouts = task.rollouts.read()
        return check_scene(rollouts, scenario, challenge, misfits=misfits, file=task.where)
    except (WosacError, OSError) as error:
        code, what = "damaged", str(error).removeprefix(f"{task.where}: ")
    except Exception as error:  # A defect of ours must not hide what else is wrong.
        code, what = "internal_error", f"{type(error).__name__}: {error}"
    return [Finding(code, what, scenario_id, file=task.where)]


def _prepare() -> None:
    """Import what every task needs, numba above all."""
    from wosac_toolkit.io import scenario_proto, submission_kernels  # noqa: F401
    from wosac_toolkit.submission import scene  # noqa: F401
