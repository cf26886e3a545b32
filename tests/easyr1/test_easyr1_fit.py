"""What does not fit is refused by name, before Ray starts or a worker is made."""

import enum
import inspect

import batches
import pytest
import verl
from drivers import config, trainer
from omegaconf import OmegaConf
from packaging.version import Version
from verl.trainer import main as easyr1_main
from verl.trainer import ray_trainer

from durian_adv.adapters.easyr1 import trainer as easyr1
from durian_adv.adapters.easyr1.trainer import (
    NEWEST_TESTED,
    OLDEST_TESTED,
    DurianPPOConfig,
    DurianRayPPOTrainer,
    check_fit,
)

TESTED = f"tested with EasyR1 {OLDEST_TESTED} and {NEWEST_TESTED}"


def test_this_easyr1_is_one_of_those_tested():
    assert Version(OLDEST_TESTED) <= Version(verl.__version__) <= Version(NEWEST_TESTED)
    check_fit()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (easyr1_main, "Runner"),
        (easyr1_main, "PPOConfig"),
        (easyr1_main, "RayPPOTrainer"),
        (ray_trainer, "compute_advantage"),
        (ray_trainer, "AdvantageEstimator"),
        (ray_trainer.RayPPOTrainer, "_make_batch_data"),
        (ray_trainer.RayPPOTrainer, "fit"),
    ],
)
def test_an_easyr1_without_an_internal_is_refused(monkeypatch, where, name):
    monkeypatch.delattr(where, name)
    with pytest.raises(RuntimeError, match=rf"verl {verl.__version__} does not fit .* {TESTED} .*: \S+ has no {name}"):
        easyr1.main()


@pytest.mark.parametrize(
    ("where", "name", "other"),
    [
        (ray_trainer, "compute_advantage", lambda data, config: data),
        (ray_trainer.RayPPOTrainer, "_make_batch_data", lambda self: None),
    ],
)
def test_an_easyr1_whose_internals_take_other_arguments_is_refused(monkeypatch, where, name, other):
    monkeypatch.setattr(where, name, other)
    with pytest.raises(RuntimeError, match=f"{TESTED} .*{name} does not take"):
        trainer(config())


def test_an_easyr1_with_an_estimator_of_that_name_is_refused(monkeypatch):
    names = {member.name: member.value for member in ray_trainer.AdvantageEstimator} | {"DURIAN": "durian"}
    monkeypatch.setattr(ray_trainer, "AdvantageEstimator", enum.Enum("AdvantageEstimator", names, type=str))
    with pytest.raises(RuntimeError, match="it has an estimator 'durian' of its own"):
        check_fit()


