"""Settings of the Unsloth tests: Unsloth before everything else, nothing is fetched, one thread, no reports."""

import patched

patched.replace()

import pytest  # noqa: E402  # after Unsloth
import recorded  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def make(tmp_path):
    """``recorded.make`` with a tiny model for Unsloth and an output directory of this test's own."""

    def made(family="qwen25vl", **more):
        data = tiny.dataset(8, 0 if family == "qwen_text" else 1)
        more = {"output_dir": str(tmp_path / "out"), "optim": "adamw_torch", "train_dataset": data, **more}
        return recorded.make(lambda: patched.build(family), **more)

    return made
