"""Difficulty hints: made of the accuracy alone, added to a copy of the prompt."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durian_adv.data.curation import curate
from durian_adv.data.hints import DEFAULT_BANDS, DEFAULT_TEMPLATE, Band, hint, with_hint

accuracies = st.one_of(st.none(), st.just(math.nan), st.floats(0, 1))
ROW = {"prompt": "?", "accuracy": 0.1}
WHOLE = (Band(0.0, 0.5, "hard", "{level} {accuracy:.2f}"), Band(0.5, 1.0, "easy", "{level}!"))


class Only(dict):
    """A row that fails when a column other than these is read."""

    allowed = ("prompt", "accuracy")

    def __getitem__(self, key):
        assert key in self.allowed, f"read {key}"
        return super().__getitem__(key)

    def values(self):
        raise AssertionError("read all")

    items = values


@given(accuracies, st.text(min_size=1), st.text(min_size=1))
def test_no_hint_depends_on_the_answer_or_reads_it(accuracy, answer, other):
    prompt = [{"role": "user", "content": "What is in the image?"}]
    hinted = [
        with_hint(Only(prompt=prompt, accuracy=accuracy, answer=a, solution=a, reward_model={"ground_truth": a}))
        for a in (answer, other)
    ]
    assert hinted[0] == hinted[1]


def test_the_default_hint_does_not_hold_an_answer_that_the_question_does_not():
    for k in range(9):
        for answer in ("Paris", "\\boxed{7}", "B", "3.14"):
            row = {"prompt": "What is it?", "accuracy": k / 8, "answer": answer}
            words = with_hint(row)["prompt"].replace(",", " ").replace(".", " ").split()
            assert answer not in words


@pytest.mark.parametrize(
    "slot", ["answer", "solution", "accuracy.real", "accuracy.__class__", "level[0]", "0", "", "level:{answer}"]
)
def test_a_template_has_no_slot_that_could_tell_anything_else(slot):
    bands = [Band(0.0, 1.0, "hard", "so {" + slot + "}")]
    with pytest.raises(ValueError, match="bands: expected no slots but accuracy and level in a template"):
        with_hint({"prompt": "?", "accuracy": 0.5, "answer": "4"}, bands=bands)


@given(accuracies)
def test_the_original_is_not_touched(accuracy):
    row = {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": "What?"},
        ],
        "accuracy": accuracy,
    }
    before = copy.deepcopy(row)
    hinted = with_hint(row, bands=WHOLE)["prompt"]
    assert row == before
    text = hint(accuracy, WHOLE)
    assert (text is None) == (accuracy is None or math.isnan(accuracy))
    expected = copy.deepcopy(before["prompt"])
    if text is not None:
        expected[1]["content"].append({"type": "text", "text": text})
    assert hinted == expected


@pytest.mark.parametrize("accuracy", [0.1, 1.0, None])
def test_the_new_prompt_shares_nothing_with_the_original(accuracy):
    row = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}]}], "accuracy": accuracy}
    before = copy.deepcopy(row)
    hinted = with_hint(row)["prompt"]
    hinted[0]["content"][0]["text"] = "changed"
    hinted[0]["role"] = "changed"
    assert row == before


def test_an_accuracy_of_numpy_is_a_number():
    assert hint(np.float32(0.25), WHOLE) == hint(np.float64(0.25), WHOLE) == hint(0.25, WHOLE) == "hard 0.25"
    assert hint(np.float32("nan"), WHOLE) is None
    with pytest.raises(TypeError, match="accuracy: expected a number, got bool"):
        hint(True, WHOLE)


def test_the_hint_goes_to_the_end_of_the_last_message_of_the_user():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    hinted = with_hint({"messages": messages, "p": 0.25}, messages="messages", accuracy="p", bands=WHOLE)
    assert hinted == {"messages": [*messages[:2], {"role": "user", "content": "c\n\nhard 0.25"}]}
    assert with_hint({"problem": "2+2?", "accuracy": 0.75}, messages="problem", bands=WHOLE) == {
        "problem": "2+2?\n\neasy!"
    }


def test_bands_are_closed_below_and_open_above_and_the_whole_range_includes_one():
    assert hint(0.5, WHOLE) == "easy!"
    assert hint(math.nextafter(0.5, 0), WHOLE) == "hard 0.50"
    assert hint(1.0, WHOLE) == hint(1, WHOLE) == "easy!"
    assert hint(0.0, WHOLE) == "hard 0.00"
    assert hint(1.0, WHOLE[:1]) is None
    assert hint(0.5, []) is None


def test_the_default_bands_are_those_of_stage_2_and_ask_for_depth_and_a_check():
    for k in range(25):
        found = curate([[1] * k + [0] * (24 - k)], keep="possible", band=(0.0, 1.0))
        assert (hint(k / 24) is not None) == (found.fate[0] == "stage_2")
    assert hint(0.1) == DEFAULT_TEMPLATE.format(level="very hard", accuracy=0.1)
    assert "in depth" in hint(0.1)
    assert "check your answer" in hint(0.1)
    assert len(DEFAULT_BANDS) == 2


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"accuracy": 0.1}, {}, "prompt: expected a column of this name"),
        ({"prompt": "?"}, {}, "accuracy: expected a column of this name"),
        ({"prompt": 3, "accuracy": 0.1}, {}, "prompt: expected a string or a list of chat messages, got int"),
        ({"prompt": ["?"], "accuracy": 0.1}, {}, "prompt: expected a string or a list of chat messages, got list"),
        (
            {"prompt": [{"role": "system", "content": ""}], "accuracy": 0.1},
            {},
            r"prompt: expected a message of the user, got \['system'\]$",
        ),
        (
            {"prompt": [{"role": "user", "content": 3}], "accuracy": 0.1},
            {},
            r"prompt\[0\]: expected content that is a string or a list, got int$",
        ),
        ({"prompt": "?", "accuracy": 1.5}, {}, "accuracy: expected a number from 0 to 1, got 1.5"),
        ({"prompt": "?", "accuracy": "0.1"}, {}, "accuracy: expected a number, got str"),
        (ROW, {"bands": [(0, 1, "a", "b")]}, "bands: expected a sequence of Band, got one of tuple$"),
        (ROW, {"bands": [Band(0.5, 0.5, "", "")]}, "bands: expected 0 <= low < high <= 1, got"),
        (ROW, {"bands": [Band(0.5, 1.5, "", "")]}, r"bands: expected 0 <= low < high <= 1, got \(0.5, 1.5\)"),
        (ROW, {"bands": [Band("0", 0.5, "", "")]}, "^low: expected a number, got str"),
        (ROW, {"bands": [Band(0.0, None, "", "")]}, "^high: expected a number, got NoneType"),
        (
            ROW,
            {"bands": [*WHOLE, Band(0.4, 0.6, "", "")]},
            r"expected bands that do not overlap, got \(0.0, 0.5\) and \(0.4, 0.6\)$",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(row, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        with_hint(row, **options)
