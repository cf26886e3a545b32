"""Options are read as they are meant; an OpenRLHF that does not fit is refused by name, and never half changed."""

import copy
import importlib.metadata
import inspect
import json
import re
from pathlib import Path

import pytest
import released
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray import launcher

from durian_adv._src.options import OPTIONS
from durian_adv.adapters.openrlhf import hook as openrlhf
from durian_adv.adapters.openrlhf import maker, settings
from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker

ROOT = Path(__file__).resolve().parents[2]
PLAIN = '{"weights": [1, 0, 0]}'
INSTALLED = importlib.metadata.version("openrlhf")
VERSIONS = f"OpenRLHF {re.escape(INSTALLED)} does not fit .* tested with {re.escape(settings.TESTED)}: "


def test_options_come_from_a_json_object_or_from_a_file_with_one(tmp_path):
    given = {
        "estimator": "difficulty_prior",
        "weights": [0.6, 0.2, 0.2],
        "entropy_quantiles": [0.1, 0.9],
        "num_confidence_buckets": 4,
        "confidence_reduction": "mean",
        "no_signal": "drop",
        "window": 32,
        "eps": 1e-6,
        "correction": 0,
        "success_threshold": 0.2,
        "weighting": "focal",
    }
    assert given.keys() == OPTIONS.keys()
    text = json.dumps(given | {"entropy_table": "table.json", "features": "projected", "rollout_log": "log"})
    (tmp_path / "durian.json").write_text(text)
    for value in (text, f"  {text}\n", str(tmp_path / "durian.json")):
        found = settings.options_of({"DURIAN_OPTIONS": value, "HOME": "/"})
        assert {n: list(v) if isinstance(v, tuple) else v for n, v in found.options.items()} == given
        assert found[1:] == ("table.json", "projected", "log")
    none = settings.options_of({})
    assert none == settings.options_of({"DURIAN_OPTIONS": ""})
    # OpenRLHF's own eps
    assert none.options == {name: option.default for name, option in OPTIONS.items()} | {"eps": 1e-9}
    assert none[1:] == (None, "patches", None)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"DURIAN_OPTIONS": '{"weigths": [1, 0, 0]}'},
            r"^DURIAN_OPTIONS\.weigths: expected one of estimator, .* rollout_log, got an unk",
        ),
        (
            {"DURIAN_OPTIONS": '{"weights": [1, 0]}'},
            r"^DURIAN_OPTIONS\.weights: expected 3 numbers, or 4 with category, got 2",
        ),
        ({"DURIAN_OPTIONS": '{"features": "pixels"}'}, r"^DURIAN_OPTIONS\.features: expected one of 'patches'"),
        (
            {"DURIAN_OPTIONS": '{"entropy_table": 3}'},
            r"^DURIAN_OPTIONS\.entropy_table: expected the path of a file, got int",
        ),
        ({"DURIAN_OPTIONS": "{"}, "^DURIAN_OPTIONS: expected a JSON object, got Expecting property name"),
        ({"DURIAN_OPTIONS": "none.json"}, r"No such file or directory: 'none\.json'"),
        ({"DURIAN_EPS": "1e-6"}, "^DURIAN_EPS: expected no other variable than DURIAN_OPTIONS"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name_in_every_worker(environment, message, monkeypatch):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        settings.options_of(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        openrlhf.setup()


def test_an_option_in_a_file_that_cannot_be_meant_is_named_with_the_file(tmp_path):
    (tmp_path / "durian.json").write_text('{"eps": -1}')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/durian\.json\.eps: expected a number >= 0, got -1"):
        settings.options_of({"DURIAN_OPTIONS": str(tmp_path / "durian.json")})


@pytest.fixture
def unchanged(monkeypatch):
    """Take back what a test changes in OpenRLHF."""
    for where, name in (
        (ppo_trainer, "RemoteExperienceMaker"),
        (ppo_trainer.BasePPOTrainer, "_compute_rollout_stats"),
        (ppo_trainer.BasePPOTrainer, "train_step"),
        (experience_maker, "compute_reward"),
    ):
        monkeypatch.setattr(where, name, getattr(where, name))
    yield
    monkeypatch.undo()


def test_the_hook_changes_an_openrlhf_that_is_there_and_twice_is_once(unchanged, options):
    options(PLAIN)
    for _ in range(2):
        openrlhf.setup()
        assert ppo_trainer.RemoteExperienceMaker is DurianExperienceMaker
        assert launcher.BaseModelActor.durian_entropy is openrlhf.durian_entropy
    made_by = released.maker(ppo_trainer.RemoteExperienceMaker, released.arguments())
    batches = made_by.compute_advantages_and_returns(released.experiences(made_by, released.rollouts()))

    class Trainer(ppo_trainer.BasePPOTrainer):
        def __init__(self):
            self.experience_maker = made_by

    stats = Trainer()._compute_rollout_stats(batches)
    assert stats["durian/prompts"] == 6
    assert {name for name in stats if not name.startswith("durian/")} == {
        "rollout/reward_mean",
        "rollout/reward_std",
        "rollout/response_length_mean",
        "rollout/truncated_rate",
        "rollout/num_samples",
    }


def test_the_asynchronous_trainer_is_changed_with_the_other():
    from openrlhf.trainer import ppo_trainer_async

    trainer = ppo_trainer_async.TrainingActor.__ray_metadata__.modified_class
    assert issubclass(trainer, ppo_trainer.BasePPOTrainer)
    assert "RemoteExperienceMaker" not in vars(ppo_trainer_async)  # which it makes in the changed module
    for name in ("_compute_rollout_stats", "train_step"):  # in wrappers of Ray's, which hold them by their names
        assert inspect.unwrap(getattr(trainer, name)) is getattr(ppo_trainer.BasePPOTrainer, name)


USED = [(where, name) for where, name, _ in maker._USED]


@pytest.mark.parametrize(("where", "name"), USED, ids=[name for _, name in USED])
def test_an_openrlhf_without_something_that_is_used_is_refused_when_its_trainer_is_made(
    unchanged, options, monkeypatch, where, name
):
    options(PLAIN)
    stats = ppo_trainer.BasePPOTrainer._compute_rollout_stats
    monkeypatch.delattr(where, name)
    openrlhf.setup()
    owner = where.__name__.rpartition(".")[2]
    with pytest.raises(RuntimeError, match=f"{VERSIONS}.*{owner} has no {name}"):
        ppo_trainer.RemoteExperienceMaker(None, None, None, None, None, None, None)
    assert getattr(ppo_trainer.BasePPOTrainer, "_compute_rollout_stats", stats) is stats


@pytest.mark.parametrize(
    ("where", "name", "takes"),
    [
        (experience_maker, "compute_reward", "r"),
        (launcher.RayActorGroup, "async_run_method_batch", "method_name, kwargs"),
    ],
)
def test_an_openrlhf_whose_function_takes_other_arguments_is_refused(
    unchanged, options, monkeypatch, where, name, takes
):
    options(PLAIN)
    monkeypatch.setattr(where, name, lambda other: other)
    openrlhf.setup()
    with pytest.raises(RuntimeError, match=f"{VERSIONS}.*{name} does not take {takes}"):
        ppo_trainer.RemoteExperienceMaker()


def test_an_openrlhf_whose_experience_lacks_a_field_is_refused(unchanged, options, monkeypatch):
    options(PLAIN)
    monkeypatch.delitem(Experience.__dataclass_fields__, "index")
    openrlhf.setup()
    with pytest.raises(RuntimeError, match=f"{VERSIONS}Experience has no index"):
        ppo_trainer.RemoteExperienceMaker()


def test_an_openrlhf_with_other_modules_is_refused(unchanged, options, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'openrlhf.trainer.ppo_utils.experience'")

    options(PLAIN)
    monkeypatch.setattr(maker, "install", missing)
    openrlhf.setup()
    with pytest.raises(RuntimeError, match=f"{VERSIONS}ModuleNotFoundError: No module named 'openrlhf.trainer"):
        ppo_trainer.RemoteExperienceMaker()


def test_an_openrlhf_with_flat_arguments_is_refused(options):
    options(PLAIN)
    args = copy.deepcopy(released.arguments())
    del args.rollout
    with pytest.raises(RuntimeError, match=f"{VERSIONS}no rollout.n_samples_per_prompt among its arguments"):
        released.maker(DurianExperienceMaker, args)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_openrlhf_that_computes_rewards_in_another_way_is_stopped_at_the_first_batch(options, monkeypatch, calls):
    def other(self, experiences):
        for experience in (experiences * 2)[:calls]:
            experience_maker.compute_reward(experience.rewards, 0.0, experience.kl, experience.action_mask)
        return experiences

    options(PLAIN)
    monkeypatch.setattr(released.OWN, "compute_advantages_and_returns", other)
    args = released.arguments(prompts=2, rollout__micro_batch_size=4)
    with pytest.raises(RuntimeError, match=f"{VERSIONS}compute_reward is not called once for each Experience"):
        released.advantages(DurianExperienceMaker, released.rollouts(prompts=2), args)


def test_advantages_of_another_shape_are_stopped(options, monkeypatch):
    def other(self, experiences):
        for experience in experiences:
            experience_maker.compute_reward(experience.rewards[:2], 0.0, experience.kl, experience.action_mask)
        return experiences

    options(PLAIN)
    monkeypatch.setattr(released.OWN, "compute_advantages_and_returns", other)
    with pytest.raises(RuntimeError, match="compute_reward is not called once for each Experience"):
        released.advantages(DurianExperienceMaker, released.rollouts(), released.arguments(rollout__micro_batch_size=4))


@pytest.mark.parametrize("estimator", ["gae", "reinforce", "rloo", "reinforce_baseline", "dr_grpo", "flash_reinforce"])
def test_every_other_estimator_is_refused(options, estimator):
    options(PLAIN)
    args = copy.deepcopy(released.arguments())
    args.algo.advantage.estimator = estimator
    with pytest.raises(ValueError, match=f"^algo.advantage.estimator: expected 'group_norm', .* got '{estimator}'"):
        released.maker(DurianExperienceMaker, args)


def test_what_is_installed_for_the_tests_ends_with_the_newest_tested_and_begins_with_the_oldest():
    pinned = (ROOT / "requirements/openrlhf-nodeps.txt").read_text()
    assert re.search(rf"^openrlhf=={re.escape(settings.NEWEST_TESTED)}$", pinned, re.MULTILINE)
    older = re.search("^OPENRLHF_OLDER := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert older[0] == settings.OLDEST_TESTED


@pytest.mark.skipif(INSTALLED != settings.NEWEST_TESTED, reason="the requirements are those of the newest")
def test_the_requirements_are_those_that_openrlhf_pins():
    wanted = importlib.metadata.requires("openrlhf")
    for line in (ROOT / "requirements/openrlhf.txt").read_text().splitlines():
        if line.startswith(("ray==", "deepspeed==", "transformers==")):
            assert any(line == one.replace("[default]", "") for one in wanted), line
