"""What a score is made of, in memory and warm."""

from __future__ import annotations

from kernel_times import timed_kernels

from wosac_toolkit.features import logged_features, prepare_scene, simulated_features
from wosac_toolkit.likelihood import count_log, count_simulation


def test_prepare_scene(benchmark, case):
    scene = benchmark(prepare_scene, case.scenario)
    assert scene.scenario_id == case.scenario.scenario_id


def test_logged_features_and_counts(benchmark, case):
    logged = benchmark(lambda: count_log(logged_features(case.scene), case.scene.challenge))
    assert logged.counts


def test_simulated_features(benchmark, case):
    features = benchmark(simulated_features, case.scene, case.rollouts)
    assert len(features.linear_speed) == case.rollouts.n_rollouts


def test_simulated_features_by_kernel(benchmark, case):
    """The same with a stopwatch at each kernel; milliseconds of the last round in `extra_info`."""

    def split():
        with timed_kernels() as seconds:
            simulated_features(case.scene, case.rollouts)
        return seconds

    seconds = benchmark(split)
    assert seconds
    benchmark.extra_info |= {name: round(1e3 * value, 3) for name, value in seconds.items()}


def test_count_simulation(benchmark, case):
    challenge = case.scene.challenge
    logged = count_log(logged_features(case.scene), challenge)
    simulated = simulated_features(case.scene, case.rollouts)
    counts = benchmark(count_simulation, simulated, logged, challenge)
    assert counts.keys() == logged.counts.keys()
