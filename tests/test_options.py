"""Each option stands once: signatures, the command's arguments and adapters' configurations are held against it."""

import argparse
import dataclasses
import inspect
import re
import types

import pytest

import durian_adv
from durian_adv import baselines, diagnostics, window
from durian_adv._src import options
from durian_adv._src.confidence import sequence_confidence
from durian_adv.estimator import AdvantageEstimator

SIGNATURES = [
    durian_adv.durian_advantage,
    durian_adv.durian_components,
    durian_adv.grpo_advantage,
    durian_adv.shared_std_advantage,
    baselines.batch_std_advantage,
    baselines.reinforce_plus_plus_advantage,
    baselines.reinforce_plus_plus_baseline_advantage,
    diagnostics.durian_metrics,
    diagnostics.prompt_outcomes,
    window.windowed_components,
    AdvantageEstimator.__init__,
]


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_a_signature_has_the_defaults_of_the_table(function):
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    shared = {name: default for name, default in defaults.items() if name in options.OPTIONS and name != "window"}
    assert shared == {name: options.OPTIONS[name].default for name in shared}
    assert shared


def test_the_estimator_takes_every_option_by_keyword_only():
    parameters = dict(inspect.signature(AdvantageEstimator.__init__).parameters)
    del parameters["self"]
    assert set(parameters) == set(options.OPTIONS)
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.signature(sequence_confidence).parameters["reduction"].default == "sum"


@pytest.mark.parametrize("option", options.OPTIONS.values(), ids=lambda o: o.name)
def test_a_default_passes_its_own_check_and_an_object_does_not(option):
    value = option.check(option.default)
    assert value == option.default
    with pytest.raises(durian_adv.ArgumentError, match=f"^{option.name}: expected "):
        option.check(object())


@pytest.mark.parametrize("option", options.OPTIONS.values(), ids=lambda o: o.name)
def test_a_help_text_is_a_noun_phrase_without_the_default(option):
    assert not re.match(r"(?i)(a|an|the|of|that|which|to|if|added|used)\b", option.help)
    assert not option.help.endswith(".")
    assert "default" not in option.help


