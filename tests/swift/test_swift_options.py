"""Options reach a training from the environment, where ms-swift puts them; what does not fit is refused."""

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from swift.arguments import ModelArguments, RLHFArguments
from swift.rlhf_trainers import GRPOConfig, GRPOTrainer
from swift.trainers.trainer_factory import TrainerFactory
from transformers import HfArgumentParser

import durian_adv
from durian_adv import ArgumentError, baselines, durian_advantage, weighting
from durian_adv._src.options import ESTIMATORS, OPTIONS
from durian_adv.adapters import swift as adapter
from durian_adv.adapters.swift.config import DurianGRPOConfig, options_of
from durian_adv.estimator import AdvantageEstimator

VALUES = {
    "estimator": "difficulty_prior",
    "weights": [0.6, 0.2, 0.2],
    "entropy_quantiles": [0.1, 0.5, 0.9],
    "num_confidence_buckets": 4,
    "confidence_reduction": "mean",
    "no_signal": "drop",
    "window": 64,
    "eps": 1e-6,
    "correction": 0,
    "success_threshold": 0.3,
    "weighting": "focal",
    "features": "projected",
    "rollout_log": "out/rollouts",
}
FUNCTIONS = {
    "grpo": durian_adv.grpo_advantage,
    "dr_grpo": baselines.dr_grpo_advantage,
    "batch_std": baselines.batch_std_advantage,
    "rloo": baselines.rloo_advantage,
    "reinforce_plus_plus": baselines.reinforce_plus_plus_advantage,
    "reinforce_plus_plus_baseline": baselines.reinforce_plus_plus_baseline_advantage,
}
CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none", "scale_rewards": "group"}


@pytest.fixture
def config(monkeypatch):
    """``config(DURIAN_WINDOW="3")``: the configuration as ms-swift constructs it, with these variables."""

    def make(more=None, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return DurianGRPOConfig(**CPU | (more or {}))

    return make


def test_variables_set_every_option(config):
    assert set(VALUES) == {*OPTIONS, "features", "rollout_log"}
    # as ms-swift makes them of --model_kwargs
    made = config(**{f"DURIAN_{name.upper()}": str(value) for name, value in VALUES.items()})
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in VALUES.items()}
    assert made.durian_options == {name: expected[name] for name in OPTIONS}
    assert (made.durian_features, made.durian_rollout_log) == ("projected", "out/rollouts")


def test_defaults_are_the_librarys_but_for_eps(config):
    made = config()
    assert made.durian_options == {name: option.default for name, option in OPTIONS.items()} | {"eps": 1e-4}
    assert (made.durian_features, made.durian_rollout_log) == ("patches", None)
    plain = GRPOConfig(**CPU)
    assert {n: v for n, v in made.to_dict().items() if n != "logging_dir"} == {
        n: v for n, v in plain.to_dict().items() if n != "logging_dir"
    }


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"DURIAN_WIEGHTS": "1"},
            "DURIAN_WIEGHTS: expected one of DURIAN_ESTIMATOR, DURIAN_WEIGHTS, .*an unknown variable",
        ),
        ({"DURIAN_WINDOW": "many"}, r"DURIAN_WINDOW: expected a number, or numbers as \[0.3, 0, 0.7\], got 'many'"),
        ({"DURIAN_WEIGHTS": "0.3 0 0.7"}, "DURIAN_WEIGHTS: expected a number, or numbers"),
        ({"DURIAN_WEIGHTS": "[1, 0]"}, "durian_weights: expected 3 numbers, or 4 with category, got 2"),
        ({"DURIAN_WEIGHTS": "[1, 0, -1]"}, r"durian_weights\[2\]"),
        ({"DURIAN_ESTIMATOR": "gdpo"}, "durian_estimator"),
        ({"DURIAN_FEATURES": "pixels"}, "durian_features"),
        ({"DURIAN_ROLLOUT_LOG": ""}, "durian_rollout_log: expected the path of a folder"),
        ({"DURIAN_WINDOW": "3", "DURIAN_ESTIMATOR": "reinforce_plus_plus"}, "durian_window: expected 0"),
    ],
)
def test_what_is_no_option_is_refused_by_name(config, variables, message):
    with pytest.raises((ArgumentError, TypeError), match=message):
        config(**variables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"advantage_estimator": "rloo"},
            "advantage_estimator: expected 'grpo', as durian_estimator chooses the estimator",
        ),
        ({"advantage_estimator": "reinforce_plus_plus"}, "advantage_estimator"),
        ({"scale_rewards": "batch"}, "scale_rewards: expected 'group', as Durian scales rewards by durian_weights"),
        ({"scale_rewards": "gdpo"}, "scale_rewards"),
        ({"scale_rewards": "none", "loss_type": "real"}, "loss_type 'real' sets 'none'"),
    ],
)
def test_ms_swifts_own_ways_to_scale_are_refused(config, options, message):
    with pytest.raises(ArgumentError, match=message):
        config(options)


