"""Every public name is documented: a docstring with all it should have, and an entry in the API reference."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import durian_adv

ROOT = Path(__file__).resolve().parent.parent
PUBLIC_MODULES = (
    "durian_adv",
    "durian_adv.baselines",
    "durian_adv.data.curation",
    "durian_adv.diagnostics",
    "durian_adv.data.hints",
    "durian_adv.data.logs.writer",
    "durian_adv.data.scoring",
    "durian_adv.estimator",
    "durian_adv.weighting",
    "durian_adv.window",
    "durian_adv.worth",
)
REFERENCE = (ROOT / "docs/api.md").read_text()


def public_names(module):
    """The functions and classes a module defines (or lists) for others."""
    listed = getattr(module, "__all__", None)
    return sorted(
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and (name in listed if listed else value.__module__ == module.__name__ and not name.startswith("_"))
    )


NEVER_RAISE = ("group_kinds",)  # its argument is made by another function
NAMES = [(m, name) for m in PUBLIC_MODULES for name in public_names(importlib.import_module(m))]
OBJECTS = pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m}.{n}" for m, n in NAMES])


def documented(reference):
    """The objects that the reference takes the docstrings of."""
    return set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", reference, re.MULTILINE))


@OBJECTS
def test_a_public_name_is_in_the_reference(module, name):
    assert f"{module}.{name}" in documented(REFERENCE)


def test_the_reference_has_no_name_that_is_not_public():
    assert documented(REFERENCE) == {f"{m}.{n}" for m, n in NAMES}
    assert documented(REFERENCE.replace(".. autofunction:: durian_adv.durian_advantage\n", "")) != documented(REFERENCE)


@OBJECTS
def test_its_docstring_tells_arguments_result_and_shows_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    text = inspect.getdoc(value)
    if inspect.isclass(value):
        assert text
        return
    if module == "durian_adv.weighting" and not text.startswith("R"):  # their arguments and results are the module's
        assert doctest.DocTestParser().get_examples(text), "no example"
        return
    # an estimator of the family may say that the arguments are those of the one described in full
    referred = re.search(r"(?:Arguments|Rewards)\b.*\bare those of ``(\w+)``", text)
    home = importlib.import_module(module)
    described = (
        inspect.getdoc(getattr(home, referred[1], None) or getattr(durian_adv, referred[1])) if referred else text
    )
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"^ +{parameter}: ", described, re.MULTILINE), parameter
    # a docstring that describes an argument that is not there lags behind the code
    if not referred and "Args:" in text:
        section = re.search(r"^Args:\n((?: +.*\n|\n)+)", text, re.MULTILINE)[1]
        assert set(re.findall(r"^ {4}(\w+): ", section, re.MULTILINE)) == set(inspect.signature(value).parameters)
    assert "Returns:" in text or referred or "Turn " in text
    assert "Raises:" in text or referred or name in NEVER_RAISE
    assert doctest.DocTestParser().get_examples(text), "no example"


def test_every_module_is_public_or_named_as_internal():
    modules = {m.name for m in pkgutil.walk_packages(durian_adv.__path__, "durian_adv.", onerror=lambda name: None)}
    assert set(PUBLIC_MODULES[1:]) | {"durian_adv.compiled", "durian_adv.adapters"} <= modules
    stability = (ROOT / "docs/stability.md").read_text()
    for module in (*PUBLIC_MODULES[1:], "durian_adv.compiled"):
        assert f"`{module}`" in stability, module


def _adapters_names():
    for path in sorted((ROOT / "durian_adv/adapters").glob("*/__init__.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from (f"durian_adv.adapters.{path.parent.name}.{name}" for name in ast.literal_eval(node.value))


@pytest.mark.parametrize("name", list(_adapters_names()))
def test_what_an_adapter_offers_is_in_the_reference(name):
    # read, not imported: trainers are in environments of their own
    assert f"`{name}`" in REFERENCE
