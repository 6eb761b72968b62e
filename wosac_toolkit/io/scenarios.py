"""Scenes in TFRecord shards, as WOMD publishes them: read, indexed and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from wosac_toolkit.errors import FormatError, ScenarioError, WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.io.tfrecord import (
    RecordRef,
    ShardPath,
    find_shards,
    iter_records,
    iter_views,
    read_record,
    write_record,
)
from wosac_toolkit.io.wire import (
    END_GROUP,
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    START_GROUP,
    VARINT,
    decode_varint,
    malformed,
)
from wosac_toolkit.scenario import Scenario

_SCENARIO_ID = 5 << 3 | LENGTH_DELIMITED


def load_scenarios(path: ShardPath) -> Iterator[Scenario]:
    """The scenes in `path`, one at a time, in the order of files and records.

    Args:
        path: a TFRecord file, folder, glob or shard list, see `tfrecord.find_shards`.

    Raises:
        WosacError: there are no such files (at the call, not at the first scene).
        FormatError: a truncated or corrupt record, or one that is no `Scenario`; names file,
            record and byte.
        ScenarioError: a scene whose parts do not fit together.
    """
    shards = find_shards(path)
    return (
        _decode(payload, f"{shard}, record {number}, byte {ref.offset}")
        for shard in shards
        for number, (ref, payload) in enumerate(iter_records(shard))
    )


def index_scenarios(path: ShardPath, progress: bool = False) -> dict[str, RecordRef]:
    """Where each scene in `path` lies, by scenario id, in the order of files and records.

    Of plain files only what comes before the id is read, so the map is not.

    Args:
        path: a TFRecord file, folder, glob or shard list, see `tfrecord.find_shards`.
        progress: show a bar on stderr.

    Raises:
        WosacError: there are no such files, or two records have the same scenario id.
        FormatError: a truncated or corrupt record, or one that is no `Scenario`.
    """
    from tqdm import tqdm

    index: dict[str, RecordRef] = {}
    shards = find_shards(path)
    for shard in tqdm(shards, "indexing", unit="shard", leave=False, disable=not progress):
        for number, (ref, payload) in enumerate(iter_views(shard)):
            where = f"{shard}, record {number}, byte {ref.offset}"
            scenario_id = _known(peek_scenario_id(payload, where=where), where)
            if scenario_id in index:
                raise WosacError(
                    f"scenario {scenario_id} is here and in {index[scenario_id]}",
                    where=where,
                    mend="name files that hold each scene once",
                )
            index[scenario_id] = ref
    return index


def peek_scenario_id(data: bytes | memoryview, *, where: str = "") -> str:
    """The first `scenario_id` of a serialised `Scenario`; what follows it is not looked at.

    Empty where there is none. WOMD's records have it after the tracks and before the map.

    Raises:
        FormatError: the bytes up to the id are not a sound `Scenario` message.
    """
    # Plain Python takes 0.1 ms a record. A kernel would save half of it, and take a second to load
    # in a process that has no other use for kernels.
    field = pos = depth = 0
    end = len(data)
    try:
        while pos < end:
            field = pos
            tag, pos = decode_varint(data, pos)
            kind = tag & 7
            if kind == LENGTH_DELIMITED:
                length, pos = decode_varint(data, pos)
                if tag == _SCENARIO_ID and not depth and length <= end - pos:
                    return bytes(data[pos : pos + length]).decode("utf-8")
                pos += length
            elif kind == FIXED64:
                pos += 8
            elif kind == VARINT:
                _, pos = decode_varint(data, pos)
            elif kind == FIXED32:
                pos += 4
            elif kind == START_GROUP:
                depth += 1
            elif kind == END_GROUP and depth:
                depth -= 1
            else:
                raise malformed("Scenario", field, where)
    except (IndexError, UnicodeDecodeError):
        raise malformed("Scenario", field, where) from None
    if pos != end:
        raise malformed("Scenario", field, where)
    return ""


def read_scenario(ref: RecordRef) -> Scenario:
    """The scene at a place that `index_scenarios` gave.

    Raises:
        FormatError: there is no sound record of this length, or it is no `Scenario`.
        ScenarioError: a scene whose parts do not fit together.
    """
    return _decode(read_record(ref), str(ref))


def write_scenarios(
    directory: str | os.PathLike[str],
    scenarios: Iterable[Scenario],
    n_shards: int,
    prefix: str = "scenarios",
) -> list[Path]:
    """Write scenes into `n_shards` files as WOMD names them, dealt out in turn.

    One scene is held in memory at a time. The files appear under their names once all scenes are
    written, and none does if an error ends the writing.

    Args:
        directory: folder of the files, made where absent.
        scenarios: the scenes.
        n_shards: number of files; with more than one, reading them in order gives the scenes in
            another order.
        prefix: the files are named `<prefix>.tfrecord-00000-of-0000N`.

    Returns:
        The files, in order.

    Raises:
        WosacError: `n_shards` is not a number of shards.
    """
    from wosac_toolkit.io.scenario_proto import encode_scenario

    if not 1 <= n_shards <= 99_999:
        raise WosacError(f"cannot write {n_shards} shards", mend="give a number from 1 to 99999")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}.tfrecord-{i:05d}-of-{n_shards:05d}" for i in range(n_shards)]
    with ExitStack() as stack:
        streams = [stack.enter_context(atomic_write(path)) for path in paths]
        for i, scenario in enumerate(scenarios):
            write_record(streams[i % n_shards], encode_scenario(scenario))
    return paths


def _decode(payload: bytes, where: str) -> Scenario:
    # Imported here: indexing needs no kernels, and their import takes longer than it.
    from wosac_toolkit.io.scenario_proto import decode_scenario

    scenario = decode_scenario(payload, where=where)
    _known(scenario.scenario_id, where)
    if not 0 <= scenario.current_time_index < scenario.n_steps:
        raise ScenarioError(
            f"current_time_index {scenario.current_time_index} is not one of the "
            f"{scenario.n_steps} steps",
            where=f"{where}: scenario {scenario.scenario_id}",
            mend="the record is damaged; fetch it again",
        )
    return scenario


def _known(scenario_id: str, where: str) -> str:
    if not scenario_id:
        raise FormatError(
            "a record without a scenario id",
            where=where,
            mend="WOMD's scenes are in its 'scenario' folders; 'tf_example' is another format",
        )
    return scenario_id
