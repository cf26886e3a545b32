"""The cheap part of the language of the house: American spelling, "per" for rates, no description by "likewise"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("durian_adv", "docs", "benchmarks", "studies", "tests")
PROSE = sorted(
    path
    for pattern in ("*.md", *(f"{folder}/**/*.{kind}" for folder in FOLDERS for kind in ("py", "md", "jinja", "yaml")))
    for path in ROOT.glob(pattern)
    if path not in (Path(__file__).resolve(), ROOT / "CHANGELOG.md")
)

BRITISH = re.compile(
    r"""\b\w*(
        (?:anal|paral)ys(?:e|ed|es|ing)\b | artefact | behaviour | cancell(?:ed|ing)\b | catalogue | colour | defence
        | favour | (?:\b|_)centr(?:e|ed|es|ing)(?:\b|_) | grey | honour | judgement | labell | licence
        | modell(?:ed|ing) | neighbour | signall | travell
        | (?:categor|character|emphas|general|initial|local|maxim|minim|normal|optim|organ|penal|quant|random|real
            |recogn|regular|serial|special|standard|summar|synchron|token|util|vector|visual)is(?:e|ed|er|es|ing|ation|ations)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# names in the records of the study: a weight of its policies, a form of its questions
OF_RECORDS = re.compile(r'name_colour|"colour"|\| colour \||form colour')

COUNTED = (
    "answers|bytes|completions|entropies|examples|generations|images|kB|patches|prompts|questions|requests|responses|"
    "rewards|rollouts|rows|samplings|seconds|tokens|values"
)
UNIT = (
    "batch|bucket|call|completion|file|folder|image|line|module|prompt|rank|response|rollout|round|row|sample|scene|size|step|"
    "subcommand|token|topic|trainer|word"
)
NO_UNIT = r"(?!-|'s|\s+(?:at|has|have|holds|is|may|must|needs|of|that|was|whose|with|without)\b)"
NO_THING = r"(?!(?:after|as|at|by|for|from|in|is|of|on|or|out|to|with|without)\b)"
# "512 prompts a step", "43 a bucket", "one value a prompt", not "an advantage of a prompt"
RATE = re.compile(
    rf"""\b(?:
        (?:{COUNTED})
        | (?:\d|\d[\d.,]*\d|one|two|few|fewer)(?:\s+{NO_THING}\w+)?
        | an?\s+(?:advantage|entropy|number|reward|row|score|value|weight)
    )\s+an?\s+(?:{UNIT})\b{NO_UNIT}""",
    re.IGNORECASE | re.VERBOSE,
)
LIKEWISE = re.compile(r"\blikewise\b", re.IGNORECASE)


def found(text):
    """The words of a text that the house does not use."""
    plain = re.sub(r"\s*\n\s*(?:#\s*)?", " ", OF_RECORDS.sub("", text))
    return [match[0] for pattern in (BRITISH, RATE, LIKEWISE) for match in pattern.finditer(plain)]


@pytest.mark.parametrize("path", PROSE, ids=[str(path.relative_to(ROOT)) for path in PROSE])
def test_the_prose_of_a_file_is_in_the_language_of_the_house(path):
    assert found(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "normalised advantages",
        "the centre of a group",
        "centred",
        "COLOURS",
        "neighbouring scores",
        "512 prompts a step",
        "512 prompts\n# a step",
        "one value a prompt",
        "one a rollout",
        "170.7 a bucket",
        "1 image a prompt",
        "8 bytes a rollout",
        "An entropy a prompt, computed beforehand",
        "a row a prompt",
        "correction: likewise.",
    ],
)
def test_what_the_house_does_not_say_is_seen(text):
    assert len(found(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "512 prompts per step",
        "how many prompts a bucket needs",
        "one of a prompt's rollouts",
        "a prompt's own std",
        "more than one. A prompt without images",
        "the rewards a prompt has",
        "normalized, centered, size, raise, noise, precise, otherwise",
        "parallelism, analysis, emphasis",
        'FORMS = ("kind", "colour")',
    ],
)
def test_what_the_house_says_is_not_taken_for_it(text):
    assert found(text) == []
