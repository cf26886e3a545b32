"""The command, run as a user runs it."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import durian_adv
from durian_adv._src import options
from durian_adv.cli.main import COMMANDS, main
from durian_adv.diagnostics import durian_metrics


def write(path, rollouts):
    path.write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    return str(path)


def run(capsys, *arguments):
    status = main(arguments)
    return status, *capsys.readouterr()


def test_the_installed_command_answers():
    command = Path(sys.executable).with_name("durian-adv")
    answer = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == f"durian-adv {durian_adv.__version__}"


def test_metrics_of_a_log_are_those_of_the_library_step_by_step(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(2, 12, generator=generator, dtype=torch.float64).round()
    scores = torch.rand(2, 12, generator=generator, dtype=torch.float64)
    log = write(
        tmp_path / "log.jsonl",
        [
            {
                "step": step,
                "prompt": f"p{i % 3}",
                "reward": rewards[step, i].item(),
                "confidence": scores[step, i].item(),
            }
            for i in range(12)
            for step in range(2)
        ],
    )
    status, out, err = run(
        capsys,
        "metrics",
        log,
        "--num-confidence-buckets",
        "2",
        "--weights",
        "1",
        "1",
        "1",
        "--eps",
        "0.1",
        "--correction",
        "0",
    )
    assert status == 0
    first, *others = err.splitlines()
    assert first == "durian-adv metrics: read as plain rollouts: 24 rollouts in 2 steps, 6 prompts x 4 rollouts"
    assert others == [
        f"durian-adv metrics: step {k}: no rollout has visual_entropy, its component is left out" for k in range(2)
    ]
    for step, line in enumerate(out.splitlines()):
        index = torch.arange(12) % 3
        parts = durian_adv.durian_components(
            rewards[step],
            confidence=scores[step],
            prompt_index=index,
            num_confidence_buckets=2,
            weights=(1, 1, 1),
            eps=0.1,
            correction=0,
        )
        assert json.loads(line) == {"step": step} | durian_metrics(parts, rewards[step], prompt_index=index)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--weights", "1", "2", "3"], {"weights": (1.0, 2.0, 3.0)}),
        (["--entropy-quantiles", "0.2", "0.5", "0.9"], {"entropy_quantiles": (0.2, 0.5, 0.9)}),
        (["--num-confidence-buckets", "3"], {"num_confidence_buckets": 3}),
        (["--eps", "0.25"], {"eps": 0.25}),
        (["--correction", "0"], {"correction": 0}),
        (["--correction", "1"], {}),
    ],
)
def test_each_option_reaches_the_library(tmp_path, capsys, words, given):
    generator = torch.Generator().manual_seed(1)
    rewards, entropy, confidence = torch.rand(3, 40, generator=generator, dtype=torch.float64)
    entropy, confidence, index = entropy[:8].repeat(5), confidence[:8].repeat(5), torch.arange(40) % 8
    columns = {"prompt": index, "reward": rewards, "visual_entropy": entropy, "confidence": confidence}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    log = write(tmp_path / "log", [dict(zip(columns, row, strict=True)) for row in rows])
    status, out, err = run(capsys, "metrics", log, *words)
    parts = durian_adv.durian_components(
        rewards, visual_entropy=entropy, confidence=confidence, prompt_index=index, **given
    )
    assert status == 0
    assert err.startswith("durian-adv metrics: read as plain rollouts: 40 rollouts in 1 step, 8 prompts x 5 rollouts\n")
    assert "left out" not in err
    assert json.loads(out) == durian_metrics(parts, rewards, prompt_index=index)


def test_a_null_reward_is_an_invalid_rollout_and_a_null_score_an_unknown_one(tmp_path, capsys):
    rollouts = [
        {"prompt": 1, "reward": 1, "visual_entropy": 2.0},
        {"prompt": 1, "reward": None, "visual_entropy": None},
        {"prompt": 1, "reward": False},
    ]
    status, out, err = run(capsys, "metrics", write(tmp_path / "log", rollouts))
    found = json.loads(out)
    assert status == 0
    assert err.splitlines()[1:] == ["durian-adv metrics: no rollout has confidence, its component is left out"]
    assert "step" not in found
    assert found["durian/rollouts"] == 2
    assert found["durian/visual_entropy_mean"] == 2


def test_the_threshold_and_the_reduction_reach_the_numbers(tmp_path, capsys):
    rewards = {1: (3, 2, 2), 2: (3, 3, 2)}
    rollouts = [
        {"prompt": prompt, "reward": reward, "logprobs": [-1.0 * prompt] * (k + 1)}
        for prompt, row in rewards.items()
        for k, reward in enumerate(row)
    ]
    log = write(tmp_path / "log", rollouts)
    found = json.loads(run(capsys, "metrics", log, "--success-threshold", "0.5")[1])
    assert found["durian/confidence_mean"] == -3  # of -1, -2, -3 and twice that
    assert found["durian/extreme_failure"] == found["durian/extreme_success"] == 0  # all are above 0.5
    words = ("--confidence-reduction", "mean", "--success-threshold", "2.5")
    found = json.loads(run(capsys, "metrics", log, *words)[1])
    assert found["durian/confidence_mean"] == -1.5
    assert found["durian/extreme_failure"] == found["durian/extreme_success"] == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected at least one rollout"),
        ("\n{]\n", "line 2: expected a JSON object"),
        ("[1]\n", "item 1: expected a JSON object"),
        ('{"reward": 1}\n', "line 1: expected the key 'prompt'"),
        ('{"prompt": 1}\n', "line 1: expected the key 'reward'"),
        ('{"prompt": 1, "reward": 1' + "0" * 400 + "}\n", "line 1: reward: expected a number within the range"),
        ('{"prompt": null, "reward": 1}\n', "line 1: prompt: expected a prompt id, got null"),
        ('{"prompt": 1, "reward": 1, "step": [2]}\n', "line 1: step: expected an integer or a string"),
        ('{"prompt": 1, "reward": "1"}\n', "line 1: reward: expected a number or null, got '1'"),
        ('{"prompt": 1, "reward": 1, "confidence": "x"}\n', "line 1: confidence: expected a number or null"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path, capsys, text, complaint):
    (tmp_path / "log").write_text(text)
    status, out, err = run(capsys, "metrics", str(tmp_path / "log"))
    assert (status, out) == (2, "")
    assert complaint in err


def test_a_missing_file_and_a_bad_option_are_errors_without_a_traceback(tmp_path, capsys):
    status, _, err = run(capsys, "metrics", str(tmp_path / "none"))
    assert status == 2
    assert "No such file" in err
    log = write(tmp_path / "log", [{"prompt": 1, "reward": 1}])
    status, _, err = run(capsys, "metrics", log, "--weights", "0", "0", "0")
    assert status == 2
    assert "weights: expected a positive sum" in err


def test_the_parser_says_its_name_its_version_and_what_it_is_for(capsys):
    for arguments, status in ((["--version"], 0), (["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == status
        out, err = capsys.readouterr()
        if arguments == ["--version"]:
            assert out == f"durian-adv {durian_adv.__version__}\n"
        elif arguments:
            assert out.startswith("usage: durian-adv ")
            assert durian_adv.__doc__ in " ".join(out.split())
        else:
            assert "durian-adv: error: the following arguments are required: command" in err


def all_commands():
    commands = argparse.ArgumentParser().add_subparsers()
    for command in COMMANDS:
        command.add(commands)
    return commands


OPTIONS = [(name, a) for name, parser in all_commands().choices.items() for a in parser._actions if a.dest != "help"]


def test_the_help_lists_each_command_and_describes_it_in_sentences(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.partition("{curate,entropy,metrics,preflight,report}\n")[2].splitlines()
    told = {name: text for line in listed for name, _, text in [line.strip().partition(" ")] if text}
    for name, command in all_commands().choices.items():
        assert faults(told[name].strip()) == [], name
        assert command.description.endswith("."), name
        assert all(sentence[0].isupper() for sentence in command.description.split(". ")), name
        assert not shouted(command.description), name


@pytest.mark.parametrize(("name", "action"), OPTIONS, ids=[f"{name} {action.dest}" for name, action in OPTIONS])
def test_the_help_of_an_option_is_a_noun_phrase_with_its_default(name, action):
    assert faults(action.help) == []
    if action.option_strings and not action.required:
        stated = re.search(r"\(default: (.+)\)$", action.help)
        assert stated or action.nargs == 0, "no default"
        if action.default not in (None, argparse.SUPPRESS, []) and action.nargs != 0:
            assert stated[1] == options.shown(action.default)
    # what is to be given stands in capitals
    if action.option_strings and action.nargs != 0 and action.choices is None:
        values = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
        assert all(value is not None and value.isupper() for value in values)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("number of prompts (default: 8)", []),
        ("of the three components", ["of"]),
        ("the data set", ["the"]),
        ("Number of prompts", ["a capital"]),
        ("number of prompts.", ["a full stop"]),
        ("number of PROMPTS", ["PROMPTS"]),
    ],
)
def test_a_help_text_that_is_no_noun_phrase_is_seen(text, found):
    assert faults(text) == found


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        ("metrics log", "--confidence-reduction", "sum mean"),
        ("report log", "--confidence-reduction", "sum mean"),
        ("metrics log", "--correction", "0 1"),
        ("curate none.jsonl 1.jsonl 2.jsonl", "--keep", "estimate possible certain"),
        ("curate none.jsonl 1.jsonl 2.jsonl", "--method", "wilson wilsoncc exact"),
        ("entropy none out.jsonl", "--features", "patches projected"),
        ("entropy none out.jsonl", "--layer", "stride8 stride16 stride32 head"),
        ("entropy none out.jsonl", "--dtype", "float32 bfloat16 float16"),
    ],
)
def test_each_choice_is_taken_and_no_other(capsys, command, option, choices):
    for choice in choices.split():
        assert main([*command.split(), option, choice]) == 2  # as there is no such file
        assert f"durian-adv {command.split()[0]}: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command.split(), option, "2"])
    assert f"argument {option}: invalid choice: " in capsys.readouterr().err


def test_a_key_is_all_that_follows_the_first_equals_sign(tmp_path, capsys):
    log = write(tmp_path / "log", [{"prompt": 1, "a=b": 1}, {"prompt": 1, "a=b": 0}])
    status, out, _ = run(capsys, "metrics", log, "--key", "reward=a=b")
    assert (status, json.loads(out)["durian/rollouts"]) == (0, 2)


ARTICLES, PREPOSITIONS = {"a", "an", "the"}, {"of", "to", "for", "from", "by", "with", "in", "on", "at", "as"}
CLAUSES_AND_VERBS = {"that", "whose", "what", "how", "which", "added", "make", "take", "draw", "bring"}
NOT_FIRST = ARTICLES | PREPOSITIONS | CLAUSES_AND_VERBS


def faults(text):
    """What keeps a help text from being a noun phrase in the style of the house."""
    first = text.split()[0]
    found = [first] if first in NOT_FIRST else []
    found += ["a capital"] if first[0].isupper() and not shouted(first) and first[1:].islower() else []
    found += ["a full stop"] if text.endswith(".") else []
    return found + sorted(shouted(text))


def shouted(text):
    """Capitals that are not names."""
    return set(re.findall("[A-Z]{2,}", text)) - {"CSV", "GPU", "GRPO", "HTML", "JSON", "PNG"}
