"""The configuration is TRL's and more; what does not fit is refused before anything is computed."""

import ast
import copy
import dataclasses
import inspect
import math
import pickle
import re
from pathlib import Path
from typing import ClassVar

import pytest
import recorded
import tiny
import torch
import trl
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer, TrlParser

from durian_adv._src.options import OPTIONS
from durian_adv.adapters.trl import DurianConfig, DurianGRPOConfig, DurianGRPOTrainer, DurianMixin, forward
from durian_adv.adapters.trl.trainer import NEWEST_TESTED, OLDEST_TESTED

CPU = ["--output_dir", "out", "--use_cpu", "True", "--bf16", "False", "--report_to", "none"]
DOC = DurianGRPOConfig.__doc__
SHORT = [
    *("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "max_steps"),
    *("max_completion_length", "learning_rate", "logging_steps", "report_to", "use_cpu", "bf16", "generation_kwargs"),
    *("gradient_checkpointing", "disable_tqdm"),
]
OWN = sorted({f.name for f in dataclasses.fields(DurianGRPOConfig)} - {f.name for f in dataclasses.fields(GRPOConfig)})


def config(**more):
    return DurianGRPOConfig(**{"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none", **more})


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_the_command_line_sets_every_option(parser):
    values = {
        "durian_estimator": "difficulty_prior",
        "durian_weights": [0.6, 0.2, 0.2],
        "durian_entropy_quantiles": [0.1, 0.5, 0.9],
        "durian_num_confidence_buckets": 4,
        "durian_confidence_reduction": "mean",
        "durian_features": "projected",
        "durian_no_signal": "drop",
        "durian_window": 64,
        "durian_eps": 1e-6,
        "durian_correction": 0,
        "durian_success_threshold": 0.3,
        "durian_weighting": "focal",
        "durian_rollout_log": "out/log",
    }
    assert sorted(values) == OWN
    assert {f"durian_{name}" for name in OPTIONS} | {"durian_features", "durian_rollout_log"} == set(OWN)
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    (parsed,) = parser(DurianGRPOConfig).parse_args_into_dataclasses([*CPU, *words])[:1]
    assert {name: getattr(parsed, name) for name in values} == values
    defaults = parser(DurianGRPOConfig).parse_args_into_dataclasses(CPU)[0]
    for made in (defaults, config()):
        for name, option in OPTIONS.items():
            value = getattr(made, f"durian_{name}")
            expected = {"eps": 1e-4}.get(name, option.default)
            assert value == (list(expected) if isinstance(expected, tuple) else expected), name
        assert made.durian_features == "patches"
        assert made.durian_rollout_log is None
    assert defaults.durian_weights is not config().durian_weights  # nothing is shared


def test_the_documented_parameters_are_those_of_the_table_of_options():
    documented = dict(re.findall(r"^ {8}(durian_\w+) \(`.*`, \*optional\*, defaults to `(.*)`\):$", DOC, re.MULTILINE))
    table = {f"durian_{name}": option for name, option in OPTIONS.items()}
    assert list(documented) == [*table, "durian_features"]
    for name, option in table.items():
        default = {"durian_eps": 1e-4}.get(name, option.default)
        written = ast.literal_eval(documented[name])
        assert written == (list(default) if isinstance(default, tuple) else default), name
        text = re.split(r"^ {8}durian_", DOC.partition(f"        {name} (")[2], maxsplit=1, flags=re.MULTILINE)[0]
        for choice in option.choices or ():
            assert f'"{choice}"' in text or isinstance(choice, int), (name, choice)


def test_a_configuration_keeps_the_constructor_of_the_one_it_extends():
    """Unsloth's configuration has other defaults than TRL's, in its constructor, and options that are no fields."""

    class Theirs(GRPOConfig):
        def __init__(self, output_dir=None, learning_rate=5e-5, their_option=3, **kwargs):
            self.their_option = their_option
            super().__init__(output_dir=output_dir, learning_rate=learning_rate, **kwargs)

    class Extended(DurianConfig, Theirs):
        pass

    given = {"use_cpu": True, "bf16": False, "report_to": "none"}
    made = Extended("out", durian_window=7, their_option=4, **given)
    assert (made.learning_rate, made.their_option, made.durian_window) == (5e-5, 4, 7)
    assert made.output_dir == "out"
    assert made.durian_weights == [0.1, 0.2, 0.7]
    with pytest.raises(ValueError, match=r"^durian_window: expected an integer >= 0, got -1"):
        Extended("out", durian_window=-1, **given)


def test_a_configuration_is_copied_and_written_with_its_options():
    made = config(durian_window=7, learning_rate=0.5)
    assert made.to_dict()["durian_window"] == 7
    other = pickle.loads(pickle.dumps(copy.deepcopy(made)))
    assert (other.durian_window, other.durian_eps, other.learning_rate) == (7, 1e-4, 0.5)


def test_every_option_is_explained_and_the_help_can_be_printed(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(DurianGRPOConfig).parse_args(["--help"])
    text = capsys.readouterr().out
    fields = {field.name: field for field in dataclasses.fields(DurianGRPOConfig)}
    for name in OWN:
        assert f"--{name}" in text
        assert len(fields[name].metadata["help"]) > 20


def test_a_choice_that_is_none_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(DurianGRPOConfig).parse_args([*CPU, "--durian_features", "pixels"])
    assert "invalid choice: 'pixels'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durian_weights": [1.0, 2.0]}, "durian_weights: expected 3 numbers, or 4 with category, got 2"),
        ({"durian_weights": [0.0, 0.0, 0.0]}, "durian_weights: expected a positive sum"),
        ({"durian_weights": [1.0, -1.0, 0.0]}, r"durian_weights\[1\]: expected a number >= 0, got -1"),
        ({"durian_entropy_quantiles": [0.75, 0.25]}, "durian_entropy_quantiles: expected increasing levels"),
        ({"durian_num_confidence_buckets": 0}, "durian_num_confidence_buckets: expected at least 1 bucket"),
        ({"durian_eps": -1.0}, "durian_eps: expected a number >= 0"),
        ({"durian_window": -1}, "durian_window: expected an integer >= 0, got -1"),
        ({"durian_confidence_reduction": "max"}, "durian_confidence_reduction: expected one of 'sum', 'mean'"),
        ({"durian_no_signal": "maybe"}, "durian_no_signal: expected one of 'keep', 'drop', got 'maybe'"),
        ({"durian_correction": 2}, "durian_correction: expected 0 or 1, got 2"),
        ({"durian_estimator": "grop"}, "durian_estimator: expected one of 'durian', 'grpo'"),
        ({"durian_weighting": "none"}, "durian_weighting: expected one of 'linear'"),
        ({"durian_estimator": "reinforce_plus_plus", "durian_window": 4}, "durian_window: expected 0 for the estim"),
        ({"durian_features": "pixels"}, "durian_features: expected one of 'patches', 'projected'"),
        ({"durian_success_threshold": float("nan")}, "durian_success_threshold: expected a finite number"),
        ({"scale_rewards": "batch"}, "scale_rewards: expected 'group', as .* got 'batch'"),
        ({"scale_rewards": False}, "scale_rewards: expected 'group', as .* got 'none'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation: expected .* \\(GDPO\\)"),
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


