"""What the page for people says is so."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import released
import yaml

from durian_adv._src.options import OPTIONS
from durian_adv.adapters.openrlhf import hook as openrlhf
from durian_adv.adapters.openrlhf import settings
from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/openrlhf.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_runtime_environment_of_the_page_is_read():
    (text,) = blocks("yaml")
    environment = yaml.safe_load(text)
    assert environment["worker_process_setup_hook"] == settings.HOOK
    module, _, function = settings.HOOK.rpartition(".")
    assert getattr(sys.modules[module], function) is openrlhf.setup
    assert settings.options_of(environment["env_vars"]) == settings.options_of({})  # the defaults, spelled out


def test_the_command_of_the_page_is_taken_by_openrlhf_and_has_the_papers_batch():
    (command,) = [block for block in blocks("bash") if "ray job submit" in block]
    words = shlex.split(command.replace("\\\n", " "))
    words = words[words.index("openrlhf.cli.train_ppo_ray") + 1 :]
    args = released._arguments(tuple(words))
    assert args.algo.advantage.estimator == settings.ESTIMATOR
    assert (args.rollout.batch_size, args.rollout.n_samples_per_prompt) == (512, 8)
    assert args.train.batch_size == 128 * 8
    assert args.actor.adam.lr == 1e-6
    assert args.data.max_images_per_prompt == 1


def test_every_option_of_the_page_exists_and_every_option_is_on_the_page():
    table = PAGE.split("## Options")[1].split("## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {*OPTIONS, "entropy_table", "features", "rollout_log"}


def test_the_page_says_where_the_metrics_are_explained(options):
    options('{"num_confidence_buckets": 2}')
    made_by = released.maker(DurianExperienceMaker, released.arguments())
    answers = released.rollouts(extra_logs=lambda i: {"visual_entropy": float(i // 4)})
    made_by.compute_advantages_and_returns(released.experiences(made_by, answers))
    explained = (ROOT / "docs/trl.md").read_text().split("## Metrics")[1].split("## ")[0]
    for name in made_by.durian_metrics:
        assert re.sub(r"_\d+", "_K", name.removeprefix("durian/")) in explained, name


def test_the_costs_of_the_page_are_those_of_the_record(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import openrlhf_cost, records

    measurements, _ = records.read(openrlhf_cost.RECORD)
    assert openrlhf_cost.table(measurements) in PAGE


@pytest.mark.parametrize("name", ["vllm", "flash_attn"])
def test_what_stands_in_for_absent_packages_cannot_be_used(name):
    module = __import__(name)
    assert "absent" in module.__file__
    with pytest.raises(NotImplementedError, match=f"{name} is not installed in this environment"):
        module.absent()
