"""Each trainer's log is read for what it says: prompts, rewards, steps and tokens, whatever it calls them.

``tests/logs`` has files that released writers made (how, the scripts beside them say). Where a writer does not run
here, its keys stand below as its source has them, named with each; TRL's, verl's and SkyRL's writers run in tests/trl,
tests/verl and tests/others.
"""

import csv
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from durian_adv.data.logs import sources
from durian_adv.data.logs.known import FORMATS
from durian_adv.data.logs.steps import Options, read_log

FILES = Path(__file__).parent / "logs"


def read(*paths, **options):
    log = read_log(list(paths), Options(**options))
    return log._replace(steps=list(log.steps))


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups(step):
    """A step's rewards by prompt, in the order of the log."""
    found = {}
    for prompt, reward in zip(step.prompt_index.tolist(), step.rewards.tolist(), strict=True):
        found.setdefault(prompt, []).append(reward)
    return list(found.values())


def table(columns):
    rows = json.loads((FILES / "swift.jsonl").read_text().splitlines()[1])
    return {name: rows[name] for name in columns}


# --- released writers -------------------------------------------------------------------------------


def test_ms_swift_with_weights_and_two_prompts_of_one_text():
    weights = {"reward": "MultiModalAccuracyORM*0.9+Format*0.1"}
    log = read(FILES / "swift.jsonl", keys=weights)
    assert [step.name for step in log.steps] == [9, 10, 11]
    for step, line in zip(log.steps, (FILES / "swift.jsonl").read_text().splitlines(), strict=True):
        row = json.loads(line)
        right, form = row["MultiModalAccuracyORM"], row["Format"]
        wanted = [0.9 * a + 0.1 * b for a, b in zip(right, form, strict=True)]
        assert step.rewards.tolist() == pytest.approx(wanted)
        assert groups(step) == [pytest.approx(wanted[k : k + 8]) for k in range(0, 32, 8)]
    assert log.steps[1].prompts[:2] == ["<image>Find x.", "<image>Find x."]
    assert log.findings == []
    assert log.read_as == (
        "ms-swift completions: 96 rollouts in 3 steps, 12 prompts x 8 rollouts; "
        "reward = MultiModalAccuracyORM*0.9+Format*0.1; groups of 8 consecutive rollouts"
    )


def test_ms_swift_without_its_weights_is_said_not_to_explain_the_advantages():
    log = read(FILES / "swift.jsonl")
    assert [finding.kind for finding in log.findings] == ["advantages", "scale"]
    assert not any(finding.broken for finding in log.findings)
    assert "--key reward=accuracy*0.9+format*0.1" in log.findings[0].text


def test_prime_rl_and_verifiers_traces():
    log = read(FILES / "verifiers.jsonl")
    episodes = [json.loads(line) for line in (FILES / "verifiers.jsonl").read_text().splitlines()]
    assert [step.name for step in log.steps] == [0, 1]
    assert [len(group) for step in log.steps for group in groups(step)] == [4] * 6
    rewards = [reward for step in log.steps for reward in step.rewards.tolist()]
    confidences = [value for step in log.steps for value in step.confidence.tolist()]
    for episode, reward, confidence in zip(episodes, rewards, confidences, strict=True):
        solved = [trace for trace in episode["traces"] if trace["agent"]["trainable"]]
        if not solved:
            assert reward != reward
            assert confidence != confidence
            continue
        parts = [part for part in solved[0]["rewards"].values() if part]
        if parts:
            assert reward == pytest.approx(sum(part["score"] * part["weight"] for part in parts))
        else:
            assert reward != reward  # scoring did not run
        assert confidence == sum(value for node in solved[0]["nodes"] for value in node["logprobs"])
    assert log.steps[0].prompts == [f"What is {k} + {k}?" for k in range(3)]
    assert log.read_as.startswith("prime-rl and verifiers v1 traces: 24 rollouts in 2 steps, 6 prompts x 4 rollouts")


def test_traces_of_several_trained_agents_are_compared_within_each(tmp_path):
    def trace(name, score):
        return {"agent": {"name": name, "trainable": True}, "rewards": {"win": {"score": score}}, "nodes": []}

    episodes = [
        {"task": {"key": "a"}, "group": {"id": "g"}, "traces": [trace("white", k), trace("black", 1 - k)]}
        for k in (0, 1)
    ]
    (step,) = read(lines(tmp_path / "traces.jsonl", episodes)).steps
    assert groups(step) == [[0, 1], [1, 0]]
    (step,) = read(
        lines(tmp_path / "traces.jsonl", [{**e, "traces": e["traces"][:1], "group": None} for e in episodes])
    ).steps
    assert groups(step) == [[0, 1]]  # of the task, where there are no groups


def test_an_episode_without_a_group_and_a_task_is_refused(tmp_path):
    file = lines(tmp_path / "traces.jsonl", [{"task": {}, "traces": []}])
    with pytest.raises(ValueError, match=r"line 1: expected a group\.id, a task\.key or a task\.hash, got none"):
        read(file)


