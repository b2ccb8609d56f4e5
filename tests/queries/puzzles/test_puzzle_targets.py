"""Every family's targets, worked out again from the question's text alone."""

from __future__ import annotations

import calendar
import datetime
import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.queries.puzzles import FAMILIES
from orca_jax.queries.puzzles.base import NUMBER_WORDS as WORDS
from orca_jax.queries.puzzles.objects import ObjectCounting

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def options_of(question: str) -> dict[str, str]:
    """Option text to label."""
    return {text: label for label, text in re.findall(r"^(\([A-Z]\)) (.*)$", question, re.M)}


def stem_of(question: str) -> str:
    return question.split("\nOptions:")[0]


def web_of_lies(question: str) -> str:
    first, *claims, asked = re.findall(r"[^.?:]+[.?]", question.removeprefix("Question:"))
    honest = {first.split()[0]: "truth" in first}
    for claim in claims:
        speaker, _, subject, *_ = claim.split()
        honest[speaker] = ("truth" in claim) == honest[subject]
    return "Yes" if honest[asked.split()[1]] else "No"


def navigate(question: str) -> str:
    place, heading = 0j, 1j
    sides = {"forward": 1j, "backward": -1j, "left": -1, "right": 1}
    for sentence in stem_of(question).split("? ")[1].split("."):
        words = sentence.split()
        if words[:1] == ["Turn"]:
            heading *= {"left": 1j, "right": -1j, "around": -1}[words[1]]
        elif words[:1] == ["Take"]:
            place += int(words[1]) * (sides[words[3]] if len(words) > 3 else heading)
    return "Yes" if place == 0 else "No"


def boolean_expressions(question: str) -> str:
    return str(eval(question.removesuffix(" is")))


def multistep_arithmetic_two(question: str) -> str:
    return str(eval(question.removesuffix(" =")))


def object_counting(question: str) -> str:
    listed, asked = re.fullmatch(r"I have (.*)\. How many (.*) do I have\?", question).groups()
    singulars = [
        name
        for kind, names in ObjectCounting.KINDS.items()
        if asked in (kind, "objects")
        for name in names.split(", ")
    ]
    nouns = {*singulars, *(ObjectCounting.PLURALS.get(name, f"{name}s") for name in singulars)}
    total = 0
    for entry in re.split(r", (?:and )?", listed):
        number, noun = entry.split(" ", 1)
        total += (WORDS.index(number) if number in WORDS else 1) if noun in nouns else 0
    return str(total)


def tracking_shuffled_objects(question: str) -> str:
    opening, story = stem_of(question).split("\n")
    holders = opening.split(": ")[1].removesuffix(".")
    held = {}
    for entry in re.split(r", (?:and )?", holders):
        person, thing = re.fullmatch(r"(\w+) (?:is dancing with|has a|gets|is playing) (.*)", entry).groups()
        held[person] = thing
    for one, other in re.findall(r"(?:First|Then|Finally), (\w+) and (\w+)", story):
        held[one], held[other] = held[other], held[one]
    asked = re.search(r"At the end of the \w+, (\w+)", story)[1]
    return options_of(question)[held[asked]]


def dyck_languages(question: str) -> str:
    text = question.split("Input: ")[1].replace(" ", "")
    before = None
    while before != text:
        before, text = text, re.sub(r"\(\)|\[\]|\{\}|<>", "", text)
    return " ".join(text[::-1].translate(str.maketrans("([{<", ")]}>")))


def rank_of(words: str, count: int) -> int:
    """The slot that a rank names, counted from the left, the cheapest, the oldest, the first."""
    from_high = bool(re.search(r"right|expensive|newest|last", words))
    distance = next((i for i, ordinal in enumerate(ORDINALS) if ordinal in words), 0)
    return count - 1 - distance if from_high else distance


def logical_deduction(question: str) -> str:
    options = options_of(question)
    listed, clues = stem_of(question).split(": ")[1].split(". ", 1)
    names = [re.sub(r"^(and )?(an? )?", "", entry) for entry in listed.split(", ")]
    before = r"to the left of|less expensive than|older than|finished above"
    after = r"to the right of|more expensive than|newer than|finished below"
    fits = []
    for order in itertools.permutations(names):
        slots = {name: order.index(name) for name in names}

        def holds(clue: str, slots: dict[str, int] = slots) -> bool:
            first, *second = sorted((n for n in names if re.search(rf"\b{n}\b", clue)), key=clue.index)
            if re.search(before, clue):
                return slots[first] < slots[second[0]]
            if re.search(after, clue):
                return slots[first] > slots[second[0]]
            return slots[first] == rank_of(clue, len(names))

        if all(holds(clue) for clue in clues.removesuffix(".").split(". ")):
            fits.append(order)
    assert len(fits) == 1, question
    found = [label for text, label in options.items()
             if re.search(rf"\b{fits[0][rank_of(text, len(names))]}\b", text)]  # fmt: skip
    return found[0]


def reasoning_about_colored_objects(question: str) -> str:
    scene, asked = re.fullmatch(r"(On .*?)\. (.*\?)", stem_of(question)).groups()
    listed = scene.split(": ")[1] if ":" in scene else re.split(r"there (?:is|are) ", scene)[1]
    things = []
    for entry in re.split(r", (?:and )?", listed):
        number, color, name = entry.split(" ")
        things.append((WORDS.index(number) if number in WORDS else 1, color, name.removesuffix("s")
                       if number in WORDS[2:] else name))  # fmt: skip
    return options_of(question)[answer_about(things, asked)]