def test_variables_of_others_are_left_alone():
    assert options_of({"PATH": "x", "durian_window": "3", "MAX_PIXELS": "1"}) == {}


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("durian", "difficulty_prior")])
def test_every_estimator_of_the_library_gives_its_advantages(name):
    """On the rows of a training, which ``test_the_difficulty_prior_trains`` runs as a whole."""
    rewards = torch.rand(4, 4, dtype=torch.float64)
    made = AdvantageEstimator(**options_of({"DURIAN_ESTIMATOR": name}))(rewards.flatten(), torch.arange(16) // 4)
    assert torch.equal(made.view(4, 4), FUNCTIONS[name](rewards))


def test_the_difficulty_prior_trains_with_a_weighting_by_name(train):
    durian = {"durian_estimator": "difficulty_prior", "durian_weighting": "focal", "durian_success_threshold": 0.2}
    run = train(durian=durian, max_steps=2)
    assert run.trainer.moved
    for batch in run.batches:
        right = weighting.reweighted_advantage(
            batch["rewards"].view(4, 4), weight=weighting.focal, success_threshold=0.2
        )
        assert torch.equal(batch["advantages"].view(4, 4), right)


def test_a_fourth_weight_takes_the_column_category(train):
    kinds = ["a", "b", "a", "b", "a", "b", "b", "a"]
    durian = {"durian_weights": [0.25, 0, 0.25, 0.5], "durian_num_confidence_buckets": 2, "durian_no_signal": "drop"}
    run = train(tiny.rows(category=kinds), durian=durian, max_steps=2)
    for batch in run.batches:
        numbers = [int(sample.extra["number"]) for sample in batch["samples"]]
        assert batch["scores"]["category"] == [kinds[number] for number in numbers]
        right = durian_advantage(
            batch["rewards"].view(4, 4),
            confidence=batch["confidence"].view(4, 4),
            category=torch.tensor(["ab".index(kinds[number]) for number in numbers[::4]]),
            weights=(0.25, 0, 0.25, 0.5),
            num_confidence_buckets=2,
            no_signal="drop",
            eps=1e-4,
        )
        assert torch.equal(batch["advantages"].view(4, 4), right)


def test_features_before_and_after_the_connector_differ(train):
    found = []
    for features in ("patches", "projected"):
        (batch,) = train(durian={"durian_features": features, "durian_num_confidence_buckets": 2}).batches
        found.append(batch["scores"]["visual_entropy"])
    assert (found[0] - found[1]).abs().min() > 1e-3


def test_images_without_a_tower_or_a_column_are_refused(train, monkeypatch):
    monkeypatch.setattr("durian_adv.data.scoring.towers._CONNECTORS", ())
    with pytest.raises(ArgumentError, match=r"visual_entropy: expected a number .* for durian_weights\[1\] > 0"):
        train()


def test_errors_of_the_library_are_not_swallowed(train, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("of the library")

    monkeypatch.setattr("durian_adv.estimator.durian_components", broken)
    with pytest.raises(RuntimeError, match="of the library"):
        train()


def test_one_prompt_per_batch_is_refused(train):
    with pytest.raises(ArgumentError, match="prompts: expected several prompts per call, or window > 0"):
        train(gradient_accumulation_steps=1)


def test_sequence_parallelism_is_refused(monkeypatch):
    from durian_adv.adapters.swift.trainer import DurianGRPOTrainer

    made = SimpleNamespace(template=SimpleNamespace(sequence_parallel_size=2))
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self: self.__dict__.update(vars(made)))
    monkeypatch.setattr("durian_adv.adapters.swift.trainer.require_fit", lambda trainer: None)
    with pytest.raises(ArgumentError, match="sequence_parallel_size: expected 1, as samples lie on other ranks beyond"):
        DurianGRPOTrainer()


# --- what is used of ms-swift ------------------------------------------------------------------------


INSTALLED, TESTED = re.escape(version("ms-swift")), re.escape(adapter.TESTED)


def test_the_installed_version_fits():
    adapter.require_fit(GRPOTrainer)


@pytest.mark.parametrize("name", adapter._METHODS)
def test_a_version_without_a_method_is_refused_before_a_model_is_loaded(config, monkeypatch, name):
    where = next(cls for cls in GRPOTrainer.__mro__ if name in vars(cls))
    monkeypatch.setattr(where, name, None)
    with pytest.raises(
        RuntimeError, match=rf"^ms-swift {INSTALLED} does not fit Durian's plugin, .*with {TESTED}: .* no {name}"
    ):
        config()


def test_a_method_with_other_parameters_is_refused(config, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_advantages", lambda self, inputs, rewards_per_func: None)
    with pytest.raises(
        RuntimeError, match="_compute_advantages does not take samples, rewards_per_func, batch_encoded"
    ):
        config()


@pytest.mark.parametrize("name", adapter._ATTRIBUTES)
def test_a_trainer_without_an_attribute_is_refused(name):
    trainer = SimpleNamespace(**{other: 1 for other in adapter._ATTRIBUTES if other != name})
    with pytest.raises(RuntimeError, match=f"no {name}"):
        adapter.require_fit(trainer)


# --- the plugin -----------------------------------------------------------------------------------------

PLUGIN = Path(durian_adv.__file__).parent / "adapters/swift/plugin/__init__.py"


def test_the_command_prints_the_path_of_the_plugin_and_imports_no_trainer():
    code = (
        "import runpy, sys; runpy.run_module('durian_adv.adapters.swift'); print({'swift', 'trl'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [str(PLUGIN), "set()"]


def test_nothing_lies_beside_the_plugin_that_another_module_could_be_taken_for():
    assert [path.name for path in PLUGIN.parent.iterdir() if path.name != "__pycache__"] == ["__init__.py"]


@pytest.fixture
def loaded(monkeypatch):
    """``loaded()`` runs the plugin; what it changes is taken back."""
    for mapping in (TrainerFactory.TRAINER_MAPPING, TrainerFactory.TRAINING_ARGS_MAPPING):
        monkeypatch.setitem(mapping, "grpo", "of ms-swift")
    monkeypatch.setattr(ModelArguments, "__post_init__", ModelArguments.__post_init__)

    def load():
        spec = spec_from_file_location("plugin_under_test", PLUGIN)  # as ms-swift does
        spec.loader.exec_module(module_from_spec(spec))

    return load


def test_the_plugin_changes_nothing_but_grpo(loaded):
    mappings = TrainerFactory.TRAINER_MAPPING, TrainerFactory.TRAINING_ARGS_MAPPING
    before = [dict(mapping) for mapping in mappings]
    loaded()
    for mapping, other, name in zip(
        mappings, before, ("trainer.DurianGRPOTrainer", "config.DurianGRPOConfig"), strict=True
    ):
        assert mapping == other | {"grpo": f"durian_adv.adapters.swift.{name}"}


def test_a_version_that_keeps_its_trainers_elsewhere_is_refused(loaded, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=rf"^ms-swift {INSTALLED} .* {TESTED}: no swift\.rlhf_trainers$"):
        loaded()


@pytest.fixture(scope="module")
def errors():
    """The first error of every way into a training, in a process of its own; its script says what stands in there."""
    script = Path(__file__).with_name("megatron_entries.py")
    made = subprocess.run([sys.executable, script, PLUGIN], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "entry",
    [
        "megatron rlhf",
        "megatron rlhf --use_ray",
        "python -m swift.ray.megatron.pipeline",
        "a script of a user",
        "a Ray worker",
    ],
)
def test_megatron_is_refused_by_name(errors, entry):
    assert errors[entry].startswith("RuntimeError: megatron rlhf, Ray or not, has trainers that Durian does not reach")


@pytest.mark.parametrize("entry", ["megatron rlhf of DPO", "megatron sft", "megatron export", "swift rlhf"])
def test_runs_without_megatrons_grpo_go_on(errors, entry):
    assert errors[entry].startswith("ValueError: Please set --model")  # what ms-swift checks next


# --- the page -------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs/swift.md").read_text()


def test_the_command_of_the_page_has_options_of_ms_swift_and_ours():
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    lines = [line[1:].strip(" \\") for line in diff.splitlines() if not line.startswith("-")]
    words = shlex.split(" ".join(lines).replace("$(python -m durian_adv.adapters.swift)", str(PLUGIN)))
    assert words[:2] == ["swift", "rlhf"]
    parsed, rest = HfArgumentParser([RLHFArguments]).parse_known_args(words[2:])
    assert rest == []
    assert parsed.external_plugins == [str(PLUGIN), "rewards.py"]
    given = {f"{name}".upper(): str(value) for name, value in json.loads(parsed.model_kwargs).items()}
    assert AdvantageEstimator(**options_of(given)).options["window"] == 256


def test_the_options_of_ms_swift_that_the_page_names_exist():
    fields = RLHFArguments.__dataclass_fields__
    section = PAGE.split("Options of ms-swift that meet")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert len(named) == 7
    for name in [
        *named,
        "freeze_vit",
        "resume_only_model",
        "log_completions",
        "loss_type",
        "importance_sampling_level",
    ]:
        assert name in PAGE
        assert name in fields, name
