"""Two processes, with prompts whose completions lie on both, against one process and against the library."""

import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from rollout_logs import rows_of
from test_trl_training import expected_entropy

from durian_adv import durian_advantage

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What each of two ranks saw."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, HERE / "ranks.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Use more prompts") == 1  # the main process warns
    found = [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for rank in found:
        rank["files"] = [rows_of(out / name) for name in ("log-of-first", "log")]
        rank["aside"] = sorted(path.name for path in (out / "log").glob("*.replaced"))
    return found


def pairs(saved, run):
    return list(zip(*(rank[run] for rank in saved), strict=True))


@pytest.mark.parametrize("run", ["first", "resumed", "generated", "uneven"])
def test_ranks_agree_on_everything_that_is_gathered(saved, run):
    for one, other in pairs(saved, run):
        for name in ("per_func", "entropy", "confidence"):
            assert torch.equal(one[name], other[name]), name
        assert one["metrics"] == other["metrics"]
        assert one["table"] == other["table"]
        assert not torch.equal(one["advantages"], other["advantages"])
    assert saved[0]["logs"] == saved[1]["logs"]


def test_one_rank_writes_the_log_of_the_whole_batch(saved):
    written, resumed = saved[0]["files"]
    assert list(written) == list(resumed) == ["step_00000001.parquet", "step_00000002.parquet"]
    for rows, (one, other) in zip(written.values(), pairs(saved, "first"), strict=True):
        assert [row["advantage"] for row in rows] == torch.cat([one["advantages"], other["advantages"]]).tolist()
        numbers = one["numbers"] + other["numbers"]
        assert [row["group"] for row in rows] == [i // 4 for i in range(12)]
        assert len({(row["prompt"], number) for row, number in zip(rows, numbers, strict=True)}) == 3
        assert [row["confidence"] for row in rows] == one["confidence"].flatten().tolist()
    assert resumed["step_00000001.parquet"] == written["step_00000001.parquet"]
    (one, other) = pairs(saved, "resumed")[0]
    again = [row["advantage"] for row in resumed["step_00000002.parquet"]]
    assert again == torch.cat([one["advantages"], other["advantages"]]).tolist()
    assert saved[0]["aside"] == ["step_00000002.parquet.replaced"]


def test_a_prompt_lies_on_both_ranks(saved):
    for one, other in pairs(saved, "first"):
        assert len(one["numbers"]) == len(other["numbers"]) == 6
        assert one["numbers"][-1] == other["numbers"][0]


def test_what_is_refused_on_one_rank_is_refused_on_all_and_none_waits(saved):
    for rank in saved:
        assert rank["refused"]["images"].startswith("visual_entropy: expected a column of the dataset where a batch's")
        assert "gives rows other advantages than those of the batch it scored" in rank["refused"]["rows"]


def test_an_evaluation_may_be_larger_than_trls_table(saved):
    assert [len(rank["large"]) for rank in saved] == [8, 8]


def test_two_ranks_compute_what_one_does(saved, tmp_path):
    alone = ranks.scripted(str(tmp_path), 1)
    alone.train()
    for batch, (one, other) in zip(alone.batches, pairs(saved, "first"), strict=True):
        single = ranks.scores(batch)
        assert single["numbers"] == one["numbers"] + other["numbers"]
        assert torch.equal(single["per_func"], one["per_func"])
        torch.testing.assert_close(one["entropy"], single["entropy"], atol=1e-4, rtol=0)
        torch.testing.assert_close(one["confidence"], single["confidence"], atol=1e-3, rtol=0)
        both = torch.cat([one["advantages"], other["advantages"]])
        torch.testing.assert_close(both, single["advantages"], atol=1e-6, rtol=0)
        assert both.any()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(saved[0]["weights"][name], value, atol=2e-5, rtol=0)


def test_ranks_call_the_tower_together_if_one_of_them_must(saved):
    # a sharded tower waits for every rank; rank 0 ran it once for the rollouts
    assert saved[0]["calls"] == saved[1]["calls"] + 1
    for one, first in zip(saved[0]["uneven"], saved[0]["first"], strict=False):
        torch.testing.assert_close(one["entropy"], first["entropy"], atol=1e-4, rtol=0)


def test_a_resumed_run_has_the_window_on_every_rank(saved):
    for rank in saved:
        (again,) = rank["resumed"]
        expected = rank["first"][1]
        assert again["numbers"] == expected["numbers"]
        assert torch.equal(again["advantages"], expected["advantages"])


def test_the_hook_and_the_slices_are_right_on_ranks_that_share_a_prompt(saved):
    model, processor = tiny.build("qwen25vl")
    for position, batch in enumerate(pairs(saved, "generated")):
        one, other = batch
        group = 4 if one["training"] else 2
        numbers = one["numbers"] + other["numbers"]
        prompts = numbers[::group]
        assert numbers == [number for number in prompts for _ in range(group)]
        rewards = one["per_func"][:, 0].view(-1, group)
        if position == 0:  # before the first update
            data = tiny.dataset(12)["image"]
            entropy = [expected_entropy(model, processor, [data[number]]) for number in prompts]
            assert one["entropy"].tolist() == pytest.approx(entropy, abs=1e-4)
        texts = [processor.decode(ids, skip_special_tokens=True) for rank in batch for ids in rank["completion_ids"]]
        assert tiny.letters(texts) == rewards.flatten().tolist()
        expected = durian_advantage(
            rewards,
            visual_entropy=one["entropy"],
            confidence=one["confidence"],
            num_confidence_buckets=2,
            entropy_quantiles=(0.5,),
            eps=1e-4,
        )
        both = torch.cat([one["advantages"], other["advantages"]])
        assert torch.equal(both, expected.flatten().float())
    trained, *evaluated = pairs(saved, "generated")
    assert trained[0]["training"]
    assert [len(one["per_func"]) for one, _ in evaluated] == [6, 6]
