"""Some hundred steps of the endurance run, and what its record of 10,000 calls says."""

import csv
import gc

import endurance
import torch

from durian_adv import durian_advantage


def test_hundreds_of_steps_keep_no_tensor_and_compile_one_graph(fresh_dynamo):
    before = endurance.graphs()
    one_graph = torch.compile(durian_advantage, fullgraph=True, dynamic=True, backend="eager")
    rows = endurance.observed(160, 40, one_graph)
    _, tensors, graphs = endurance.growth(rows, warm_up=80)
    assert tensors == 0
    assert graphs == 0
    assert rows[-1][3] - before == 1


def test_a_tensor_that_is_kept_is_seen():
    kept = []

    def leaking(rewards, **scores):
        kept.append(rewards.clone())
        return rewards

    _, tensors, _ = endurance.growth(endurance.observed(20, 5, leaking), warm_up=5)
    assert tensors == 15
    kept.clear()
    gc.collect()


def test_the_record_of_10_000_calls_shows_no_growth():
    with endurance.RECORD.open(newline="") as file:
        rows = [
            tuple(float(row[key]) for key in ("steps", "resident_mb", "live_tensors", "graphs"))
            for row in csv.DictReader(file)
        ]
    assert 6 * rows[-1][0] >= 10_000
    mb, tensors, graphs = endurance.growth(rows, endurance.WARM_UP)
    assert mb <= 8
    assert tensors <= 0
    assert graphs == 0