def test_both_subsets_of_prime_rl_are_the_same_rollouts_twice(tmp_path):
    for subset in ("all", "effective"):
        (tmp_path / "step_1/train" / subset).mkdir(parents=True)
        (tmp_path / "step_1/train" / subset / "traces.jsonl").write_bytes((FILES / "verifiers.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"expected each rollout once, got .*all.traces\.jsonl and .*effective"):
        read(tmp_path)
    assert len(read(tmp_path / "step_1/train/effective").steps) == 2


# --- by their keys ----------------------------------------------------------------------------------


def nemo(step, rewards, prompts, more=()):
    """NeMo-RL, ``log_batched_dict_as_jsonl`` over ``log_data`` of ``grpo_train`` (nemo_rl/algorithms/grpo.py)."""
    return [
        {
            "content": [f"question {prompt}answer"],
            "rewards": [reward],
            "input_lengths": [6],
            "token_ids": [[1, prompt, 5, 6, 7, 0]],
            "token_loss_mask": [[0, 0, 1, 1, 0, 0]],
            "sample_loss_mask": [1.0],
            "advantages": [[0.0] * 6],
            "generation_logprobs": [[0.0, 0.0, -0.4, -0.6, -9.0, 0.0]],
            "prev_logprobs": [[0.0, -5.0, -0.4, -0.6, 0.0, 0.0]],
            **dict(more),
            "idx": idx,
        }
        for idx, (reward, prompt) in enumerate(zip(rewards, prompts, strict=True))
    ]


def test_nemo_rl_has_its_step_in_the_name_and_its_prompt_in_the_tokens(tmp_path):
    for step in (2, 10):
        lines(tmp_path / f"train_data_step{step}.jsonl", nemo(step, [0.0, 1.0, 1.0, 1.0], [3, 3, 4, 4]))
    log = read(tmp_path)
    assert [step.name for step in log.steps] == [2, 10]
    for step in log.steps:
        assert groups(step) == [[0, 1], [1, 1]]
        assert step.confidence.tolist() == pytest.approx([-1.0] * 4)
    assert read(tmp_path, keys={"logprobs": "prev_logprobs"}).steps[0].confidence.tolist() == pytest.approx([-1.0] * 4)
    whole = read(tmp_path, keys={"logprobs": "prev_logprobs", "mask": "none"}).steps[0].confidence.tolist()
    assert whole == pytest.approx([-6.0] * 4)
    rows = nemo(1, [0.5, 0.5], [3, 3], {"filtered_rewards": [1.0]}.items())
    assert read(lines(tmp_path / "other.jsonl", rows)).steps[0].rewards.tolist() == [1, 1]
    rows[0]["rewards"] = [1, 2]
    with pytest.raises(ValueError, match=r"other\.jsonl, line 1: rewards: expected a list of length 1, got \[1, 2\]"):
        read(lines(tmp_path / "other.jsonl", rows))


def slime(group, reward, **more):
    """slime, ``Sample.to_dict`` (slime/utils/types.py), as ``save_debug_rollout_data`` saves it."""
    return {
        "group_index": group,
        "index": 0,
        "rollout_id": None,
        "prompt": [{"role": "user", "content": f"question {group}"}],
        "tokens": [1, 2, 3],
        "multimodal_inputs": None,
        "multimodal_train_inputs": None,
        "response": "answer",
        "response_length": 3,
        "label": "4",
        "reward": reward,
        "loss_mask": [1, 1, 0],
        "weight_versions": ["1"],
        "rollout_log_probs": torch.tensor([-0.25, -0.5, -8.0]),
        "remove_sample": False,
        "status": "completed",
        "metadata": {},
        "spec_info": {"spec_accept_token_num": 0},
        **more,
    }


def test_slime_samples(tmp_path):
    samples = [slime(0, 1.0), slime(0, 0.0), slime(1, 1.0), slime(1, None, status="aborted", rollout_log_probs=None)]
    torch.save({"rollout_id": 7, "samples": samples}, tmp_path / "rollout_7.pt")
    (step,) = read(tmp_path / "rollout_7.pt").steps
    assert step.name == 7
    assert str(groups(step)) == "[[1.0, 0.0], [1.0, nan]]"
    assert str(step.confidence.tolist()) == "[-0.75, -0.75, -0.75, nan]"
    assert step.prompts == ["question 0", "question 1"]
    samples = [slime(0, {"accuracy": 1.0, "format": 0.5}), slime(0, {"accuracy": 0.0, "format": 0.5})]
    torch.save({"rollout_id": 7, "samples": samples}, tmp_path / "rollout_7.pt")
    with pytest.raises(ValueError, match=r"rollout_7\.pt, sample 1: reward: .* --key reward=reward\.accuracy"):
        read(tmp_path / "rollout_7.pt")
    assert groups(read(tmp_path, keys={"reward": "reward.accuracy"}).steps[0]) == [[1, 0]]
    torch.save({"rollout_id": 7, "samples": [3]}, tmp_path / "rollout_7.pt")
    with pytest.raises(ValueError, match="sample 1: expected a sample with a reward, got 3"):
        read(tmp_path)


def test_what_could_run_a_program_is_refused_with_what_to_do(tmp_path):
    torch.save({"rollout_id": 0, "samples": [slime(0, 1.0, multimodal_inputs={"image": Path("x")})]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: expected a torch file of numbers.* multimodal_inputs"):
        read(tmp_path / "a.pt")
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: expected a torch file that holds a dict, got list"):
        read(tmp_path / "a.pt")
    # SkyRL's TensorBatch.save (skyrl/backends/skyrl_train/training_batch.py) pickles
    (tmp_path / "global_step_1_training_input.pkl").write_bytes(pickle.dumps({"rewards": [1]}))
    with pytest.raises(ValueError, match=r"input\.pkl: expected a file .*, got a pickle.* JSON lines"):
        read(tmp_path / "global_step_1_training_input.pkl")


def test_skyrl_evaluations_and_the_means_beside_them(tmp_path):
    """``dump_per_dataset_eval_results`` (skyrl/train/utils/trainer_utils.py); run for real in tests/others."""
    rows = [
        {
            "input_prompt": "Find x.",
            "output_response": "4",
            "score": score,
            "stop_reason": "stop",
            "env_class": "gsm8k",
            "env_extras": {"reward_spec": {"ground_truth": truth}},
            "data_source": "gsm8k",
        }
        for score, truth in ((1.0, "4"), ([0.0, 0.0, 1.0], "4"), (0.0, "5"), ([0.0, 0.0], "5"))
    ]
    lines(tmp_path / "gsm8k.jsonl", rows)
    lines(tmp_path / "aggregated_results.jsonl", [{"eval/all/avg_score": 0.5}])
    log = read(tmp_path)
    assert groups(log.steps[0]) == [[1, 1], [0, 0]]
    assert log.steps[0].prompts == ["Find x.", "Find x."]
    assert "left out, by their names: aggregated_results.jsonl" in log.read_as


def test_verifiers_before_version_1(tmp_path):
    """``state_to_output`` (verifiers/legacy/utils/save_utils.py)."""
    rows = [
        {
            "example_id": example,
            "prompt": [{"role": "user", "content": "Find x."}],
            "completion": [{"role": "assistant", "content": "4"}],
            "reward": reward,
            "timing": {},
            "is_completed": True,
            "metrics": {"correct": reward},
            "correct": reward,
        }
        for example, reward in ((0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0))
    ]
    log = read(lines(tmp_path / "results.jsonl", rows))
    assert groups(log.steps[0]) == [[1, 0], [1, 1]]
    assert log.read_as.startswith("verifiers results: 4 rollouts")


def test_areal_has_a_folder_per_version_and_a_file_per_task(tmp_path):
    """``WorkflowExecutor._dump_trajectory`` (areal/infra/workflow_executor.py)."""
    for version in (2, 10):
        for task in range(2):
            rows = [
                {
                    "task_id": task,
                    "sample_idx": sample,
                    "seqlen": 9,
                    "prompt_len": 4,
                    "head_version": version - 1,
                    "tail_version": version,
                    "reward": float(sample == task),
                    "prompt": "Find x.",
                    "completion": "4",
                }
                for sample in range(2)
            ]
            lines(tmp_path / str(version) / f"{task}.jsonl", rows)
    log = read(tmp_path)
    assert [step.name for step in log.steps] == [2, 10]
    assert [groups(step) for step in log.steps] == [[[1, 0], [0, 1]]] * 2
    assert "8 rollouts in 2 steps from 4 files" in log.read_as


def test_roll_has_columns(tmp_path):
    """``dump_rollout_to_specific_path`` and ``write_to_json_process`` (roll/pipeline/rlvr/utils.py)."""
    columns = {
        "global_step": [3] * 4,
        "id": ["a", "a", "b", "b"],
        "prompt": ["Find x.", "Find x.", "Find y.", "Find y."],
        "responses": ["1", "2", "3", "4"],
        "scores": [1.0, 0.0, 1.0, 1.0],
        "sampling_params": ["{}"] * 4,
    }
    file = lines(tmp_path / "rollout_dump_data.step_3.jsonl", [columns])
    (step,) = read(file).steps
    assert (step.name, groups(step), step.prompts) == (3, [[1, 0], [1, 1]], ["Find x.", "Find y."])
    del columns["id"]
    assert groups(read(lines(file, [columns])).steps[0]) == [[1, 0], [1, 1]]
    columns["scores"] = [1.0]
    with pytest.raises(ValueError, match=r"step_3\.jsonl, line 1: expected columns of one length, got .* scores: 1"):
        read(lines(file, [columns]))


def test_easyr1_text(tmp_path):
    """``FileGenerationLogger`` (verl/utils/logger/gen_logger.py of EasyR1)."""
    samples = [
        ("Find x.\n\n[hint] look", "<think>\n[score] 9\n</think>\n4", "4", 1.0),
        ("Find x.\n\n[hint] look", "5\n", "4", 0.1),
        ("Find y.", "1", "1", 1.0),
    ]
    file = tmp_path / "generations.log"
    with open(file, "a") as f:
        for inp, out, lab, score in samples:
            f.write(f"[prompt] {inp}\n[output] {out}\n[ground_truth] {lab}\n[score] {score}\n\n")
    log = read(file)
    assert groups(log.steps[0]) == [[1, 0.1], [1]]
    assert log.steps[0].prompts == ["Find x.\n\n[hint] look", "Find y."]
    assert log.read_as.startswith("EasyR1 generations: 3 rollouts")
    file.write_text("[prompt] a\n[output] b\n[ground_truth] c\n[score] much\n\n")
    with pytest.raises(ValueError, match=r"generations\.log, line 1: score: expected a number, got 'much"):
        read(file)
    file.write_text("\n[prompt] a\n[output] b\n")
    with pytest.raises(ValueError, match=r"log, line 2: expected \[ground_truth\] after \[output\], got the end"):
        read(file)


def verl(step, uids, scores, **columns):
    """verl 0.9.1, ``_write_generations``; run for real in tests/verl."""
    return [
        {"input": "Find x.", "output": "4", "gts": "4", "score": score, "step": step, "uid": uid}
        | {name: values[k] for name, values in columns.items()}
        for k, (uid, score) in enumerate(zip(uids, scores, strict=True))
    ]


def test_verl_v1_has_the_prompt_in_the_first_part_of_uid_and_counts_the_last_output(tmp_path):
    uids = ["a_b_0_0", "a_b_1_0", "a_b_1_1", "c_0_0", "c_1_0"]
    file = lines(tmp_path / "1.jsonl", verl(1, uids, [1, 0.5, 0, 1, 1]))
    (step,) = read(file).steps
    assert groups(step) == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"jsonl, line 3: uid: expected a rollout's outputs in a row, .*'a_0_1' apart"):
        read(lines(file, verl(1, ["a_0_0", "a_1_0", "a_0_1"], [1, 0, 1])))
    (step,) = read(lines(file, verl(1, ["a", "b", "a"], [1, 0, 0]))).steps  # of a prompt, as other writers have it
    assert groups(step) == [[1, 0], [0]]


def test_verl_v0_is_told_apart_by_text_and_answer(tmp_path):
    rows = [
        {"input": "Find x.", "output": "4", "gts": gts, "score": score, "step": 2, "request_id": str(k)}
        for k, (gts, score) in enumerate((("4", 1.0), ("5", 0.0), ("4", 0.0), ("5", 0.0)))
    ]
    log = read(lines(tmp_path / "2.jsonl", rows))
    assert groups(log.steps[0]) == [[1, 0], [0, 0]]
    assert "a prompt is its input and gts (verl v0 writes no id)" in log.read_as


# --- TRL's table, as a tracker exports it ---------------------------------------------------------------


def trl(step=1, prompts=("a", "a", "b"), size=4, weights=(1.0, 0.0), seed=0):
    """The columns of ``GRPOTrainer.log`` (trl/trainer/grpo_trainer.py, 1.16); written by trainings in tests/trl."""
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (2, len(prompts), size), generator=draw).double()
    rewards[0, :, 0], rewards[0, :, 1] = 0.0, 1.0  # signal everywhere
    rewards[0, 1:, 2] = torch.arange(len(prompts) - 1).double() * 2  # no two groups are alike
    total = weights[0] * rewards[0] + weights[1] * rewards[1]
    advantages = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    return {
        "step": [step] * (len(prompts) * size),
        "prompt": [[{"role": "user", "content": text}] for text in prompts for _ in range(size)],
        "completion": ["x"] * (len(prompts) * size),
        "accuracy_reward": rewards[0].flatten().tolist(),
        "other": rewards[1].flatten().tolist(),
        "advantage": advantages.float().flatten().tolist(),
    }


def as_rows(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_trl_groups_are_consecutive_and_their_size_is_derived_from_the_advantages(tmp_path):
    columns = trl()
    file = lines(tmp_path / "log.jsonl", as_rows(columns))
    log = read(file)
    rewards = columns["accuracy_reward"]
    # two neighbors ask the same: of two images
    assert groups(log.steps[0]) == [rewards[:4], rewards[4:8], rewards[8:]]
    assert log.steps[0].prompts == ["a", "a", "b"]
    assert "reward = accuracy_reward; groups of 4 consecutive rollouts" in log.read_as
    assert [finding.kind for finding in log.findings] == ["scale"]


def test_a_small_size_that_fits_by_chance_is_not_taken(tmp_path):
    columns = trl(prompts=("a", "b"))
    columns["accuracy_reward"], columns["other"] = [0.0, 1.0] * 4, [0.0] * 8
    columns["advantage"] = [-0.866, 0.866] * 4
    log = read(lines(tmp_path / "log.jsonl", as_rows(columns)))
    assert [len(group) for group in groups(log.steps[0])] == [4, 4]


def test_trl_rewards_with_weights_are_checked_against_the_advantages(tmp_path):
    file = lines(tmp_path / "log.jsonl", as_rows(trl(weights=(0.75, 0.5))))
    assert "advantages" in [finding.kind for finding in read(file).findings]
    log = read(file, keys={"reward": "accuracy_reward*0.75+other*0.5"})
    assert [finding.kind for finding in log.findings] == ["scale"]
    both = read(lines(tmp_path / "log.jsonl", as_rows(trl(weights=(1.0, 1.0)))))
    assert "reward = accuracy_reward + other; groups of 4 consecutive" in both.read_as


def test_a_group_size_that_is_named_is_taken_and_checked(tmp_path):
    file = lines(tmp_path / "log.jsonl", as_rows(trl(prompts=("a",) * 3)))
    assert [len(group) for group in groups(read(file).steps[0])] == [4] * 3
    log = read(file, group_size=2)
    assert [len(group) for group in groups(log.steps[0])] == [2] * 6
    assert "advantages" in [finding.kind for finding in log.findings]


def test_rollouts_that_do_not_stand_together_are_grouped_by_text(tmp_path):
    columns = trl(prompts=("a", "b"), size=3)
    rows = as_rows(columns)
    rows = [rows[k] for k in (0, 3, 1, 4, 2, 5)]
    log = read(lines(tmp_path / "log.jsonl", rows))
    assert [len(group) for group in groups(log.steps[0])] == [3, 3]
    assert "groups by the text of the prompt" in log.read_as
    assert "Within prompts of one text" in next(f.text for f in log.findings if f.kind == "advantages")


def test_trl_without_a_reward_says_so(tmp_path):
    columns = {name: values for name, values in trl().items() if name not in ("accuracy_reward", "other")}
    file = lines(tmp_path / "log.jsonl", as_rows(columns))
    with pytest.raises(ValueError, match=r"line 1: expected a column of rewards, got none: --key reward=KEY names it"):
        read(file)
    with pytest.raises(ValueError, match="line 1: expected the key 'score', got step, prompt, completion, advantage"):
        read(file, keys={"reward": "score"})


def test_a_tracker_s_table_is_the_table(tmp_path):
    columns = trl()
    plain = read(lines(tmp_path / "log.jsonl", as_rows(columns)))
    data = [list(row.values()) for row in as_rows(columns)]
    file = tmp_path / "completions.table.json"
    for indent in (None, 2):
        file.write_text(json.dumps({"columns": list(columns), "data": data}, indent=indent))
        assert [groups(step) for step in read(file).steps] == [groups(step) for step in plain.steps]
    file.write_text(json.dumps({"columns": ["prompt", "prompt", "reward"], "data": []}))
    with pytest.raises(ValueError, match=r"table\.json, line 1: expected each column once, got 'prompt' twice"):
        read(file)
    file.write_text(json.dumps({"columns": ["prompt", "reward"], "data": [[1]]}))
    with pytest.raises(ValueError, match=r"line 1, row 1: expected a list of 2 cells, got \[1\]"):
        read(file)


# --- files ------------------------------------------------------------------------------------------

ROWS = [{"prompt": k // 4, "reward": float(k % 3 == 0), "step": k // 8} for k in range(16)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
WANTED = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]]


def rewards(log):
    return [step.rewards.tolist() for step in log.steps]


def test_gzip_arrays_and_csv_are_told_apart_by_what_they_hold(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(gzip.compress(TEXT.encode()))
    assert rewards(read(file)) == WANTED
    for indent in (None, 1):
        file.write_text(json.dumps(ROWS, indent=indent))
        assert rewards(read(file)) == WANTED
    text = io.StringIO()
    made = csv.DictWriter(text, ["prompt", "reward", "step", "logprobs", "note"])
    made.writeheader()
    made.writerows({**row, "logprobs": "[-0.5, null]", "note": 'a, "b"\nc'} for row in ROWS)
    file.write_text(text.getvalue())
    log = read(file)
    assert rewards(log) == WANTED
    assert log.steps[0].confidence.tolist() == [-0.5] * 8
    file.write_text("prompt,reward\n1,True\n\n1,False\n1,nan\n1,\n")
    assert str(rewards(read(file))) == "[[1.0, 0.0, nan, nan]]"
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    file.write_bytes(gzip.compress(sink.getvalue()))
    assert rewards(read(file)) == WANTED


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "expected at least one rollout, got none"),
        (b"hello", r"log: expected JSON lines, parquet, or CSV with a header, got 'hello'"),
        (b"prompt,reward,prompt\n1,2,3\n", "log: expected each column once, got 'prompt' twice"),
        (b"prompt,reward\n1\n", "log, line 2: expected 2 cells, got 1"),
        (b'prompt,reward\n1,"2\n', "log, line 2: expected CSV, got another"),
        (b"prompt,reward\n\xff,2\n", "log, line 0: expected CSV, got another"),
        (b"[1]", "log, item 1: expected a JSON object, got 1"),
        (b"[\n{]", "log: expected a JSON array or JSON lines, got another"),
        (b'[{"prompt": 1, "reward": 1, "reward": 2}]', r"got another \(duplicate key 'reward'\)"),
        (gzip.compress(TEXT.encode())[:-9], "log: expected a gzip file, got one that cannot be unpacked"),
        (
            gzip.compress(TEXT.encode(), 1)[:20] + b"x" * 99,
            "log: expected a gzip file, got one that cannot be unpacked",
        ),
        (b"PAR1 and nothing", "log: expected a parquet file, got one that cannot be read"),
        (b"PK\x03\x04 and nothing", "log: expected a torch file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file(tmp_path, content, complaint):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path / "log")


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    made = pyarrow.Table.from_arrays([pyarrow.array([1.0])] * 3, ["prompt", "reward", "reward"])
    pyarrow.parquet.write_table(made, tmp_path / "log")
    with pytest.raises(ValueError, match="log: expected each column once, got 'reward' twice"):
        read(tmp_path / "log")


def test_a_folder_is_read_in_the_order_of_its_numbers_and_what_is_left_out_is_said(tmp_path):
    for k in (1, 2, 10, 11):
        lines(tmp_path / f"part-{k}.jsonl", [{"prompt": k, "reward": k, "step": 0}])
    (tmp_path / "README.md").write_text("a note")
    (tmp_path / ".hidden.jsonl").write_text("nothing")
    log = read(tmp_path)
    assert rewards(log) == [[1, 2, 10, 11]]
    assert log.read_as.endswith("left out, by their names: README.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected a folder with files such as .*, got none"):
        read(tmp_path / "empty")


def test_steps_are_in_numeric_order_however_they_are_called(tmp_path):
    def names(steps):
        rows = [{"prompt": 1, "reward": 1, "step": step} for step in steps]
        return [step.name for step in read(lines(tmp_path / "log", rows)).steps]

    assert names([10, 2, 1, 11]) == [1, 2, 10, 11]
    assert names(["10", "2", "1"]) == [1, 2, 10]
    assert names([10.0, 2]) == [2, 10]
    assert names(["step_10", "step_9"]) == ["step_9", "step_10"]
    assert names(["late", "early"]) == ["late", "early"]
    assert names(["b1", "a2"]) == ["b1", "a2"]


def test_standard_input_is_what_a_dash_names(tmp_path, monkeypatch):
    (tmp_path / "log").write_bytes(gzip.compress(TEXT.encode()))
    with (tmp_path / "log").open() as text:
        monkeypatch.setattr(sys, "stdin", text)
        assert rewards(read(Path("-"))) == WANTED
        assert not text.closed


def test_how_much_there_is_to_read_is_known_of_files_alone(tmp_path):
    (tmp_path / "log").write_text(TEXT)
    assert sources.size([tmp_path / "log"] * 2) == 2 * len(TEXT)
    assert sources.size([tmp_path]) is None
    assert sources.size([tmp_path / "log", Path("-")]) is None


class OneByOne(io.RawIOBase):
    """A stream that gives a byte at a time, as a pipe may."""

    def __init__(self, content):
        self.rest = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.rest.readinto(memoryview(buffer)[:1])


def test_the_first_bytes_are_waited_for_and_no_byte_is_lost_or_counted_twice():
    counted = []
    stream = io.BufferedReader(sources._Counted(OneByOne(TEXT.encode()), counted.append))
    assert stream.peek(8)[:8] == TEXT.encode()[:8]
    assert stream.read() == TEXT.encode()
    assert sum(counted) == len(TEXT.encode())


def test_standard_input_and_pipes_are_read_once_and_whole(tmp_path):
    command = [sys.executable, "-m", "durian_adv", "metrics", "-"]
    out = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True)
    assert [json.loads(line)["durian/rollouts"] for line in out.stdout.splitlines()] == [8, 8]
    assert "read as plain rollouts: 16 rollouts in 2 steps, 4 prompts x 4 rollouts" in out.stderr
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    for content in (TEXT.encode(), gzip.compress(TEXT.encode()), sink.getvalue()):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        assert rewards(read(pipe)) == WANTED
        writer.join()
        pipe.unlink()
    script = "import sys, time\nfor c in sys.argv[1]:\n    print(c, end='', flush=True)\n    time.sleep(0.002)"
    slow = subprocess.Popen([sys.executable, "-c", script, TEXT[:60] + "\n"], stdout=subprocess.PIPE)
    out = subprocess.run(command, stdin=slow.stdout, capture_output=True, text=True, check=False)
    slow.wait()
    slow.stdout.close()
    assert "line 2: expected a JSON object" in out.stderr  # not "a JSON array", as its first bytes alone would say
    bad = subprocess.run(command, input="{", capture_output=True, text=True, check=False)
    assert "durian-adv metrics: standard input: expected a JSON array or JSON lines" in bad.stderr


# --- keys -------------------------------------------------------------------------------------------


def test_any_json_value_is_an_id_and_several_columns_are_one(tmp_path):
    ids = [{"b": 1.0, "a": [None]}, {"a": [None], "b": 1}, 1, 1.0, "1", True, [1], 1.5]
    log = read(lines(tmp_path / "log", [{"prompt": one, "reward": 0} for one in ids]))
    assert log.steps[0].prompt_index.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    (kinds,) = [finding for finding in log.findings if finding.kind == "kinds"]
    assert not kinds.broken
    assert "1 (number) and '1' (text)" in kinds.title
    rows = [{"input": "Find x.", "image": image, "score": 0} for image in ("a", "b", None, "a")]
    keys = {"prompt": "input+image", "reward": "score"}
    assert read(lines(tmp_path / "log", rows), keys=keys).steps[0].prompt_index.tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"line 1: image\+image: expected a prompt id, got null"):
        read(lines(tmp_path / "log", rows[2:]), keys=keys | {"prompt": "image+image"})
    with pytest.raises(ValueError, match=r"line 1: expected the key 'input\+nothing', got"):
        read(lines(tmp_path / "log", rows), keys=keys | {"prompt": "input+nothing"})


def test_columns_of_parquet_that_have_other_types_are_read_as_what_they_hold(tmp_path):
    columns = {
        "prompt": pyarrow.array(["a", "a", "b"]).dictionary_encode(),
        "rewards": [{"accuracy": 1.0}, {"accuracy": 0.0}, None],
        "messages": [[{"role": "user", "content": [{"type": "text", "text": "Find x."}, {"type": "image"}]}]] * 3,
        "when": pyarrow.array([2**30] * 3, pyarrow.int32()).cast(pyarrow.date32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "log")
    log = read(tmp_path / "log", keys={"reward": "rewards.accuracy"}, format="plain")
    assert str(groups(log.steps[0])) == "[[1.0, 0.0], [nan]]"


def test_a_prompt_is_called_by_the_text_of_its_messages(tmp_path):
    contents = ["Find x.", [{"type": "image"}, {"type": "text", "text": "Find y."}], None, []]
    rows = [{"prompt": [{"role": "user", "content": content}], "reward": 1} for content in contents]
    rows.append({"prompt": {"b": 1, "a": 2}, "reward": 1})
    names = read(lines(tmp_path / "log", rows)).steps[0].prompts
    assert names == ["Find x.", "Find y.", "", "", '{"a":2,"b":1}']


def test_an_image_of_a_parquet_file_is_part_of_an_id(tmp_path):
    images = [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}, {"bytes": b"a", "path": None}]
    columns = {"prompt": ["Find x."] * 3, "image": images, "reward": [1.0, 0.0, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "log")
    log = read(tmp_path / "log", keys={"prompt": "prompt+image"})
    assert log.steps[0].prompt_index.tolist() == [0, 1, 0]


def test_keys_reach_into_objects_and_rewards_are_weighted_sums(tmp_path):
    rows = [
        {"prompt": 1, "rewards": {"accuracy": 1, "format": 0.5}},
        {"prompt": 1, "rewards": {"accuracy": None, "format": 1}},
        {"prompt": 1, "rewards": {"accuracy": None, "format": None}},
    ]
    file = lines(tmp_path / "log", rows)

    def found(key):
        return str(read(file, keys={"reward": key}).steps[0].rewards.tolist())

    assert found("rewards.accuracy") == "[1.0, nan, nan]"
    assert found("rewards.accuracy*0.75 + rewards.format*0.25") == "[0.875, 0.25, nan]"
    assert found("rewards.accuracy+rewards.format") == "[1.5, 1.0, nan]"
    assert found("rewards.format*-2") == "[-1.0, -2.0, nan]"
    for key in ("rewards.speed", "rewards.accuracy*0.9+rewards.speed", "score*x"):
        with pytest.raises(ValueError, match=re.escape(f"line 1: expected the key {key!r}, got")):
            found(key)
    (tmp_path / "log").write_text('{"prompt": 1, "a+b": 1, "a.b": 0}\n')
    assert found("a+b") == "[1.0]"  # a key that is there is meant
    assert found("a.b") == "[0.0]"


def test_files_are_steps_or_parts_as_the_user_says(tmp_path):
    for k in (9, 10):
        lines(tmp_path / f"run1-step{k}.jsonl", [{"prompt": "a", "reward": float(k)}] * 2)
    log = read(tmp_path, file_per_step=True)
    assert [(step.name, step.rewards.tolist()) for step in log.steps] == [(9, [9, 9]), (10, [10, 10])]
    assert log.findings[0].kind == "scale"
    assert [finding.kind for finding in read(tmp_path).findings] == ["steps", "scale"]
    assert [finding.kind for finding in read(tmp_path, file_per_step=False).findings] == ["scale"]
    lines(tmp_path / "other/step10.jsonl", [{"prompt": "a", "reward": 1.0}])
    names = [step.name for step in read(tmp_path, file_per_step=True).steps]
    assert names == [str(tmp_path / name) for name in ("other/step10.jsonl", "run1-step9.jsonl", "run1-step10.jsonl")]


def test_consecutive_rollouts_of_any_log_are_prompts_where_the_user_says_it(tmp_path):
    file = lines(tmp_path / "log", [{"prompt": "Find x.", "reward": k // 4} for k in range(8)])
    assert groups(read(file, group_size=4).steps[0]) == [[0] * 4, [1] * 4]


def test_a_format_can_be_forced(tmp_path):
    row = {"input": "a", "output": "b", "score": 1.0, "step": 1, "prompt": "p", "reward": 0.0}
    file = lines(tmp_path / "log", [row])
    assert rewards(read(file)) == [[1]]
    assert rewards(read(file, format="plain")) == [[0]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"format": "parquet"}, "format: expected one of areal, durian, easyr1, ms-swift, .*, got 'parquet'"),
        ({"group_size": 1}, "group_size: expected a number of rollouts >= 2, got 1"),
        ({"keys": {"score": "reward"}}, "keys: expected names among prompt, .*, got 'score'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_log([], Options(**options))


# --- categories -------------------------------------------------------------------------------------


def kinds(step):
    """The category of each prompt, by its name."""
    return dict(zip((step.prompts[i] for i in step.prompt_index.tolist()), step.category.tolist(), strict=True))


def test_a_category_is_that_of_a_prompt_whatever_column_it_stands_in(tmp_path):
    rows = [
        {"prompt": f"p{i}", "reward": 1, "step": s, "category": [None, "math", {"a": 1}, "math"][i], "data_source": i}
        for s in range(2)
        for i in range(4)
        for _ in range(2)
    ]
    path = lines(tmp_path / "log.jsonl", rows)
    for step in read(path).steps:
        assert kinds(step) == {"p0": -1, "p1": 0, "p2": 1, "p3": 0}
    assert [kinds(step) for step in read(path, keys={"category": "data_source"}).steps] == [
        {"p0": 0, "p1": 1, "p2": 2, "p3": 3}
    ] * 2
    without = [{name: value for name, value in row.items() if name != "step"} for row in rows]
    cut = read(lines(tmp_path / "cut.jsonl", without), batch_prompts=3).steps
    assert [kinds(step) for step in cut] == [{"p0": -1, "p1": 0, "p2": 1}, {"p3": 0}]
    with pytest.raises(ValueError, match="expected the key 'kind'"):
        read(path, keys={"category": "kind"})


def test_a_log_without_categories_has_none(tmp_path):
    rows = [{"prompt": i, "reward": 1, "category": None} for i in range(3)]
    (step,) = read(lines(tmp_path / "log.jsonl", rows)).steps
    assert step.category is None


def test_a_prompt_of_several_categories_is_said_and_the_category_left_out(tmp_path):
    rows = [{"prompt": i // 2, "reward": 1, "category": i % 2 if i < 2 else 0} for i in range(8)]
    log = read(lines(tmp_path / "log.jsonl", rows))
    assert [step.category for step in log.steps] == [None]
    (finding,) = [each for each in log.findings if each.kind == "categories"]
    assert not finding.broken
    assert finding.title == "1 of 4 prompts have several categories: the category is left out"
    assert "--key category=KEY" in finding.text


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 1) | st.sampled_from(["a", "a_1_2"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "key", "a"]), inner, max_size=2),
    max_leaves=4,
)
KNOWN = [
    "step",
    "prompt",
    "completion",
    "advantage",
    "advantages",
    "reward",
    "input",
    "output",
    "gts",
    "score",
    "uid",
    "samples",
    "rollout_id",
    "traces",
    "task",
    "group",
    "rewards",
    "token_ids",
    "token_loss_mask",
    "global_step",
    "responses",
    "scores",
    "task_id",
    "sample_idx",
    "tail_version",
    "example_id",
    "valid",
    "batch",
    "rollout",
    "durian_group",
    "durian_prompt",
    "gen_step",
    "generation_logprobs",
]
FOREIGN = st.lists(st.dictionaries(st.sampled_from(KNOWN), CELLS), min_size=1, max_size=3)


@given(st.sampled_from([None, *FORMATS]), FOREIGN)
def test_rows_that_are_none_of_a_format_are_read_or_refused_with_their_file(tmp_path_factory, format, rows):
    file = tmp_path_factory.mktemp("log") / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        log = read_log([file], Options(format=format))
        assert log.length
        list(log.steps)
    except ValueError as error:
        if str(file) not in f"{error}":
            raise


def test_a_format_that_is_forced_on_another_names_what_it_lacks(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"input": "a", "score": 1, "step": 1}\n')
    with pytest.raises(ValueError, match=r"1\.jsonl, line 1: expected a row of TRL completions, got one wi"):
        read_log([tmp_path / "1.jsonl"], Options(format="trl"))


def test_a_table_of_trl_with_our_columns_says_groups_rewards_and_scores(tmp_path):
    """As a training with our trainer writes it (tests/trl/test_trl_rollout_log.py), evaluations among the rows."""
    message = [{"role": "user", "content": "Find x."}]
    ours = [
        ("a", 0, 1.0, True),
        ("a", 0, 0.0, True),
        ("b", 1, 5.0, False),
        ("b", 1, 1.0, True),
        (None, None, None, None),
    ]
    rows = [
        {
            **{"step": 1, "prompt": message, "completion": "c", "letters": 3.0, "advantage": 0.0},
            **{"durian_prompt": prompt, "durian_group": group, "durian_reward": reward, "durian_valid": valid},
            **{"durian_visual_entropy": group, "durian_confidence": reward, "durian_category": "k"},
        }
        for prompt, group, reward, valid in ours
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "completions_00001.parquet")
    log = read_log([tmp_path], Options())
    assert log.read_as == (
        "TRL completions: 4 rollouts in 1 step, 2 prompts x 2 rollouts; groups, rewards and scores by the columns "
        "durian_*; evaluations left out"
    )
    (step,) = log.steps
    assert step.prompt_index.tolist() == [0, 0, 1, 1]
    assert step.prompts == ["Find x."] * 2
    assert step.rewards.nan_to_num(-1).tolist() == [1, 0, -1, 1]
    assert step.visual_entropy.tolist() == [0, 0, 1, 1]
    assert step.confidence.tolist() == [1, 0, 5, 1]
    assert step.category.tolist() == [0] * 4
