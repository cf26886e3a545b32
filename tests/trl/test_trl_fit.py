"""The configuration is TRL's and more; what does not fit is refused before anything is computed."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import recorded
import trl
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer, TrlParser

from durian_adv.adapters.trl import DurianGRPOConfig
from durian_adv.adapters.trl.trainer import NEWEST_TESTED, OLDEST_TESTED

CPU = ["--output_dir", "out", "--use_cpu", "True", "--bf16", "False", "--report_to", "none"]
OWN = sorted({f.name for f in dataclasses.fields(DurianGRPOConfig)} - {f.name for f in dataclasses.fields(GRPOConfig)})


def config(**more):
    return DurianGRPOConfig(**{"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none", **more})


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_the_command_line_sets_every_option(parser):
    values = {
        "durian_weights": [0.6, 0.2, 0.2],
        "durian_entropy_quantiles": [0.1, 0.5, 0.9],
        "durian_num_confidence_buckets": 4,
        "durian_confidence_reduction": "mean",
        "durian_features": "projected",
        "durian_window": 64,
        "durian_eps": 1e-6,
        "durian_success_threshold": 0.3,
    }
    assert sorted(values) == OWN
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    (parsed,) = parser(DurianGRPOConfig).parse_args_into_dataclasses([*CPU, *words])[:1]
    assert {name: getattr(parsed, name) for name in values} == values
    defaults = parser(DurianGRPOConfig).parse_args_into_dataclasses(CPU)[0]
    assert defaults.durian_weights == [0.1, 0.2, 0.7]
    assert defaults.durian_entropy_quantiles == [0.25, 0.75]
    assert (defaults.durian_num_confidence_buckets, defaults.durian_window) == (12, 0)


def test_every_option_is_explained_and_the_help_can_be_printed(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(DurianGRPOConfig).parse_args(["--help"])
    text = capsys.readouterr().out
    fields = {field.name: field for field in dataclasses.fields(DurianGRPOConfig)}
    for name in OWN:
        assert f"--{name}" in text
        assert f"        {name} (" in DurianGRPOConfig.__doc__
        assert len(fields[name].metadata["help"]) > 20


def test_a_choice_that_is_none_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(DurianGRPOConfig).parse_args([*CPU, "--durian_features", "pixels"])
    assert "invalid choice: 'pixels'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durian_weights": [1.0, 2.0]}, "durian_weights: expected 3 numbers, got 2"),
        ({"durian_weights": [0.0, 0.0, 0.0]}, "durian_weights: expected a positive sum"),
        ({"durian_weights": [1.0, -1.0, 0.0]}, r"durian_weights\[1\]: expected a number >= 0, got -1"),
        ({"durian_entropy_quantiles": [0.75, 0.25]}, "durian_entropy_quantiles: expected increasing levels"),
        ({"durian_num_confidence_buckets": 0}, "durian_num_confidence_buckets: expected at least 1 bucket"),
        ({"durian_eps": -1.0}, "durian_eps: expected a number >= 0"),
        ({"durian_window": -1}, "durian_window: expected an integer >= 0, got -1"),
        ({"durian_confidence_reduction": "max"}, "durian_confidence_reduction: expected one of 'sum', 'mean'"),
        ({"durian_features": "pixels"}, "durian_features: expected one of 'patches', 'projected'"),
        ({"durian_success_threshold": float("nan")}, "durian_success_threshold: expected a finite number"),
        ({"scale_rewards": "batch"}, "scale_rewards: expected 'group', got 'batch'"),
        ({"scale_rewards": False}, "scale_rewards: expected 'group', got 'none'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation: expected 'sum_then_norm"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        config(**options)
    with pytest.raises(TypeError, match=r"^durian_weights: expected a sequence of 3 numbers, got float"):
        config(durian_weights=1.0)


def test_an_option_that_does_not_exist_is_refused_by_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'durian_weigths'"):
        config(durian_weigths=[1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \['--durian_weigths'"):
        HfArgumentParser(DurianGRPOConfig).parse_args_into_dataclasses([*CPU, "--durian_weigths", "1", "0", "0"])
    with pytest.raises(ValueError, match="--durian_weigths"):
        TrlParser(DurianGRPOConfig).parse_args_and_config([*CPU, "--durian_weigths", "1", "0", "0"])


def test_this_trl_is_one_of_those_tested_and_the_extra_says_which():
    assert trl.__version__ in (OLDEST_TESTED, NEWEST_TESTED)
    root = Path(__file__).resolve().parents[2]
    assert re.search(rf"^trl=={re.escape(NEWEST_TESTED)}$", (root / "requirements/trl.txt").read_text(), re.MULTILINE)
    oldest = (root / "requirements/trl-oldest.txt").read_text()
    assert re.search(rf"^trl=={re.escape(OLDEST_TESTED)}$", oldest, re.MULTILINE)
    floor = re.search(r'^trl = \["trl>=([\d.]+)"\]', (root / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert OLDEST_TESTED.startswith(floor)


@pytest.mark.parametrize(
    "method", ["_calculate_rewards", "_generate_and_score_completions", "_get_per_token_logps_and_entropies"]
)
def test_a_trl_without_an_internal_method_is_refused_at_construction(make, monkeypatch, method):
    monkeypatch.delattr(GRPOTrainer, method)
    versions = f"TRL {re.escape(trl.__version__)} does not fit .* tested with 1.0.0 to 1.16.0: no method {method}"
    with pytest.raises(RuntimeError, match=versions):
        make("qwen_text")


def test_a_trl_whose_method_takes_other_arguments_is_refused_at_construction(make, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, model, ids, mask: None)
    with pytest.raises(RuntimeError, match="_get_per_token_logps_and_entropies does not take model, input_ids"):
        make("qwen_text")


def test_a_trl_whose_state_is_kept_elsewhere_is_refused_at_construction(make, monkeypatch):
    init = GRPOTrainer.__init__

    def other(self, *args, **kwargs):
        init(self, *args, **kwargs)
        del self._logs["advantages"]

    other.__signature__ = inspect.signature(init)
    monkeypatch.setattr(GRPOTrainer, "__init__", other)
    with pytest.raises(RuntimeError, match="no advantages in the completions table"):
        make("qwen_text")


def test_a_trl_that_scores_in_another_way_is_stopped_at_the_first_batch(make):
    class Elsewhere(recorded.Recorded):
        def _calculate_rewards(self, *args, **kwargs):
            return GRPOTrainer._calculate_rewards(self, *args, **kwargs)

    with pytest.raises(RuntimeError, match="scoring does not call _calculate_rewards"):
        make("qwen_text", trainer=Elsewhere).train()

    class Doubled(recorded.Recorded):
        def _rewards(self, local, group):
            self._rewards_per_func = self._rewards_per_func.repeat(2, 1)
            return super()._rewards(local, group)

    with pytest.raises(RuntimeError, match="32 rewards for 16 completions in groups of 4"):
        make("qwen_text", trainer=Doubled).train()


def test_errors_of_the_library_are_not_swallowed(make, monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("broken")

    monkeypatch.setattr("durian_adv.adapters.trl.trainer.sequence_confidence", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        make("qwen_text").train()
