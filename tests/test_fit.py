"""One fit check for all adapters, and one vocabulary of what a preflight says."""

import types

import pytest

from durian_adv.adapters import _fit, _preflight


class Trainer:
    """Stands for what an adapter uses of a trainer."""

    def step(self, batch, *, lr): ...

    def wrapped(self, *args, **kwargs): ...

    class Inner:
        def deep(self, x): ...


MODULE = types.ModuleType("released")
MODULE.Trainer, MODULE.VERSION, MODULE.plain = Trainer, "1.0", lambda x: x


@pytest.mark.parametrize(
    ("use", "misfits"),
    [
        ((Trainer, "step", ("batch", "lr")), []),
        ((Trainer, "step", None), []),
        ((Trainer, "wrapped", ("anything",)), []),
        ((MODULE, "Trainer.Inner.deep", ("x",)), []),
        ((Trainer, "step", ("batch", "gamma")), ["Trainer.step does not take batch, gamma"]),
        ((Trainer, "gone", None), ["Trainer has no gone"]),
        ((MODULE, "VERSION", None), []),
        ((MODULE, "VERSION", ("x",)), ["released has no VERSION"]),
        ((MODULE, "plain", ("x",)), []),
        ((types.SimpleNamespace(), "gone", None), ["namespace() has no gone"]),
        ((MODULE, "Trainer.Gone.deep", ("x",)), ["released has no Trainer.Gone.deep"]),
    ],
)
def test_what_is_missing_is_said(use, misfits):
    assert list(_fit.misfits([use])) == misfits


def test_all_misfits_are_said_in_order():
    assert list(_fit.misfits([(Trainer, "a", None), (Trainer, "step", ()), (Trainer, "b", ())])) == [
        "Trainer has no a",
        "Trainer has no b",
    ]


def test_a_verdict_is_ok_or_what_it_is_otherwise():
    assert _preflight.verdict(1, "x", "y") == _preflight.Check("ok", "x", "y")
    assert _preflight.verdict([], "x", "y") == _preflight.Check("problem", "x", "y")
    assert _preflight.verdict(False, "x", "y", otherwise="warning").state == "warning"
