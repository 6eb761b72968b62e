"""The scenes of each step.

An epoch is a permutation of the scenes, cut into batches; each process takes its share of a batch,
in parts that fit its memory. All of it follows from the seed and the number of the step.
"""

from __future__ import annotations

import functools

import numpy as np

from smart_r1.batching import SceneBatch, collate, plan_batches, scene_costs, scene_rng
from smart_r1.cache import SceneCache
from smart_r1.train.distributed import Ranks
from wosac_toolkit.scenario import Int64Array


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n_scenes: int) -> Int64Array:
    """The order in which an epoch, counted from 0, takes the scenes."""
    order: Int64Array = np.random.default_rng([seed, epoch]).permutation(n_scenes)
    return order


def step_batches(
    cache: SceneCache, ranks: Ranks, step: int, *, batch: int, edges_at_once: int, seed: int
) -> list[SceneBatch]:
    """The batches that a process computes in a step; on the CPU.

    Which agents are learned is drawn by epoch and scene, whichever process takes the scene.

    Args:
        cache: all scenes to train on.
        ranks: the processes.
        step: counted from 0 over all epochs.
        batch: scenes a step, over all processes.
        edges_at_once: bound of each batch, see `smart_r1.batching.scene_costs`.
        seed: of the run.

    Raises:
        FormatError: a damaged cache, or numbers in it that are not finite.
    """
    epoch, place = divmod(step, steps_per_epoch(len(cache), batch))
    order = epoch_order(seed, epoch, len(cache))
    whole = cache.select(order[place * batch : (place + 1) * batch])
    # By size, so that all processes have about as much to do.
    largest_first = np.argsort(-scene_costs(whole), kind="stable")
    mine = whole.select(largest_first[ranks.rank :: ranks.size])
    parts = plan_batches(scene_costs(mine), edges_at_once)
    loaded = [_load(mine.select(part), seed, epoch) for part in parts]
    return [part.pin() for part in loaded] if ranks.device.type == "cuda" else loaded


def _load(cache: SceneCache, seed: int, epoch: int) -> SceneBatch:
    scenes = list(cache)
    rngs = [scene_rng(seed, epoch, scene.scenario_id) for scene in scenes]
    return collate(scenes, view="in_range", rngs=rngs)


def steps_per_epoch(n_scenes: int, batch: int) -> int:
    """How many steps an epoch has; the last one may have fewer scenes."""
    return -(-n_scenes // batch)
