"""SkyRL's own dumps: its evaluations are read, its training batches are pickles and refused."""

import pytest
import torch
from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch
from skyrl.train.utils.trainer_utils import dump_per_dataset_eval_results
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from durian_adv.data.logs.steps import Options, read_log


def tokenizer():
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_evaluations_are_read_by_text_and_environment(tmp_path):
    encode = tokenizer()
    texts = ["Find x.", "Find x.", "Find y.", "Find y.", "Find x.", "Find x."]
    rewards = [1.0, [0.0, 0.0, 1.0], 0.0, [0.0, 0.0], 0.0, 1.0]
    output = {
        "prompt_token_ids": [encode(text)["input_ids"] for text in texts],
        "response_ids": [encode("4")["input_ids"]] * 6,
        "rewards": rewards,
        "stop_reasons": ["stop"] * 6,
    }
    extras = [{"reward_spec": {"ground_truth": "4" if k < 4 else "5"}} for k in range(6)]
    dump_per_dataset_eval_results(
        tmp_path, encode, output, ["gsm8k"] * 6, ["gsm8k"] * 6, extras, {"eval/all/avg_score": 0.5}
    )
    log = read_log([tmp_path], Options())
    (step,) = log.steps
    assert step.prompts == ["Find x.", "Find y.", "Find x."]
    assert step.prompt_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert step.rewards.tolist() == [1, 1, 0, 0, 0, 1]
    assert "SkyRL evaluations" in log.read_as
    assert "left out, by their names: aggregated_results.jsonl" in log.read_as


def test_a_dumped_training_batch_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "global_step_1_training_input.pkl"
    TrainingInputBatch({"rewards": torch.zeros(2, 3)}).save(file)
    with pytest.raises(ValueError, match=r"training_input\.pkl: expected a file that only holds data, got a pickle"):
        read_log([file], Options())
