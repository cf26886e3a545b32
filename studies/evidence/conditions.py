"""The conditions of the comparison and the plan of its runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from studies.evidence.arms import BUCKETS, MAIN, OTHERS, WEIGHTS

FEW = ("grpo", "dr-grpo", "batch-std", "durian", "reasoning")


@dataclass(frozen=True)
class Condition:
    """Everything of a run but its arm and its seed."""

    name: str
    about: str  # for readers
    arms: tuple[str, ...] = MAIN
    seeds: int = 5
    first_seed: int = 0
    steps: int = 100
    prompts: int = 96
    group_size: int = 8
    updates: int = 2
    lr: float = 1e-4  # the pilots chose it
    optimizer: str = "adam"  # or "sgd"
    format_weight: float = 0.0  # of the reward; the rest is accuracy
    clip: float = 0.2
    gradient_clip: float = 1.0  # with Adam; plain SGD takes the gradient as it is
    samples: int = 16  # a held-out prompt in the last exam


@dataclass(frozen=True)
class Run:
    """One arm, one seed, one condition: one record."""

    condition: Condition
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Return the record's path below the results, without its ending."""
        return f"{self.condition.name}/{self.arm}-{self.seed:03}"


MAIN_CONDITION = Condition("main", "Adam, binary rewards, 96 prompts x 8", seeds=20)
PILOT_RATES = (1e-4, 3e-4, 1e-3)
PILOTS = tuple(
    Condition(f"pilot-{rate:g}", f"learning rate {rate:g}", seeds=1, first_seed=100, steps=25, lr=rate, samples=4)
    for rate in PILOT_RATES
)
# A rate that is best after 25 steps may be too high for 100: the two best ones, as long as the main runs. These also
# tell how far apart runs of one seed come to lie.
LONG_PILOTS = tuple(
    Condition(f"pilot-long-{rate:g}", f"learning rate {rate:g}, 100 steps", arms=("grpo", "batch-std", "durian"),
              seeds=2, first_seed=101, lr=rate, samples=4)
    for rate in (1e-4, 3e-4)
)  # fmt: skip
SGD = tuple(
    Condition(f"sgd-{rate:g}", f"plain SGD, learning rate {rate:g}", arms=FEW, seeds=4, optimizer="sgd", lr=rate)
    for rate in (0.01, 0.03, 0.1, 0.3, 1.0)
)
# side tables: conditions under which arms are compared, and the paper's sweeps
COMPARED = (
    Condition("others", "the other arms, on the first seeds of the main comparison", arms=OTHERS, seeds=4),
    Condition("format", "0.9 accuracy + 0.1 format, so that some groups differ in format alone", format_weight=0.1),
    *SGD,
    Condition("wide", "256 prompts per step: 12 buckets of 21", seeds=4, prompts=256,
              arms=("grpo", "batch-std", "durian", "reasoning", "random-buckets")),
    Condition("group-32", "32 responses per prompt, 64 prompts per step", arms=FEW, seeds=4, prompts=64, group_size=32),
)  # fmt: skip
SWEEPS = (
    Condition("weights", "the paper's weights", seeds=4,
              arms=tuple(f"weights-{'-'.join(map(str, w))}" for w in WEIGHTS)),
    Condition("buckets", "numbers of confidence buckets, 256 prompts per step", seeds=4, prompts=256,
              arms=tuple(f"buckets-{count}" for count in BUCKETS)),
    *(
        Condition(f"group-{size}", f"{size} responses per prompt", arms=("grpo", "durian"), seeds=4, group_size=size)
        for size in (2, 4, 16)
    ),
)  # fmt: skip
SIDE = (*COMPARED, *SWEEPS)
CONDITIONS = {condition.name: condition for condition in (*PILOTS, *LONG_PILOTS, MAIN_CONDITION, *SIDE)}

# What `make evidence` trains, in minutes.
QUICK = replace(
    MAIN_CONDITION,
    name="quick",
    arms=("grpo", "dr-grpo", "batch-std", "durian"),
    seeds=6,
    steps=25,
    prompts=64,
    samples=4,
)


def runs_of(conditions: Iterable[Condition]) -> list[Run]:
    """List the runs of conditions, all arms of a seed before the next seed: what is finished can be compared."""
    return [
        Run(condition, arm, condition.first_seed + seed)
        for condition in conditions
        for seed in range(condition.seeds)
        for arm in condition.arms
    ]
