"""TRL's own completions tables, written by real trainings, are read as what was sampled."""

from pathlib import Path

import pytest
import tiny
import torch
from trl import GRPOTrainer

from durian_adv.data.logs.steps import Options, read_log


class OfTRL(GRPOTrainer):
    """TRL's own trainer, which keeps its rewards."""

    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, *args, **kwargs):
        per_func = super()._calculate_rewards(*args, **kwargs)
        self.batches.append({"per_func": per_func.clone()})
        return per_func


def vowels(completions, log_extra=None, **_):
    """A second reward, and a column that is none beside it."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    if log_extra is not None:
        log_extra("length", [float(len(text)) for text in texts])
    return [float(sum(character in "aeiou" for character in text) > 0) for text in texts]


def one_text(images):
    """Eight prompts that ask the same, of eight images."""
    data = tiny.dataset(8, images)
    same = [{"role": "user", "content": "What is in the picture?"}]
    return data.map(lambda row: {"prompt": same}) if images else data


@pytest.mark.parametrize(("family", "images"), [("qwen25vl", 1), ("qwen_text", 0)])
def test_the_completions_of_a_training_are_the_rollouts_that_it_saw(make, tmp_path, family, images):
    weights = [0.75, 0.5]
    trainer = make(
        family,
        trainer=OfTRL,
        reward_funcs=[tiny.letters, vowels],
        train_dataset=one_text(images),
        reward_weights=weights,
        log_completions=True,
        num_completions_to_print=1,
        max_steps=3,
    )
    trainer.train()
    folder = Path(trainer.args.output_dir) / "completions"
    assert len(list(folder.glob("*.parquet"))) == 3
    log = read_log([folder], Options(keys={"reward": "letters*0.75+vowels*0.5"}))
    steps = list(log.steps)
    assert [step.name for step in steps] == [1, 2, 3]
    for step, batch in zip(steps, trainer.batches, strict=True):
        wanted = (batch["per_func"] * torch.tensor(weights)).nansum(1).double()
        torch.testing.assert_close(step.rewards, wanted)
        assert step.prompt_index.tolist() == [i // 4 for i in range(16)]  # whatever the texts are
    assert "TRL completions: 48 rollouts in 3 steps from 3 files, 12 prompts x 4 rollouts" in log.read_as
    assert "groups of 4 consecutive rollouts" in log.read_as
    assert not [finding for finding in log.findings if finding.kind != "scale"]


def test_rewards_without_weights_are_found_beside_other_columns(make):
    options = {"reward_funcs": [tiny.letters, vowels], "log_completions": True, "num_completions_to_print": 1}
    trainer = make("qwen_text", trainer=OfTRL, **options)
    trainer.train()
    log = read_log([Path(trainer.args.output_dir)], Options())
    for step, batch in zip(log.steps, trainer.batches, strict=True):
        torch.testing.assert_close(step.rewards, batch["per_func"].nansum(1).double())
    assert "reward = letters + vowels" in log.read_as
