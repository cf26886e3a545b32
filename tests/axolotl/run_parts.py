"""What a configuration of axolotl names: the trainer of docs/trl.md, a reward, how a row of a data set is read."""

import my_module  # the code of docs/trl.md (conftest.py)
import recorded
import tiny

made = []  # the trainers that axolotl made


class Recorded(my_module.Trainer, recorded.Recorded):
    """The trainer of the page, which keeps its batches, and the configuration that axolotl made."""

    def __init__(self, *args, **kwargs):
        self.theirs = kwargs["args"]
        super().__init__(*args, **kwargs)
        self.start = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        made.append(self)


def letters(prompts, completions, **_):
    return tiny.letters(completions)


def as_it_is(cfg, **_):
    return lambda example, tokenizer=None: example