def answer_about(things: list[tuple[int, str, str]], asked: str) -> str:
    colors, names = [thing[1] for thing in things], [thing[2] for thing in things]
    if match := re.search(r"What color is the (\w+)", asked):
        return colors[names.index(match[1])]
    if match := re.search(r"(left|right)-most", asked):
        return colors[0 if match[1] == "left" else -1]
    if match := re.search(r"directly to the (left|right) of the (\w+)", asked):
        return colors[names.index(match[2]) + (1 if match[1] == "right" else -1)]
    if match := re.search(r"furthest from the (\w+)", asked):
        at = names.index(match[1])
        return colors[max(range(len(names)), key=lambda index: abs(index - at))]
    if match := re.search(r"non-(\w+) \w+ do you see to the (left|right) of the (\w+)", asked):
        at = names.index(match[3])
        side = colors[:at] if match[2] == "left" else colors[at + 1 :]
        return WORDS[sum(color != match[1] for color in side)]
    if match := re.search(r"neither (\w+) nor (\w+)", asked):
        return WORDS[sum(color not in match.groups() for color in colors)]
    match = re.search(r"remove all the (\w+).* how many (\w+)", asked)
    gone, counted = match[1].removesuffix("s"), match[2].removesuffix("s")
    return WORDS[sum(number for number, *words in things if gone not in words and counted in words)]


def temporal_sequences(question: str) -> str:
    def hour(text: str) -> int:
        return int(text[:-2]) % 12 + (12 if text.endswith("pm") else 0)

    stem = stem_of(question)
    woke, closed = (re.search(rf"{words} (\w+)\.", stem)[1] for words in ("woke up at", "closed after"))
    free = set(range(hour(woke), hour(closed)))
    for start, end in re.findall(r"from (\w+) to (\w+)\.", stem):
        free -= set(range(hour(start), hour(end)))
    fitting = [label for window, label in options_of(question).items()
               if set(range(*map(hour, window.split(" to ")))) <= free]  # fmt: skip
    assert len(fitting) == 1, question
    return fitting[0]


def date_understanding(question: str) -> str:
    stem = stem_of(question)
    text = re.search(r"\d\d/\d\d/\d{4}|[A-Z][a-z]{2} \d+, \d{4}", stem)[0]
    form = "%d/%m/%Y" if "In the UK" in stem else "%m/%d/%Y" if "/" in text else "%b %d, %Y"
    today = datetime.datetime.strptime(text, form)
    offsets = {
        "Tomorrow is": -1,
        "Yesterday was": 1,
        "meeting": -1,
        "concert": 1,
        "deadline": -2,
        "parcel": 5,
    }
    today += datetime.timedelta(sum(days for words, days in offsets.items() if words in stem))
    if years := re.search(r"(\d)-year anniversary", stem):
        today = today.replace(year=today.year + int(years[1]))
    asked = re.search(r"What is the date (.*) in MM", stem)[1]
    days = {"tomorrow": 1, "yesterday": -1, "24 hours later": 1, "one week from today": 7,
            "one week ago from today": -7, "10 days ago": -10}.get(asked)  # fmt: skip
    if days is not None:
        return options_of(question)[f"{today + datetime.timedelta(days):%m/%d/%Y}"]
    length = calendar.monthrange(today.year - (today.month == 1), (today.month - 2) % 12 + 1)[1]
    wanted = today - datetime.timedelta(length) if "month" in asked else today.replace(year=today.year - 1)
    return options_of(question)[f"{wanted:%m/%d/%Y}"]


def tracking(question: str) -> str:
    start, swaps = question.split("\n")
    names = iter(start.split())
    held = dict(zip(names, names))
    *swaps, _, asked = swaps.split()
    for one, other in zip(swaps[::2], swaps[1::2]):
        held[one], held[other] = held[other], held[one]
    return held[asked]


def pointer_chasing(question: str) -> str:
    listed, _, asked = question.partition(" ? ")
    nodes = iter(listed.split())
    to, (node, hops) = dict(zip(nodes, nodes)), asked.split()
    for _ in range(WORDS.index(hops)):
        node = to[node]
    return node


def nested_booleans(question: str) -> str:
    values, formula = question.split("\n")
    names = iter(values.split())
    return str(
        eval(formula.removesuffix(" ?").replace("xor", "!="), {n: v == "True" for n, v in zip(names, names)})
    )


SOLVERS = {solver.__name__: solver for solver in (
    web_of_lies, navigate, boolean_expressions, multistep_arithmetic_two, object_counting,
    tracking_shuffled_objects, dyck_languages, logical_deduction, reasoning_about_colored_objects,
    temporal_sequences, date_understanding, tracking, pointer_chasing, nested_booleans)}  # fmt: skip


def test_every_family_is_solved_here():
    assert set(SOLVERS) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
@given(seed=st.integers(0, 2**32), pick=st.integers(0, 1000))
def test_targets_agree_with_an_independent_solution(name, seed, pick):
    family = FAMILIES[name]
    small = [level for level in family.difficulties if (name, level) not in {("logical_deduction", 5),
             ("logical_deduction", 6)}]  # fmt: skip
    puzzle = family.generate(random.Random(seed), small[pick % len(small)])
    assert puzzle.target == SOLVERS[name](puzzle.question)


def test_seven_objects_have_one_order():
    puzzle = FAMILIES["logical_deduction"].generate(random.Random(0), 6)
    assert puzzle.target == logical_deduction(puzzle.question)
