"""Errors for arguments: three parts, one message, another name, and the way through a pickle (Ray's)."""

import pickle

import pytest

import durian_adv
from durian_adv import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError])
def test_an_error_carries_its_parts_and_is_their_message(kind):
    error = kind("eps", "a number >= 0", -1)
    assert (error.name, error.expected, error.got) == ("eps", "a number >= 0", -1)
    assert error.args == ("eps", "a number >= 0", -1)
    assert str(error) == "eps: expected a number >= 0, got -1"
    assert error.reason == "expected a number >= 0, got -1"
    assert str(kind("eps", "a number")) == "eps: expected a number"


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError])
def test_an_error_under_another_name_is_of_the_same_kind(kind):
    error = kind("eps", "a number >= 0", -1).renamed("algorithm.durian.eps")
    assert type(error) is kind
    assert str(error) == "algorithm.durian.eps: expected a number >= 0, got -1"


def test_they_are_what_callers_catch():
    assert issubclass(ArgumentError, ValueError)
    assert not issubclass(ArgumentError, TypeError)
    assert issubclass(ArgumentTypeError, ArgumentError)
    assert issubclass(ArgumentTypeError, TypeError)


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError])
def test_an_error_comes_through_a_pickle_and_is_shown_by_its_public_name(kind):
    error = pickle.loads(pickle.dumps(kind("eps", "a number >= 0", -1)))
    assert type(error) is kind
    assert str(error) == "eps: expected a number >= 0, got -1"
    assert kind.__module__ == "durian_adv"
    assert getattr(durian_adv, kind.__name__) is kind
