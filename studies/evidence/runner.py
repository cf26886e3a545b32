"""Runs of a plan, one after the other; killed at any moment, it goes on where it was, with the same numbers."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts
from benchmarks.rlvr.rollout import sample_responses, verify
from studies.evidence import records
from studies.evidence.arms import ARMS
from studies.evidence.conditions import CONDITIONS, Run, runs_of
from studies.evidence.loop import EXAM, make_optimizer, stream, train_step
from studies.evidence.sampling import examine
from studies.evidence.suite import CACHE, Suite, save

EXAM_EVERY = 20  # steps, with few samples; the last one has the condition's number
FEW_SAMPLES = 4
KEEP_EVERY = 10  # steps between two states on disk: what a kill costs at most
EXAM_STEP = 10**6  # its noise is a seed's, the same at every step and for every arm


def run_all(
    runs: Sequence[Run],
    suite: Suite,
    *,
    collected: Mapping[str, records.Record] | None = None,
    folder: Path = records.FOLDER,
    cache: Path = CACHE,
) -> int:
    """Train every run that is neither collected nor in the folder, in order, and return how many there were."""
    done = {**(collected or {}), **records.read_folder(folder)}
    _refuse_other_settings(runs, suite, done)
    missing = [run for run in runs if run.name not in done]
    total = sum(run.condition.steps for run in runs)
    done = total - sum(run.condition.steps for run in missing)
    with tqdm(total=total, initial=done, unit="step", desc="runs", mininterval=1, smoothing=0.05) as progress:
        for run in missing:
            progress.set_postfix_str(f"{len(runs) - len(missing)} records before, now {run.name}")
            record = perform(run, suite, cache=cache, progress=progress)
            records.write(records.path_of(run, folder), record)
            state_path(run, cache).unlink(missing_ok=True)
    return len(missing)


def repeat(name: str, suite: Suite, found: Mapping[str, records.Record]) -> str:
    """Train a recorded run again, keeping nothing, and say where the two differ; nothing, if they do not."""
    runs = {run.name: run for run in runs_of(CONDITIONS.values())}
    if name not in runs:
        raise ValueError(f"run: expected a name such as main/grpo-000, got {name}")
    if name not in found:
        raise ValueError(f"run: {name} has no record yet")
    old = found[name]
    with TemporaryDirectory() as scratch:
        run_all([runs[name]], suite, folder=Path(scratch), cache=Path(scratch))
        new = records.read(records.path_of(runs[name], Path(scratch)))
    apart = [step for step, (one, other) in enumerate(zip(old.steps, new.steps, strict=True)) if one != other]
    if apart:
        return f"{name}: the runs part at step {apart[0]}"
    return "" if old.head["final"] == new.head["final"] else f"{name}: same steps, but another last exam"


def perform(run: Run, suite: Suite, *, cache: Path, progress: "tqdm[Any]") -> records.Record:
    """Train one arm from the warm policy, or from where a killed process left it, and examine it."""
    condition, arm = run.condition, ARMS[run.arm]
    settings = records.settings_of(run, suite.weights_digest)
    policy = suite.policy()
    optimizer = make_optimizer(policy, condition)
    rows: list[dict[str, float]] = []
    began = time.process_time()
    path = state_path(run, cache)
    if path.exists() and (state := torch.load(path, weights_only=False))["settings"] == settings:  # our own file
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        rows = state["rows"]
        began -= state["cpu_seconds"]
        progress.update(len(rows))
    for step in range(len(rows), condition.steps):
        row = train_step(policy, optimizer, suite, condition, arm, run.seed, step)
        last = step + 1 == condition.steps
        few = (step + 1) % EXAM_EVERY == 0 and not last
        row["held_out"] = _exam(policy, suite, run.seed, FEW_SAMPLES).mean().item() if few else ""
        rows.append(row)
        progress.update()
        if (step + 1) % KEEP_EVERY == 0 and not last:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(_state(settings, policy, optimizer, rows, time.process_time() - began), path)
    final = _exam(policy, suite, run.seed, condition.samples)
    rows[-1]["held_out"] = final.mean().item()
    numbers = final_numbers(final, policy, suite)
    spent = round(time.process_time() - began, 1)
    head = settings | {"final": numbers, "cpu_seconds": spent, "origin": records.origin()}
    return records.Record(head, rows)


def state_path(run: Run, cache: Path) -> Path:
    """Return where a run's state is kept while it goes on."""
    return cache / "states" / f"{run.name.replace('/', '-')}.pt"


def final_numbers(shares: Tensor, policy: Policy, suite: Suite) -> dict[str, float]:
    """Return the last exam's accuracy: of all prompts, by form of question, by third of clutter, and greedy."""
    values = shares.double().numpy()
    forms = np.array([question.form for question in suite.exam.questions])
    clutter = np.array([scene.clutter for scene in suite.held_out.scenes])[suite.exam.scenes.numpy()]
    third = np.searchsorted(np.quantile(clutter, (1 / 3, 2 / 3)), clutter)
    found = {"sampled": values.mean(), "greedy": _greedy(policy, suite)}
    found |= {f"form {form}": values[forms == form].mean() for form in sorted(set(forms))}
    found |= {f"clutter {name}": values[third == k].mean() for k, name in enumerate(("low", "medium", "high"))}
    return {name: round(float(value), 6) for name, value in found.items()}


def _exam(policy: Policy, suite: Suite, seed: int, samples: int) -> Tensor:
    return examine(policy, suite.held_out, suite.exam, samples, stream(seed, EXAM_STEP, EXAM))


def _greedy(policy: Policy, suite: Suite) -> float:
    right = 0
    for rows in torch.arange(len(suite.exam.questions)).split(250):
        questions = [suite.exam.questions[row] for row in rows]
        part = Prompts(suite.exam.scenes[rows], questions, suite.exam.question_tokens[rows])
        right += int(verify(part, sample_responses(policy, suite.held_out, part, 1))[1].sum())
    return right / len(suite.exam.questions)


def _state(
    settings: dict[str, Any], policy: Policy, optimizer: torch.optim.Optimizer, rows: Any, cpu_seconds: float
) -> dict[str, Any]:
    return {
        "settings": settings,
        "policy": policy.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rows": rows,
        "cpu_seconds": cpu_seconds,
    }


def _refuse_other_settings(runs: Sequence[Run], suite: Suite, done: Mapping[str, records.Record]) -> None:
    """Refuse to mix records that were made under other settings or from another warm policy."""
    for run in runs:
        if run.name in done:
            head, settings = done[run.name].head, records.settings_of(run, suite.weights_digest)
            different = [name for name, value in settings.items() if head[name] != value]
            if different:
                raise ValueError(
                    f"{run.name}: expected a record of {settings}, got other {', '.join(different)}; move it away"
                )