BAD = {
    "estimator": ["ppo", None, 1],
    "weights": [(1, 2), (1, 2, 3, 4, 5), (1, -1, 0), (1, float("nan"), 0), "123", 1, None, (1, "1", 0)],
    "entropy_quantiles": [(0.7, 0.3), (0.0, 0.5), 0, "0.5", None],
    "num_confidence_buckets": [0, -1, 1.5, True, None, 2**40],
    "confidence_reduction": ["max", None],
    "no_signal": ["maybe", True],
    "window": [-1, 1.5, None, True],
    "eps": [-1e-9, float("inf"), "0", None],
    "correction": [2, True, 0.5],
    "success_threshold": [float("nan"), "0.5", None],
    "weighting": ["sharp", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_does_not_fit_is_refused_under_its_full_name(name, value):
    with pytest.raises(durian_adv.ArgumentError, match=rf"^{name}(\[\d\])?: expected ") as plain:
        AdvantageEstimator(**{name: value})
    with pytest.raises(durian_adv.ArgumentError, match=rf"^algorithm\.durian\.{name}(\[\d\])?: expected ") as full:
        options.checked({name: value}, "algorithm.durian.")
    assert full.value.reason == plain.value.reason


def test_every_option_has_values_that_do_not_fit():
    assert set(BAD) == set(options.OPTIONS)


def test_an_unknown_option_is_refused_with_those_there_are():
    with pytest.raises(durian_adv.ArgumentError, match=r"^durian\.weigths: expected one of estimator, .*unknown"):
        options.checked({"weigths": (1, 0, 0)}, "durian.")
    with pytest.raises(durian_adv.ArgumentError, match=r"^x: expected options by their names, got 3"):
        options.require_mapping(3, "x")
    assert options.require_mapping(None, "x") == {}
    assert options.require_mapping(types.MappingProxyType({"eps": 1.0}), "x") == {"eps": 1.0}


def test_the_folder_of_a_run_is_no_option_of_the_estimator():
    assert options.of_run({"eps": 0.5}, "x.") == (options.checked({"eps": 0.5}), None)
    assert options.of_run({"rollout_log": "out/log"}) == (options.checked({}), "out/log")
    for value in ("", 3, True):
        with pytest.raises(durian_adv.ArgumentError, match=r"^x\.rollout_log: expected the path of a folder, or None"):
            options.of_run({"rollout_log": value}, "x.")
    with pytest.raises(durian_adv.ArgumentError, match=r"^x\.weigths: .*weighting, rollout_log, got an unknown"):
        options.of_run({"weigths": 1}, "x.")
    with pytest.raises(durian_adv.ArgumentError, match=r"^rollout_log: expected one of .*weighting, got an unk"):
        options.checked({"rollout_log": "x"})


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_a_window_that_an_estimator_would_not_use_is_refused(name):
    with pytest.raises(durian_adv.ArgumentError, match=rf"^durian\.window: expected 0 for .*'{name}', got 8"):
        options.checked({"estimator": name, "window": 8}, "durian.")


def test_configurations_are_made_of_the_table():
    made = dataclasses.make_dataclass("Config", options.fields("durian_", eps=1e-4))
    config = made()
    assert config.durian_eps == 1e-4
    assert config.durian_weights == [0.1, 0.2, 0.7]
    assert made().durian_weights is not config.durian_weights
    for field in dataclasses.fields(made):
        option = {**options.OPTIONS, "rollout_log": options.ROLLOUT_LOG}[field.name.removeprefix("durian_")]
        assert field.metadata["help"].lower().startswith(option.help.lower())
        assert re.search(r"\(default: [^)]+\)\.$", field.metadata["help"])
        assert field.metadata.get("choices") == (None if option.choices is None else list(option.choices))
    given = {f.name.removeprefix("durian_"): getattr(config, f.name) for f in dataclasses.fields(made)}
    assert options.of_run(given) == (options.checked({"eps": 1e-4}), None)


def test_arguments_of_a_command_are_made_of_the_table():
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, options.OPTIONS)
    assert options.checked(vars(parser.parse_args([]))) == options.checked({})
    words = [
        "--weights",
        "1",
        "0",
        "0",
        "2",
        "--entropy-quantiles",
        "0.5",
        "--no-signal",
        "drop",
        "--correction",
        "0",
        "--window",
        "64",
    ]
    found = options.checked(vars(parser.parse_args(words)))
    assert found["weights"] == (1, 0, 0, 2)
    assert found["entropy_quantiles"] == (0.5,)
    assert (found["no_signal"], found["correction"], found["window"]) == ("drop", 0, 64)
    text = " ".join(parser.format_help().split())
    assert text.count("(default: ") == len(options.OPTIONS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": (1, 2)}, "weights: expected 3 numbers, or 4 with category, got 2"),
        ({"weights": (0, 0, 0)}, "weights: expected a positive sum, got (0.0, 0.0, 0.0)"),
        ({"window": -1}, "window: expected an integer >= 0, got -1"),
        ({"window": 1.5}, "window: expected an integer >= 0, got float"),
        ({"no_signal": "maybe"}, "no_signal: expected one of 'keep', 'drop', got 'maybe'"),
        ({"confidence_reduction": None}, "confidence_reduction: expected one of 'sum', 'mean', got None"),
        (
            {"estimator": "reinforce_plus_plus", "window": 2},
            "window: expected 0 for the estimator 'reinforce_plus_plus', got 2",
        ),
        ({"num_confidence_buckets": 0}, "num_confidence_buckets: expected at least 1 bucket, got 0"),
        ({"entropy_quantiles": (0.5, 0.5)}, "entropy_quantiles: expected increasing levels, got (0.5, 0.5)"),
        ({"success_threshold": "1"}, "success_threshold: expected a number, got str"),
    ],
)
def test_a_message_says_what_was_expected_and_what_came(given, message):
    with pytest.raises(durian_adv.ArgumentError) as raised:
        options.checked(given)
    assert str(raised.value) == message
    with pytest.raises(durian_adv.ArgumentError) as raised:
        options.checked(given, "algorithm.durian.")
    assert str(raised.value) == f"algorithm.durian.{message}"


def test_an_unknown_name_is_answered_with_the_names_that_are_allowed():
    with pytest.raises(durian_adv.ArgumentError) as raised:
        options.checked({"window": 2}, "x.", allowed=("eps", "weights"))
    assert str(raised.value) == "x.window: expected one of eps, weights, got an unknown option"
    assert options.checked({"weights": [1, 0, 0]}, allowed=("eps", "weights")) == {"eps": 1e-6, "weights": (1, 0, 0)}


def test_a_part_of_the_options_is_checked_alone():
    assert options.checked({"window": 2}, allowed=("window",)) == {"window": 2}
    assert [name for name, _, _ in options.fields()] == [*options.OPTIONS, "rollout_log"]


def test_help_and_defaults_are_written_as_on_a_command_line():
    parser = argparse.ArgumentParser(prog="x", usage="x")
    options.add_arguments(parser, ["weights", "num_confidence_buckets", "no_signal", "eps"])
    text = " ".join(parser.format_help().split())
    assert "--weights W [W ...]" in text
    assert "--num-confidence-buckets N number of equally probable confidence buckets (default: 12)" in text
    assert "--no-signal {keep,drop}" in text
    assert "(default: 0.1 0.2 0.7)" in text
    fields = {name: (kind, field) for name, kind, field in options.fields("a_", eps=0.5)}
    kind, field = fields["a_eps"]
    assert (kind, field.default) == (float, 0.5)
    assert field.metadata["help"] == "Constant added to every std, in units of rewards (default: 0.5)."
    kind, field = fields["a_weights"]
    assert kind == list[float]
    assert field.metadata["help"].startswith("Weights of the GRPO, perceptual and reasoning components")
    assert fields["a_correction"][1].metadata["choices"] == [0, 1]
