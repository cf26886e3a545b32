"""The extra ``entropy`` brings what its parts for transformers and datasets import; see ``test_extras.py``."""

from test_extras import EXTRAS, ROOT, imported_alone

PARTS = [ROOT / f"durian_adv/data/scoring/{name}.py" for name in ("transformers_encoder", "datasets_on_disk")]


def test_what_the_extra_is_for_can_be_imported_with_it_alone():
    assert imported_alone("durian-adv[entropy]", PARTS) == ""


def test_a_requirement_that_it_forgets_is_missed():
    less = {**EXTRAS, "entropy": [line for line in EXTRAS["entropy"] if not line.startswith("datasets")]}
    error = imported_alone("durian-adv[entropy]", PARTS, less)
    assert error == "ModuleNotFoundError: No module named 'datasets'"