def test_canary_the_driver_calls_what_is_put_in_its_place():
    """Names that EasyR1's own functions look up when they run: what is set there takes effect."""
    assert {"PPOConfig", "Runner"} <= set(easyr1_main.main.__code__.co_names)
    run = inspect.unwrap(easyr1_main.Runner.__ray_metadata__.modified_class.run)
    assert {"RayPPOTrainer", "FSDPWorker"} <= set(run.__code__.co_names)
    fit = inspect.getsource(ray_trainer.RayPPOTrainer.fit)
    assert "compute_advantage" in ray_trainer.RayPPOTrainer.fit.__code__.co_names
    for call in ("self._make_batch_data(metrics=metrics)", "self.logger.log(data=metrics, step=self.global_step)"):
        assert call in fit
    assert "adv_estimator=self.config.algorithm.adv_estimator" in fit


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["durian.weigths=[1,0,0]"], r"^durian.weigths: expected one of estimator, .* got an unknown option"),
        (["durian.weights=[1,0]"], r"^durian.weights: expected 3 numbers, or 4 with category, got 2"),
        (["durian.num_confidence_buckets=0"], r"^durian.num_confidence_buckets: expected at least 1 bucket"),
        (["durian.eps=-1"], r"^durian.eps: expected a number >= 0"),
        (["durian.confidence_reduction=max"], r"^durian.confidence_reduction: expected one of 'sum', 'mean'"),
    ],
)
def test_an_option_that_does_not_fit_stops_the_launch_before_ray_starts(monkeypatch, words, message):
    monkeypatch.setattr("sys.argv", ["easyr1", "algorithm.adv_estimator=durian", *words])
    monkeypatch.setattr(easyr1_main.ray, "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=message):
        easyr1.main()


def test_options_come_from_the_file_and_the_command_line():
    given = OmegaConf.merge(
        OmegaConf.structured(DurianPPOConfig()),
        OmegaConf.create({"durian": {"eps": 0.5, "num_confidence_buckets": 3}}),
        OmegaConf.from_cli(["durian.num_confidence_buckets=6", "durian.weights=[0.3,0,0.7]"]),
    )
    read = OmegaConf.to_object(given)
    read.deep_post_init()
    assert read.durian == {"eps": 0.5, "num_confidence_buckets": 6, "weights": [0.3, 0, 0.7]}
    assert read.to_dict()["durian"] == read.durian  # what EasyR1's loggers store


def test_after_the_launch_easyr1_is_as_before(monkeypatch):
    before = easyr1_main.PPOConfig, easyr1_main.RayPPOTrainer
    monkeypatch.setattr("sys.argv", ["easyr1", "durian.eps=-1"])
    with pytest.raises(ValueError, match=r"^durian\.eps"):
        easyr1.main()
    assert (easyr1_main.PPOConfig, easyr1_main.RayPPOTrainer) == before


def test_the_constructor_asks_of_durian_what_it_asks_of_grpo():
    made = trainer(config())
    assert made.config.algorithm.adv_estimator == "durian"
    assert not made.use_critic
    for change, message in (
        ({"n": 1}, "n > 1"),
        ({"rollout_batch_size": 15}, "divisible by actor global batch size"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(config(**change))
    other = config()
    other.algorithm.adv_estimator = "grop"
    with pytest.raises(NotImplementedError, match="Unknown advantage estimator: grop"):
        trainer(other)


@pytest.mark.parametrize("options", [{}, {"num_confidence_buckets": 2}])
def test_options_of_durian_have_no_effect_with_another_estimator_and_that_is_said(caplog, options):
    given = config(durian=options)
    given.algorithm.adv_estimator = "grpo"
    assert trainer(given)._durian is None
    said = [record.getMessage() for record in caplog.records if record.name == easyr1.__name__]
    assert said == (["durian is given and has no effect, as algorithm.adv_estimator is grpo"] if options else [])


def test_a_constructor_that_fails_leaves_the_configuration_as_it_was():
    given = config(n=1)
    with pytest.raises(ValueError, match="n > 1"):
        trainer(given)
    assert given.algorithm.adv_estimator == "durian"


def test_images_without_the_column_are_refused_before_workers_are_made():
    columns = ["problem", "answer", "images"]
    with pytest.raises(ValueError, match="visual_entropy: expected a column of the dataset"):
        trainer(config(), columns)
    trainer(config(), [*columns, "visual_entropy"])
    trainer(config(durian={"weights": [0.3, 0, 0.7]}), columns)
    trainer(config(), ["problem", "answer"])  # text only


def test_errors_of_the_library_are_not_swallowed(monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("broken")

    monkeypatch.setattr("durian_adv._src.rows.sequence_confidence", broken)
    made = trainer(config())
    made._step_metrics, made.global_step = {}, 1  # as a step of fit() sets them
    with pytest.raises(ArithmeticError, match="broken"):
        made._compute_advantage(batches.batch(batches.binary(16, 4)), "durian")


def test_the_trainer_is_easyr1s():
    assert issubclass(DurianRayPPOTrainer, ray_trainer.RayPPOTrainer)
    own = {name for name in vars(DurianRayPPOTrainer) if not name.startswith("__") or name == "__init__"}
    assert own == {"__init__", "_make_batch_data", "fit", "_compute_advantage"}
