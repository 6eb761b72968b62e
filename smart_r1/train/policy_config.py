"""Settings of reinforcement: the algorithm, and what it takes where nothing else is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from smart_r1.policy_objectives import ALPHA, BETA, CLIP, TARGET_KL
from wosac_toolkit.errors import WosacError
from wosac_toolkit.reward import Credit

Algo = Literal["mpo", "mloo", "reinforce", "grpo", "ppo", "dpo"]
Kl = Literal["k2", "k3", "exact"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How a policy learns from rewards; see `smart_r1.policy_objectives` for the equations.

    What is None is the algorithm's own, see `METHODS`; alpha is not among these.

    Attributes:
        algo: the loss, and where the advantage comes from.
        credit: how the reward is shared among a scene's rollouts, see `wosac_toolkit.reward`.
        alpha: for mpo and reinforce the reward above which they reinforce; None: what the scene
            used to get, see `smart_r1.policy_objectives.running_advantage`.
        beta: weight of the KL to the policy that training begins with, in the first step where
            there is a `target_kl`. For dpo the weight of that policy in its loss.
        kl: its estimate.
        target_kl: beta is adapted to hold the KL near so many nats an action; 0: it is not.
        updates: steps of the optimizer on the same rollouts.
        clip: how far from 1 ppo and grpo follow the ratio of probabilities.
        n_rollouts: R, of each scene.
        top_k: tokens are drawn among so many of the most probable, as they are in evaluation.
        temperature: of the draw.
    """

    algo: Algo = "mpo"
    credit: Credit | None = None
    alpha: float | None = ALPHA
    beta: float | None = None
    kl: Kl | None = None
    target_kl: float | None = None
    updates: int | None = None
    clip: float = CLIP
    n_rollouts: int = 8
    top_k: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("updates", "n_rollouts", "top_k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise WosacError(f"policy.{name} must be at least 1, is {value}")
        for name in ("beta", "target_kl"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise WosacError(f"policy.{name} must not be negative, is {value}")
        if not self.clip > 0 or not self.temperature > 0:
            raise WosacError("policy.clip and policy.temperature must be positive")
        if self.algo in ("grpo", "ppo", "dpo") and self.credit in ("group", "agent"):
            raise WosacError(
                f"{self.algo} compares the rollouts of a scene, which the credit {self.credit} "
                "does not tell apart by a reward each",
                mend="policy.credit=single or leave_one_out",
            )
        if self.algo == "mloo" and self.credit in ("group", "single"):
            raise WosacError(
                f"mloo has no baseline but that of the credit, which {self.credit} has not",
                mend="policy.credit=leave_one_out or agent",
            )
        if self.n_rollouts < 2 and (
            self.algo not in ("mpo", "reinforce") or self.credit in ("leave_one_out", "agent")
        ):
            told = f"{self.algo} with the credit {self.credit}" if self.credit else self.algo
            raise WosacError(f"{told} compares rollouts: policy.n_rollouts must be at least 2")
        if self.algo in ("mpo", "mloo", "reinforce") and (self.updates or 1) > 1:
            raise WosacError(
                f"{self.algo} learns from rollouts of the policy as it is: once, not "
                f"{self.updates} times",
                mend="policy.updates=1, or policy.algo=ppo or grpo",
            )
        if self.algo in ("reinforce", "ppo") and self.beta:
            raise WosacError(
                f"{self.algo} has no KL in its loss",
                mend="policy.beta=0, or policy.algo=mpo, mloo or grpo",
            )
        if self.algo in ("reinforce", "ppo", "dpo") and self.target_kl:
            raise WosacError(
                f"{self.algo} has no weight of a KL to adapt",
                mend="policy.target_kl=0, or policy.algo=mpo, mloo or grpo",
            )
        if self.algo == "dpo" and self.beta == 0:
            raise WosacError("dpo learns nothing where policy.beta is 0")


class Method(NamedTuple):
    """What an algorithm is where nothing else is said."""

    credit: Credit
    beta: float
    kl: Kl
    target_kl: float
    updates: int


METHODS: Mapping[Algo, Method] = {
    # SMART-R1 (arXiv 2509.23993).
    "mpo": Method("group", BETA, "k3", 0.0, 1),
    # RLFTSim (arXiv 2605.19033). Of the penalties k2 is the one whose gradient is that of the KL.
    "mloo": Method("leave_one_out", BETA, "k2", TARGET_KL, 1),
    "reinforce": Method("group", 0.0, "k3", 0.0, 1),
    # A reward for each rollout: among rollouts that share one none is better.
    "grpo": Method("single", BETA, "k3", 0.0, 1),
    # At the first update the ratio is 1, and nothing clipped: it takes several to be PPO.
    "ppo": Method("single", 0.0, "k3", 0.0, 4),
    "dpo": Method("single", 0.1, "k3", 0.0, 1),
}


def resolved(config: PolicyConfig) -> PolicyConfig:
    """The settings, with the algorithm's own where there was None."""
    own = METHODS[config.algo]._asdict()
    return dataclasses.replace(
        config, **{name: own[name] for name in own if getattr(config, name) is None}
    )
