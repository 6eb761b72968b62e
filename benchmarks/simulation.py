"""Time closed-loop simulation with SMART: whole scenes, its parts, and how it grows.

    python benchmarks/simulation.py [--json FILE] [--out docs/img] [--device cuda]

Weights are random and the vocabulary is the package's own, neither of which changes the work. The
scene is the one that the public implementation was timed on (see `PUBLIC`), where the real scenes
are; else a synthetic one of about its size.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from machine import this_machine
from scaling import draw
from scenes import SHARED
from tables import write_json

from smart_r1.batching import SceneBatch, collate
from smart_r1.model.config import CONFIGS
from smart_r1.model.smart import SMART
from smart_r1.scene_tensors import AgentStates, SceneTensors, scene_tensors
from smart_r1.simulate import Decision, Sampling, begin, sample, simulate, simulate_scenes
from smart_r1.tokens.vocabulary import default_vocabulary
from wosac_toolkit import generate_scenarios
from wosac_toolkit.io.scenarios import index_scenarios, read_scenario

SCENE = "637f20cafde22ff8"

#: Seconds of one rollout of this scene with the public CAT-K code and compiled graph extensions, on
#: two cores of a shared machine; it simulates rollouts one after the other. The least of 32 for
#: `tiny`, one for `nano`.
PUBLIC = {"tiny": 21.7, "nano": 8.7}


def find_scene() -> tuple[SceneTensors, str]:
    """The scene, and what it is."""
    folder = SHARED / "womd"
    if folder.is_dir():
        for part in ("validation", "training"):
            records = index_scenarios(str(folder / part))
            if SCENE in records:
                scene = scene_tensors(read_scenario(records[SCENE]))
                return scene, f"real scene {SCENE}"
    scenes = [scene_tensors(scenario) for scenario in generate_scenarios(12, seed=0)]
    scene = min(scenes, key=lambda s: abs(len(s.classes) - 50))
    return scene, "a synthetic scene"


def with_agents(scene: SceneTensors, n: int) -> SceneTensors:
    """The scene with its first agents, or with copies of them a little apart."""
    rows = torch.arange(n) % len(scene.classes)
    shift = (torch.arange(n) // len(scene.classes)).numpy()[:, None]

    def states(of: AgentStates) -> AgentStates:
        moved = of.position[rows] + 3.0 * shift[..., None].astype("float32")
        return AgentStates(moved, of.heading[rows], of.valid[rows])

    return dataclasses.replace(
        scene,
        object_ids=torch.arange(n).numpy(),
        classes=scene.classes[rows],
        size=scene.size[rows],
        z=scene.z[rows],
        roles=scene.roles[rows],
        trainable=scene.trainable[rows],
        logged=states(scene.logged),
        in_range=states(scene.in_range),
    )


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The least of some runs, after one to warm up."""
    best = float("inf")
    for attempt in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if attempt > 0:
            best = min(best, time.perf_counter() - start)
    return best


def step_seconds(model: SMART, batch: SceneBatch, n_rollouts: int) -> list[float]:
    """Seconds from each choice of tokens to the next."""
    choose, moments = sample(batch, range(n_rollouts), Sampling(), 0), []

    def watched(decision: Decision) -> torch.Tensor:
        moments.append(time.perf_counter())
        return choose(decision)

    simulate(model, begin(model, batch, model.tokenize(batch)), watched, n_rollouts)
    return [b - a for a, b in pairwise(moments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "img")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    machine = this_machine()
    scene, text = find_scene()
    vocabulary = default_vocabulary()
    rows = []
    for name in ("nano", "mini", "tiny"):
        torch.manual_seed(0)
        model = SMART(CONFIGS[name], vocabulary).to(arguments.device).eval()
        batch = collate([scene], view="logged").to(arguments.device)
        tokens = model.tokenize(batch)
        with torch.no_grad():
            rows.append(
                {
                    "model": name,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "rollouts_s": seconds(
                        lambda m=model: simulate_scenes(m, [scene]), arguments.repeats
                    ),
                    "map_s": seconds(lambda m=model, b=batch: m.encode_map(b), 3),
                    "begin_s": seconds(lambda m=model, b=batch, t=tokens: begin(m, b, t), 3),
                    "open_loop_s": seconds(lambda m=model, b=batch, t=tokens: m(b, t), 3),
                    "steps_s": step_seconds(model, batch, 8),
                    "public_rollout_s": PUBLIC.get(name),
                }
            )
        print(rows[-1])
    torch.manual_seed(0)
    model = SMART(CONFIGS["tiny"], vocabulary).to(arguments.device).eval()
    agents, rollouts = [8, 16, 32, 64, 96, 128], [1, 4, 8, 16, 32]
    by_agents = [
        seconds(lambda n=n: simulate_scenes(model, [with_agents(scene, n)], n_rollouts=4), 1)
        for n in agents
    ]
    by_rollouts = [
        seconds(lambda n=n: simulate_scenes(model, [scene], n_rollouts=n), 1) for n in rollouts
    ]
    colour = "#1f4e79"
    draw(
        arguments.out / "smart_agents.png", agents, {"": (colour, by_agents)},
        "agents (tiny, 4 rollouts)", "seconds a scene", machine,
    )  # fmt: skip
    draw(
        arguments.out / "smart_rollouts.png", rollouts, {"": (colour, by_rollouts)},
        f"rollouts (tiny, {len(scene.classes)} agents)", "seconds a scene", machine,
    )  # fmt: skip
    if arguments.json:
        data = f"{text}, {len(scene.classes)} agents, {len(scene.map_type)} map tokens"
        threads = torch.get_num_threads()
        write_json(
            arguments.json,
            {
                "machine": machine.as_dict(),
                "data": f"{data}, PyTorch {torch.__version__}, {threads} threads, float32",
                "rows": rows,
                "agents": [agents, by_agents],
                "rollouts": [rollouts, by_rollouts],
            },
        )


if __name__ == "__main__":
    main()
