"""The page of a report, one file without anything to load; and its numbers of each step as a table beside it."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from durian_adv import __version__
from durian_adv.report import verdict, words
from durian_adv.report.advice import CHANCE, GAIN, SPREAD, advise
from durian_adv.report.arms import COMPARED, METHODS
from durian_adv.report.figures import COLORS, Picture
from durian_adv.report.numbers import SCORES, Summary

SHOWN_STEPS = 30  # more are left to the table beside the page


def write(
    summary: Summary, pictures: Mapping[str, Picture], path: Path, *, log: str, options: Mapping[str, Any]
) -> tuple[str, str]:
    """Write the page; return its headline and its recommendation."""
    found, advice = verdict.verdict(summary), advise(summary)
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            advice=advice,
            buckets=sum(map(summary.has, SCORES)),
            broken=any(each.broken for each in summary.grouping),
            called=words.CALLED,
            colors=COLORS,
            compared=_compared(summary),
            kinds=(
                ("extreme_failure", "one rollout correct"),
                ("other", "others with signal"),
                ("extreme_success", "one rollout wrong"),
                ("no_signal", "no signal: all rewards equal"),
            ),
            log=log,
            methods=METHODS if any(map(summary.has, SCORES)) else METHODS[:-1],  # Durian without scores is GRPO
            names=words.told_apart(change.prompt for change in (*summary.raised, *summary.lowered)),
            options=options,
            pictures=pictures,
            scores=SCORES,
            several=max(summary.columns["prompts"]) > 1,
            steps=_steps(summary),
            summary=summary,
            undefined=_undefined(summary),
            verdict=found,
            version=__version__,
            with_signal=summary.compared,
            **{name: getattr(verdict, name) for name in ("NEAR", "FAR", "FEW", "ENOUGH")},
            **{"CHANCE": CHANCE, "GAIN": GAIN, "SPREAD": SPREAD},
        )
    )
    path.write_text(page, encoding="utf-8")
    return found.headline, advice.headline


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("durian_adv.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=words.percent,
        degrees=words.degrees,
        decimals=words.decimals,
        cosine=_cosine,
        short=words.short,
        cut=lambda text: re.search("^…", text, re.MULTILINE) is not None,
        number=_number,
        counted=_counted,
        reward=_reward,
        with_code=_with_code,
    )
    return environment


def write_steps(summary: Summary, path: Path) -> None:
    """Write the numbers of every step as CSV, nothing where there is none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *summary.columns])
        for name, *values in zip(summary.names, *summary.columns.values(), strict=True):
            table.writerow([name, *("" if math.isnan(value) else value for value in values)])


def _compared(summary: Summary) -> list[tuple[str, tuple[str, str, str, str]]]:
    """Return the estimators with angle, largest |A|, share on extreme groups and worth; n/a where inputs lack."""
    rows = []
    for name in COMPARED:
        worth = summary.worth(name)
        told = words.decimals(worth.worth, 3)
        numbers = (
            words.degrees(summary.angle("GRPO", name)),
            words.decimals(summary.most(name)),
            words.percent(summary.extreme(name)) if summary.parted else "n/a",
            told if math.isnan(worth.worth) else f"{told} ± {worth.standard_error:.3f}",
        )
        rows.append((name, numbers))
    return rows


def _undefined(summary: Summary) -> list[str]:
    """Return why an estimator or a number is not defined."""
    reasons = {
        "Durian needs a difficulty score": not any(map(summary.has, SCORES)),
        "std per category needs a category (--key category=COLUMN)": not summary.categories,
        "extreme groups and worth need a threshold between wrong and right": not summary.parted,
        "worth needs two prompts that differ in what is correct": summary.parted
        and math.isnan(summary.worth("GRPO").worth),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _steps(summary: Summary) -> list[tuple[Any, dict[str, float]]]:
    """Return the steps to be shown, evenly from the first to the last."""
    count = len(summary.names)
    shown = min(count, SHOWN_STEPS)
    places = sorted({round(k * (count - 1) / max(1, shown - 1)) for k in range(shown)})
    return [
        (summary.names[place], {name: values[place] for name, values in summary.columns.items()}) for place in places
    ]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:,.0f}"


def _counted(value: float, name: str) -> str:
    return f"{value:,.0f} {name}{'s' * (round(value) != 1)}"


def _cosine(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _reward(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:g}"


def _with_code(text: str) -> markupsafe.Markup:
    """Set the names of options apart, so that no line breaks within one."""
    return markupsafe.Markup(re.sub(r"--[a-z][a-z-]*[a-z]", r"<code>\g<0></code>", str(markupsafe.escape(text))))  # noqa: S704  # escaped first
