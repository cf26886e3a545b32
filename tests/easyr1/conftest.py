"""Settings of the EasyR1 tests: nothing is fetched, one thread; without EasyR1 its released parent is tested alone."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pytest
import torch
import verl  # EasyR1, or the verl 0.2 that it was made from

torch.set_num_threads(1)
sys.path.append(str(Path(__file__).resolve().parent / "standins"))

EASYR1 = importlib.util.find_spec("verl.trainer.main") is not None
NEEDS_EASYR1 = ("test_easyr1_driver.py", "test_easyr1_fit.py", "test_easyr1_preflight.py", "test_easyr1_training.py")
collect_ignore = [] if EASYR1 else list(NEEDS_EASYR1)


def pytest_report_header():
    if EASYR1:
        return f"EasyR1 {verl.__version__} at {Path(verl.__file__).parent}"
    return (
        f"NOT TESTED: EasyR1's driver ({', '.join(NEEDS_EASYR1)}). This is verl {verl.__version__}, the release it was "
        "made from, whose batches and GRPO are. For all of it give make EASYR1=a checkout, see docs/easyr1.md"
    )


@pytest.fixture
def grpo():
    """GRPO as the installed package has it: the advantages of a batch, ``(N, T)``."""
    if EASYR1:
        from verl.trainer.core_algos import compute_grpo_outcome_advantage

        mask = "response_mask"
    else:
        from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

        mask = "eos_mask"
    return lambda data: compute_grpo_outcome_advantage(
        token_level_rewards=data.batch["token_level_rewards"],
        index=data.non_tensor_batch["uid"],
        **{mask: data.batch["response_mask"]},
    )[0]
