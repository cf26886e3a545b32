"""A file for ``--external_plugins``, after Durian's: rewards and conversations of the tests, and what records a run."""

import recording
from swift.rewards import ORM, orms
from swift.rollout.multi_turn import MultiTurnScheduler, multi_turns
from swift.trainers.trainer_factory import TrainerFactory


class Letters(ORM):
    """In eighths: how many of the first characters are letters."""

    def __call__(self, completions, **_):
        return [sum(character.isalpha() for character in text[:8]) / 8 for text in completions]


class Written(ORM):
    """What the column ``script`` says, one number, or None, for each completion of a prompt."""

    def __call__(self, completions, script, **_):
        return [row[number % len(row)] for number, row in enumerate(script)]


class Asks(MultiTurnScheduler):
    """Asks once more."""

    def step(self, infer_request, response_choice, current_turn):
        infer_request.messages.append({"role": "user", "content": "Sure?"})
        return {"infer_request": infer_request}


orms.update(letters=Letters, written=Written)
multi_turns["asks"] = Asks
TrainerFactory.TRAINER_MAPPING["grpo"] = f"{recording.__name__}.Recorded"
