"""Date understanding: what is the date some time before or after a day that is described?

Difficulty 1 tells today's date and asks for a near day of the same month; 2 tells the day before or after
and also asks for months and years; 3 describes today by an event some days away, or in British order; 4 by
an anniversary. From 2 on, a month may end in between. The steps write dates as MM/DD/YYYY, add or take away
days, and go over into the next or last month by its length.
"""

from __future__ import annotations

import calendar
import dataclasses
import datetime
import random
from collections.abc import Sequence

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import letter, lettered

NAME = "date_understanding"
OPTIONS = 6
LAST_DAY = 28  # of any month, so that months and years can be taken away from today
COUPLES = ("Jane and John", "Ana and Tom", "Mia and Leo", "Ida and Max")
Date = datetime.date
Days = datetime.timedelta

# context: (text, days from today to the given date)
CONTEXTS = {
    "today": ("Today is {given}.", 0),
    "tomorrow": ("Tomorrow is {given}.", 1),
    "yesterday": ("Yesterday was {given}.", -1),
    "meeting": ("Today's meeting is rescheduled to 11 am tomorrow, {given}.", 1),
    "concert": ("The concert was scheduled to be on {given}, but was delayed by one day to today.", -1),
    "deadline": ("The deadline is {given}, which is 2 days away from now.", 2),
    "parcel": ("A parcel was sent on {given} and took 5 days to arrive today.", -5),
    "british": (
        "In the UK, people usually put the day before the month when formatting the date. "
        "Therefore, today is {given} to them.",
        0,
    ),
    "anniversary": ("{couple} married on {given}. It is their {years}-year anniversary today.", 0),
}
LEVELS = {
    1: ("today",),
    2: ("tomorrow", "yesterday"),
    3: ("meeting", "concert", "deadline", "parcel", "british"),
    4: ("anniversary",),
}
# question: (days, months) from today
NEAR = {
    "tomorrow": (1, 0),
    "yesterday": (-1, 0),
    "24 hours later": (1, 0),
    "one week from today": (7, 0),
    "one week ago from today": (-7, 0),
}
FAR = {"10 days ago": (-10, 0), "a month ago": (0, -1), "one year ago from today": (0, -12), **NEAR}


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """`written_out` writes the given date as in Sep 9, 1909; `years` is the age of a marriage."""

    context: str
    today: Date
    asked: str
    written_out: bool
    years: int
    couple: str
    options: tuple[Date, ...]

    @property
    def given(self) -> Date:
        day = self.today + Days(CONTEXTS[self.context][1])
        return day.replace(year=day.year - self.years)


def draw(rng: random.Random, difficulty: int) -> Instance:
    context = rng.choice(LEVELS[difficulty])
    days = (8, 21) if difficulty == 1 else (1, LAST_DAY)
    today = Date(rng.randint(1905, 2030), rng.randint(1, 12), rng.randint(*days))
    asked = rng.choice(tuple(NEAR if difficulty == 1 else FAR))
    return Instance(
        context=context,
        today=today,
        asked=asked,
        written_out=rng.random() < 0.5,
        years=rng.randint(1, 9) if context == "anniversary" else 0,
        couple=rng.choice(COUPLES),
        options=_draw_options(rng, today, *FAR[asked]),
    )


def _draw_options(rng: random.Random, today: Date, days: int, months: int) -> tuple[Date, ...]:
    """The answer among what common mistakes lead to."""
    answer = _months_later(today + Days(days), months)
    opposite = _months_later(today - Days(days), -months)
    wrong = {opposite, answer + Days(1), answer - Days(1), today, _months_later(today, rng.choice((-1, 1)))}
    wrong |= {_months_later(_early(answer), 12 * rng.randint(1, 40)), answer + Days(rng.randint(30, 300))}
    wrong.discard(answer)
    chosen = [answer, *rng.sample(sorted(wrong), OPTIONS - 1)]
    return tuple(rng.sample(chosen, OPTIONS))


def _early(day: Date) -> Date:
    return day.replace(day=min(day.day, LAST_DAY))


def _months_later(day: Date, months: int) -> Date:
    if months == 0:
        return day
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return day.replace(year=year, month=month + 1)


def pose(instance: Instance) -> Pose:
    context = CONTEXTS[instance.context][0].format(
        given=_given_text(instance), couple=instance.couple, years=instance.years
    )
    stem = f"{context} What is the date {instance.asked} in MM/DD/YYYY?"
    return lettered(NAME, stem, [numeric(option) for option in instance.options])


def numeric(day: Date) -> str:
    """A date as MM/DD/YYYY."""
    return f"{day:%m/%d}/{day.year:04}"


def _given_text(instance: Instance) -> str:
    given = instance.given
    if instance.context == "british":
        return f"{given:%d/%m}/{given.year}"
    return (
        f"{calendar.month_abbr[given.month]} {given.day}, {given.year}"
        if instance.written_out
        else numeric(given)
    )


def solve(instance: Instance, slip: Slip) -> Solution:
    steps, day = _find_today(instance, slip)
    days, months = FAR[instance.asked]
    if days:
        more_steps, day = _days_later(day, days, slip)
    else:
        right = _months_later(_early(day), months)
        day = slip(right, _months_later(_early(day), -months))
        more_steps = [f"{_amount(months, 'month')}: {numeric(day)}."]
    label = letter(_nearest(day, instance.options))
    return Solution((*steps, *more_steps, f"{numeric(day)} is option {label}."), label)


def _find_today(instance: Instance, slip: Slip) -> tuple[list[str], Date]:
    day, offset = instance.given, -CONTEXTS[instance.context][1]
    steps = [f"{_given_text(instance)} is {numeric(day)}."]
    if offset:
        more_steps, day = _days_later(day, offset, slip)
        steps += more_steps
    if instance.years:
        right = day.replace(year=day.year + instance.years)
        day = slip(right, right.replace(year=right.year + 1), right.replace(year=right.year - 1))
        steps.append(f"{_amount(instance.years * 12, 'month')}: {numeric(day)}.")
    return [*steps, f"Today is {numeric(day)}."], day


def _days_later(day: Date, days: int, slip: Slip) -> tuple[list[str], Date]:
    """The date some days after `day`, or before it, and the steps there."""
    right = day.day + days
    total = slip(right, right + 1, right - 1, day.day - days)
    sign = "+" if days > 0 else "-"
    steps = [f"{_amount(days, 'day')}: {day.day} {sign} {abs(days)} = {total}."]
    if total < 1:
        before = day.replace(day=1) - Days(1)
        steps.append(
            f"Month {before:%m} has {before.day} days: {total} + {before.day} = {total + before.day}."
        )
    elif total > (length := calendar.monthrange(day.year, day.month)[1]):
        steps.append(f"Month {day:%m} has {length} days: {total} - {length} = {total - length}.")
    reached = day.replace(day=1) + Days(total - 1)
    return [*steps, f"That is {numeric(reached)}."], reached


def _amount(number: int, unit: str) -> str:
    if unit == "month" and number % 12 == 0:
        number, unit = number // 12, "year"
    plural = "" if abs(number) == 1 else "s"
    return f"{abs(number)} {unit}{plural} {'later' if number > 0 else 'before'}"


def _nearest(day: Date, options: Sequence[Date]) -> int:
    """The option that is the day, or the nearest to a mistaken one."""
    return min(range(len(options)), key=lambda index: abs(options[index] - day))


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 5),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=((" = ", " makes "), ("That is", "So we get"), ("is option", "goes with")),
)
