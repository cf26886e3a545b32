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
    """What the column ``script`` says, one number for each completion of a prompt; None for a negative one."""

    def __call__(self, completions, script, **_):
        values = [row[number % len(row)] for number, row in enumerate(script)]
        return [None if value < 0 else value for value in values]


class ByRequest(ORM):
    """A number between 0 and 1 for each rollout, the same for all of its rows."""

    def __call__(self, completions, request_id, **_):
        return [int(name[-4:], 16) % 5 / 4 for name in request_id]


class Asks(MultiTurnScheduler):
    """Asks once more."""

    def step(self, infer_request, response_choice, current_turn):
        infer_request.messages.append({"role": "user", "content": "Sure?"})
        return {"infer_request": infer_request}


class Shows(MultiTurnScheduler):
    """Asks once more, with an image of its own, as one that has tools."""

    def step(self, infer_request, response_choice, current_turn):
        infer_request.messages.append({"role": "user", "content": "<image>Sure?"})
        infer_request.images = [*infer_request.images, *infer_request.images]
        return {"infer_request": infer_request, "rollout_infos": {"images": infer_request.images}}


orms.update(letters=Letters, written=Written, by_request=ByRequest)
multi_turns.update(asks=Asks, shows=Shows)
TrainerFactory.TRAINER_MAPPING["grpo"] = f"{recording.__name__}.Recorded"