def test_the_oldest_and_the_newest_that_are_tested_are_those_that_the_requirements_and_the_extra_name():
    root = Path(__file__).resolve().parents[2]
    assert re.search(rf"^trl=={re.escape(NEWEST_TESTED)}$", (root / "requirements/trl.txt").read_text(), re.MULTILINE)
    oldest = (root / "requirements/trl-oldest.txt").read_text()
    assert re.search(rf"^trl=={re.escape(OLDEST_TESTED)}$", oldest, re.MULTILINE)
    floor = re.search(r'^    "trl>=([\d.]+)",', (root / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert OLDEST_TESTED.startswith(floor)


@pytest.mark.parametrize(
    "method", ["_calculate_rewards", "_generate_and_score_completions", "_get_per_token_logps_and_entropies"]
)
def test_a_trl_without_an_internal_method_is_refused_at_construction(make, monkeypatch, method):
    monkeypatch.delattr(GRPOTrainer, method)
    tested = f"{re.escape(OLDEST_TESTED)} to {re.escape(NEWEST_TESTED)}"
    versions = f"TRL {re.escape(trl.__version__)} does not fit .* tested with {tested}: .* has no {method}"
    with pytest.raises(RuntimeError, match=versions):
        make("qwen_text", trainer=DurianGRPOTrainer)


def test_a_trl_whose_method_takes_other_arguments_is_refused_at_construction(make, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, model, ids, mask: None)
    with pytest.raises(RuntimeError, match="_get_per_token_logps_and_entropies does not take model, input_ids"):
        make("qwen_text")


def test_a_wrapper_without_the_signature_of_what_it_wraps_is_taken_as_it_is(make, monkeypatch):
    """Unsloth's are ``(self, *args, **kwargs)``; images must reach the forward all the same."""
    forward, seen = GRPOTrainer._get_per_token_logps_and_entropies, []

    def wrapper(self, *args, **kwargs):
        seen.append(kwargs)
        return forward(self, *args, **kwargs)

    plain = make("qwen25vl", max_steps=1)
    plain.train()
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", wrapper)
    wrapped = make("qwen25vl", max_steps=1)
    wrapped.train()
    assert "pixel_values" in seen[0]
    assert torch.equal(wrapped.batches[0]["confidence"], plain.batches[0]["confidence"])


def test_a_forward_that_would_not_see_the_images_is_refused_by_name(make, monkeypatch):
    forward = GRPOTrainer._get_per_token_logps_and_entropies

    def other(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False):
        return forward(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", other)
    with pytest.raises(RuntimeError, match="_get_per_token_logps_and_entropies does not take pixel_values"):
        make("qwen25vl").train()


def test_log_probabilities_of_another_width_are_refused(make, monkeypatch):
    forward = GRPOTrainer._get_per_token_logps_and_entropies

    def wider(self, *args, **kwargs):
        logprobs, *others = forward(self, *args, **kwargs)
        return torch.nn.functional.pad(logprobs, (1, 0)), *others

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", wider)
    with pytest.raises(RuntimeError, match=r"log-probabilities of shape \(16, \d+\) for tokens of \(16, \d+\)"):
        make("qwen_text").train()


def test_a_trl_that_was_replaced_after_our_import_is_told(make, monkeypatch):
    class Replaced(GRPOTrainer):
        pass

    class ReplacedConfig(GRPOConfig):
        pass

    monkeypatch.setattr(trl, "GRPOTrainer", Replaced)
    with pytest.raises(
        RuntimeError, match=r"^trl.GRPOTrainer is .* import the package that replaces it \(unsloth\) first"
    ):
        make("qwen_text")
    monkeypatch.setattr(trl, "GRPOConfig", ReplacedConfig)
    with pytest.raises(
        RuntimeError, match=r"^trl.GRPOConfig is .* import the package that replaces it \(unsloth\) first"
    ):
        config()


def test_the_asynchronous_trainer_is_refused_by_name():
    """It is no GRPOTrainer: a process of its own scores one group at a time, and GRPO is all that can be."""
    asynchronous = pytest.importorskip("trl.experimental.async_grpo")

    class Config(DurianConfig, asynchronous.AsyncGRPOConfig):
        pass

    class Trainer(DurianMixin, asynchronous.AsyncGRPOTrainer):
        pass

    wanted = "expected a subclass of trl.{} behind it, which scores whole batches, got {}$"
    with pytest.raises(TypeError, match="^DurianConfig: " + wanted.format("GRPOConfig", "AsyncGRPOConfig")):
        Config("out", use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="^DurianMixin: " + wanted.format("GRPOTrainer", "AsyncGRPOTrainer")):
        Trainer(model="m", reward_funcs=[], args=config())


@dataclasses.dataclass
class LauncherConfig(GRPOConfig):
    """As axolotl's: options of its own beside those of TRL."""

    context_parallel_size: int | None = None


class LauncherTrainer(recorded.BetweenTRLAndOurs):
    """As axolotl's: a collator beside the arguments of TRL."""

    def __init__(self, *args, data_collator=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_collator = data_collator or self.data_collator


class ExtendedConfig(DurianConfig, LauncherConfig):
    pass


class ExtendedTrainer(DurianMixin, LauncherTrainer):
    def __init__(self, *args, **kwargs):
        kwargs["args"] = ExtendedConfig.extending(kwargs["args"], durian_window=2, durian_num_confidence_buckets=2)
        super().__init__(*args, **kwargs)


def test_a_launcher_that_makes_the_configuration_itself_trains_through_the_mixin(tmp_path):
    """axolotl's call: the model and the rewards by position, a finished configuration of its own by name."""
    model, processor = tiny.build("qwen25vl")
    given = {name: getattr(recorded.options(model, output_dir=str(tmp_path)), name) for name in SHORT}
    theirs = LauncherConfig(**given, save_strategy="steps", save_steps=1, context_parallel_size=1)
    trainer = ExtendedTrainer(
        model, [tiny.letters], args=theirs, train_dataset=tiny.dataset(8), callbacks=[], processing_class=processor
    )
    assert recorded.moved(trainer, trainer.train)
    assert "durian/confidence_mean" in trainer.state.log_history[0]
    saved = torch.load(tmp_path / "checkpoint-1/training_args.bin", weights_only=False)
    assert (type(saved), saved.durian_window, saved.context_parallel_size) == (ExtendedConfig, 2, 1)
    assert (tmp_path / "checkpoint-1/durian_window.pt").exists()
    assert type(theirs) is LauncherConfig
    assert not hasattr(theirs, "durian_window")


def test_what_cannot_extend_a_configuration_is_refused_by_name():
    theirs = LauncherConfig("out", use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(
        ValueError, match=r"^durian_weigths: expected one of durian_estimator, .* got an unknown option$"
    ):
        ExtendedConfig.extending(theirs, durian_weigths=[1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^durian_window: expected an integer >= 0, got -1"):
        ExtendedConfig.extending(theirs, durian_window=-1)
    with pytest.raises(
        TypeError, match=r"^config: expected a configuration that DurianGRPOConfig extends, got Launcher"
    ):
        DurianGRPOConfig.extending(theirs)


class WithMore(recorded.BetweenTRLAndOurs):
    """Adds to a batch what newer trainers do."""

    more: ClassVar = {}

    def _generate_and_score_completions(self, inputs):
        return super()._generate_and_score_completions(inputs) | self.more


class RecordedWithMore(recorded.Recorded, WithMore):
    pass


def test_log_probabilities_of_the_sampler_may_be_none(make, monkeypatch):
    monkeypatch.setattr(WithMore, "more", {"sampling_per_token_logps": None})
    with_none = make("qwen25vl", max_steps=1, trainer=RecordedWithMore)
    with_none.train()
    plain = make("qwen25vl", max_steps=1)
    plain.train()
    assert torch.equal(with_none.batches[0]["confidence"], plain.batches[0]["confidence"])


class WithWrapper(WithMore):
    """Its forward has no names, as those of packages that patch TRL."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class RecordedWithWrapper(recorded.Recorded, WithWrapper):
    pass


@pytest.mark.parametrize("trainer", [RecordedWithMore, RecordedWithWrapper])
@pytest.mark.parametrize("name", ["pixel_values_videos", "video_grid_thw", *recorded.INPUTS_OF_OTHERS])
def test_an_input_that_the_forward_does_not_know_is_refused_by_name(make, monkeypatch, name, trainer):
    monkeypatch.setattr(WithMore, "more", {name: torch.zeros(16)})
    with pytest.raises(RuntimeError, match=f"_get_per_token_logps_and_entropies does not take {name}$"):
        make("qwen_text", max_steps=1, trainer=trainer).train()


def test_all_that_this_trl_puts_into_a_batch_is_taken_by_its_forward_or_known_to_be_no_input():
    names = recorded.names_of_a_batch(GRPOTrainer._generate_and_score_completions)
    assert {"prompt_ids", "advantages", "old_per_token_logps", "tool_mask", "pixel_values", "num_images"} <= names
    more = forward.inputs(dict.fromkeys(names, 1))
    assert {"pixel_values", "num_images"} <= more.keys()
    assert list(forward.refused(GRPOTrainer._get_per_token_logps_and_entropies, more)) == []


def test_text_packed_to_the_left_keeps_its_log_probabilities():
    """Prompts of 3, 1 and 2 tokens: a completion begins in column 2, 0 and 1 of what Unsloth returns. Padding is 0."""
    output = {
        "prompt_ids": torch.tensor([[7, 7, 7], [0, 0, 7], [0, 7, 7]]),
        "completion_ids": torch.tensor([[5, 6], [5, 0], [0, 6]]),  # one ends early, one holds a padding token
        "max_left_pad": torch.full((3, 1), 2),
    }
    nan = math.nan
    returned = torch.tensor([[8, 8, -1, -2], [-3, 8, 8, 8], [8, -4, 8, 8]], dtype=torch.float32)
    right = torch.tensor([[-1, -2], [-3, nan], [nan, -4]])
    torch.testing.assert_close(forward.of_completions(returned, output, 0), right, equal_nan=True)
    for width in (2, 3, 5):
        assert forward.of_completions(torch.zeros(3, width), output, 0) is None


def test_log_probabilities_of_the_old_policy_have_the_width_of_the_completions(make, monkeypatch):
    monkeypatch.setattr(WithMore, "more", {"old_per_token_logps": torch.zeros(16, 3)})
    with pytest.raises(RuntimeError, match=r"log-probabilities of shape \(16, 3\) for tokens of \(16, 8\)"):
        make("qwen_text", max_steps=1, trainer=RecordedWithMore).train()


def test_a_trl_whose_state_is_kept_elsewhere_is_refused_at_construction(make, monkeypatch):
    init = GRPOTrainer.__init__

    def other(self, *args, **kwargs):
        init(self, *args, **kwargs)
        del self._logs["advantages"]

    other.__signature__ = inspect.signature(init)
    monkeypatch.setattr(GRPOTrainer, "__init__", other)
    with pytest.raises(RuntimeError, match="no advantages in the completions table"):
        make("qwen_text")


class Replacing(GRPOTrainer):
    """Puts the advantages of another group into the place of one's own, as a trainer with a replay buffer does."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = torch.cat([output["advantages"][4:8], output["advantages"][4:]])
        return output


class RecordedReplacing(recorded.Recorded, Replacing):
    pass


def test_a_trainer_that_replaces_rows_is_stopped_at_the_first_batch(make):
    """The advantages of the batch that was scored would go to the rows that have come in its place."""
    with pytest.raises(RuntimeError, match="gives rows other advantages than those of the batch it scored"):
        make("qwen_text", trainer=RecordedReplacing).train()


def test_trls_own_trainer_with_a_replay_buffer_is_stopped_when_it_replaces_rows(make, tmp_path):
    own = pytest.importorskip("trl.experimental.grpo_with_replay_buffer")  # newer TRL has it no more

    class Config(DurianConfig, own.GRPOWithReplayBufferConfig):
        pass

    class Trainer(DurianMixin, own.GRPOWithReplayBufferTrainer):
        pass

    model, tokenizer = tiny.build("qwen_text")
    seen = []

    def reward(completions, **_):  # signal in the first batch alone
        seen.append(len(completions))
        return [float(len(seen) == 1 and i % 2) for i in range(len(completions))]

    options = {"output_dir": str(tmp_path), "durian_weights": [1, 0, 0], "replay_buffer_size": 8}
    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=recorded.options(model, Config, **options),
        train_dataset=tiny.dataset(8, 0),
        processing_class=tokenizer,
    )
    with pytest.raises(RuntimeError, match="GRPOWithReplayBufferTrainer gives rows other advantages"):
        trainer.train()
    assert len(seen) == 2


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

    monkeypatch.setattr("durian_adv._src.rows.sequence_confidence", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        make("qwen_text").train()
