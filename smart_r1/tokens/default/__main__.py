"""Make the vocabulary of the package: `python -m smart_r1.tokens.default [FILE]`, a few minutes.

Half of the examples come from rules (`smart_r1.tokens.rules`), the other half from synthetic scenes
(`wosac_toolkit.synthetic`), which the rules' spread leads a little astray. No recorded data goes
into it, and so it can be shared under the licence of the package. The seed is fixed; another
machine may give numbers that differ in the last digits, and after them a few tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from smart_r1.tokens.build import (
    N_CURVES,
    N_MOTION,
    Examples,
    Sample,
    choose_curves,
    choose_motion,
    examples_of,
    moving,
)
from smart_r1.tokens.rules import RULES, led_astray, rule_curves, rule_segments
from smart_r1.tokens.vocabulary import save_poses
from wosac_toolkit.synthetic import generate_scenarios
from wosac_toolkit.workers import progress_bar

SEED = 0
N_SCENES = 200
N_EXAMPLES = 30_000  # of each class and source
TOLERANCES = (0.05, 0.035, 0.035)
CURVE_TOLERANCE = 0.03


def main(path: Path) -> None:
    """Write the vocabulary to a file."""
    sample = Sample(SEED)
    with progress_bar(N_SCENES, what="synthetic scenes") as bar:
        for scenario in generate_scenarios(N_SCENES, SEED):
            sample.add(scenario.scenario_id, examples_of(scenario))
            bar.update(1)
    examples = _with_rules(sample.examples(), np.random.default_rng(SEED))
    poses = choose_motion(examples.segments, N_MOTION, TOLERANCES, SEED, progress=True)
    curves = choose_curves(examples.curves, N_CURVES, CURVE_TOLERANCE, SEED)
    save_poses(path, poses, curves)


def _with_rules(synthetic: Examples, rng: np.random.Generator) -> Examples:
    """As many examples from synthetic scenes as from rules."""
    segments = []
    for index, (of_class, rules) in enumerate(zip(synthetic.segments, RULES, strict=True)):
        drawn = of_class[rng.integers(0, len(of_class), N_EXAMPLES)]
        driven = led_astray(drawn, rules.spread, rng)
        both = np.concatenate([driven, rule_segments(rules, N_EXAMPLES, rng)])
        segments.append(both[moving(both, index)])
    drawn = synthetic.curves[rng.integers(0, len(synthetic.curves), N_EXAMPLES)]
    return Examples(segments, np.concatenate([drawn, rule_curves(N_EXAMPLES, rng)]))


if __name__ == "__main__":
    here = Path(__file__).parent / "vocabulary.safetensors"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here)
