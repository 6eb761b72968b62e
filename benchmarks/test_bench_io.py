"""Reading scenes and rollouts from files that the operating system has in memory, and writing."""

from __future__ import annotations

import pytest
import scenes

from wosac_toolkit import load_rollouts, load_scenarios
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import index_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.io.tfrecord import write_records


def test_read_scenario(benchmark, dataset, case, tmp_path):
    wanted = case.scenario.scenario_id
    payload = next(p for name, p in scenes.records(dataset) if name == wanted)
    write_records(tmp_path / "one.tfrecord", [payload])
    scenario = benchmark(lambda: next(load_scenarios(tmp_path / "one.tfrecord")))
    assert scenario.scenario_id == wanted


def test_index_all_scenarios(benchmark, dataset):
    assert benchmark(index_scenarios, dataset.path)


def _write(form, folder, rollouts):
    if form == "npz":
        return write_npz(folder, rollouts)
    return write_submission(folder / "shard.binproto", [rollouts], SubmissionMetadata())


@pytest.mark.parametrize("form", ["submission", "npz"])
def test_read_rollouts(benchmark, case, tmp_path, form):
    path = _write(form, tmp_path, case.rollouts)
    rollouts = benchmark(lambda: next(load_rollouts(path)))
    assert rollouts.states.shape == case.rollouts.states.shape


@pytest.mark.parametrize("form", ["submission", "npz"])
def test_write_rollouts(benchmark, case, tmp_path, form):
    assert benchmark(_write, form, tmp_path, case.rollouts).is_file()
