"""The extra ``entropy`` brings what its parts for transformers and datasets import; see ``test_extras.py``."""

from test_extras import EXTRAS, files, imported_alone

PARTS = ["durian_adv/data/scoring/transformers_encoder.py", "durian_adv/data/scoring/datasets_on_disk.py"]


def test_what_the_extra_is_for_can_be_imported_with_it_alone():
    assert imported_alone("durian-adv[entropy]", files(PARTS)) == ""


def test_a_requirement_that_it_forgets_is_missed():
    less = {**EXTRAS, "entropy": [line for line in EXTRAS["entropy"] if not line.startswith("datasets")]}
    error = imported_alone("durian-adv[entropy]", files(PARTS), less)
    assert error == "ModuleNotFoundError: No module named 'datasets'"
