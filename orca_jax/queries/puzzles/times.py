"""Puzzles about times: the free hours of a day, and dates some time before or after others."""

from __future__ import annotations

import calendar
import datetime
import itertools
from dataclasses import dataclass
from random import Random
from typing import ClassVar, NamedTuple

from orca_jax.queries.puzzles.base import (
    Family,
    Pose,
    Slip,
    Solution,
    letter,
    letter_of,
    lettered,
    shuffled,
    words,
)

Date = datetime.date
Days = datetime.timedelta


class Sighting(NamedTuple):
    witness: str
    activity: str
    window: tuple[int, int]  # start and end, in hours of the day


@dataclass(frozen=True)
class TemporalSequences(Family):
    """When could a person, seen elsewhere at other times, have gone to a place?

    Difficulty d has d + 2 sightings; they and the only free time fill the hours from waking up to closing.
    Each step repeats a sighting and since when the person was free; the steps end when a free time is found.
    """

    name, difficulties = "temporal_sequences", range(1, 7)
    styles = ("restate", "changes")
    simple_words = (
        ("Woke up", "Got out of bed"),
        ("Seen", "Busy"),
        (", free since", ". Had time since"),
        ("is option", "goes with"),
    )
    FIRST_HOUR, LAST_HOUR = 5, 22
    OPTIONS = 4
    NAMES = words(
        "Anna Betty David Emily Hannah James Jason Jennifer Jessica John Kevin Laura Linda Maria Mark Mary "
        "Nancy Peter Richard Sarah Sean Steven Susan Thomas William"
    )
    PLACES = (
        "museum", "coffee shop", "beach", "bakery", "swimming pool", "art show", "market", "bookstore"
    )  # fmt: skip
    ACTIVITIES = (
        "reading at the library", "working at the office", "watching a movie at the theater",
        "buying clothes at the mall", "waiting at the airport", "playing tennis at the court",
        "walking in the garden", "fixing a computer at the shop", "sitting on a rooftop",
        "attending class at the school",
    )  # fmt: skip

    person: str
    place: str
    woke: int
    sightings: tuple[Sighting, ...]
    closed: int
    options: tuple[str, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> TemporalSequences:
        seen = difficulty + 2
        hours = sorted(rng.sample(range(cls.FIRST_HOUR, cls.LAST_HOUR + 1), seen + 2))
        windows = list(itertools.pairwise(hours))
        free = windows.pop(rng.randrange(seen + 1))
        person, *witnesses = rng.sample(cls.NAMES, seen + 1)
        activities = rng.sample(cls.ACTIVITIES, seen)
        others = rng.sample(windows, cls.OPTIONS - 1)
        return cls(
            person=person,
            place=rng.choice(cls.PLACES),
            woke=hours[0],
            sightings=tuple(map(Sighting, witnesses, activities, windows)),
            closed=hours[-1],
            options=shuffled(rng, [_window(*window) for window in (free, *others)]),
        )

    def pose(self) -> Pose:
        person, place = self.person, self.place
        lines = [
            f"Today, {person} went to the {place}. Between what times could they have gone?",
            "We know that:",
            f"{person} woke up at {_clock(self.woke)}.",
            *(f"{s.witness} saw {person} {s.activity} from {_window(*s.window)}." for s in self.sightings),
            f"The {place} was closed after {_clock(self.closed)}.",
            f"Between what times could {person} have gone to the {place}?",
        ]
        return lettered(self.name, "\n".join(lines), self.options)

    def solve(self, slip: Slip) -> Solution:
        since = self.woke
        steps = [f"Woke up at {_clock(since)}."]
        busy = [(*s.window, f"Seen from {_window(*s.window)}") for s in self.sightings]
        closing = (self.closed, self.LAST_HOUR + 1, f"Closed after {_clock(self.closed)}")
        for start, end, what in (*busy, closing):
            is_free = slip(since < start, since >= start)
            gap = _window(since, start) if since < start else _window(start, end)
            verdict = f"{gap} is free." if is_free else "not free."
            steps.append(f"{what}, free since {_clock(since)}: {verdict}")
            if is_free and gap in self.options:
                label = letter_of(gap, self.options)
                return Solution((*steps, f"{gap} is option {label}."), label)
            since = end
        return Solution((*steps, f"No time is free, perhaps option {letter(0)}."), letter(0))


def _clock(hour: int) -> str:
    """An hour of the day (0 to 23) as in 9am or 12pm."""
    return f"{(hour - 1) % 12 + 1}{'am' if hour < 12 else 'pm'}"


def _window(start: int, end: int) -> str:
    return f"{_clock(start)} to {_clock(end)}"


class Context(NamedTuple):
    """How today is described: a text, and the days from today to the date it gives."""

    text: str
    days: int = 0


@dataclass(frozen=True)
class DateUnderstanding(Family):
    """What is the date some time before or after a day that is described?

    Difficulty 1 tells today's date and asks for a near day of the same month; 2 tells the day before or after
    and also asks for months and years; 3 describes today by an event some days away, or in British order; 4
    by an anniversary. From 2 on, a month may end in between. The steps write dates as MM/DD/YYYY, add or take
    away days, and go over into the next or last month by its length.
    """

    name, difficulties = "date_understanding", range(1, 5)
    styles = ("restate", "changes")
    simple_words = ((" = ", " makes "), ("That is", "So we get"), ("is option", "goes with"))
    OPTIONS = 6
    LAST_DAY = 28  # of any month, so that months and years can be taken away from today
    COUPLES = ("Jane and John", "Ana and Tom", "Mia and Leo", "Ida and Max")
    BRITISH = Context(
        "In the UK, people usually put the day before the month when formatting the date. "
        "Therefore, today is {given} to them."
    )
    ANNIVERSARY = Context("{couple} married on {given}. It is their {years}-year anniversary today.")
    LEVELS: ClassVar = {
        1: (Context("Today is {given}."),),
        2: (Context("Tomorrow is {given}.", 1), Context("Yesterday was {given}.", -1)),
        3: (
            Context("Today's meeting is rescheduled to 11 am tomorrow, {given}.", 1),
            Context("The concert was scheduled to be on {given}, but was delayed by one day to today.", -1),
            Context("The deadline is {given}, which is 2 days away from now.", 2),
            Context("A parcel was sent on {given} and took 5 days to arrive today.", -5),
            BRITISH,
        ),
        4: (ANNIVERSARY,),
    }
    # question: (days, months) from today
    NEAR: ClassVar = {
        "tomorrow": (1, 0),
        "yesterday": (-1, 0),
        "24 hours later": (1, 0),
        "one week from today": (7, 0),
        "one week ago from today": (-7, 0),
    }
    FAR: ClassVar = {
        "10 days ago": (-10, 0), "a month ago": (0, -1), "one year ago from today": (0, -12), **NEAR
    }  # fmt: skip

    context: Context
    today: Date
    asked: str
    written_out: bool  # the given date as in Sep 9, 1909
    years: int  # of a marriage
    couple: str
    options: tuple[Date, ...]

    @property
    def given(self) -> Date:
        day = self.today + Days(self.context.days)
        return day.replace(year=day.year - self.years)

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> DateUnderstanding:
        context = rng.choice(cls.LEVELS[difficulty])
        first, last = (8, 21) if difficulty == 1 else (1, cls.LAST_DAY)
        today = Date(rng.randint(1905, 2030), rng.randint(1, 12), rng.randint(first, last))
        asked = rng.choice(tuple(cls.NEAR if difficulty == 1 else cls.FAR))
        written_out = rng.random() < 0.5
        years = rng.randint(1, 9) if context == cls.ANNIVERSARY else 0
        couple = rng.choice(cls.COUPLES)
        # The answer among what common mistakes lead to.
        days, months = cls.FAR[asked]
        answer = _later(today + Days(days), months)
        wrong = {_later(today - Days(days), -months), answer + Days(1), answer - Days(1), today}
        wrong |= {_later(today, rng.choice((-1, 1)))}
        wrong |= {_later(cls._early(answer), 12 * rng.randint(1, 40)), answer + Days(rng.randint(30, 300))}
        wrong.discard(answer)
        options = [answer, *rng.sample(sorted(wrong), cls.OPTIONS - 1)]
        return cls(context, today, asked, written_out, years, couple, shuffled(rng, options))

    @classmethod
    def _early(cls, day: Date) -> Date:
        return day.replace(day=min(day.day, cls.LAST_DAY))

    def pose(self) -> Pose:
        context = self.context.text.format(given=self._given_text(), couple=self.couple, years=self.years)
        stem = f"{context} What is the date {self.asked} in MM/DD/YYYY?"
        return lettered(self.name, stem, list(map(_numeric, self.options)))

    def _given_text(self) -> str:
        given = self.given
        if self.context == self.BRITISH:
            return f"{given:%d/%m}/{given.year}"
        written = f"{calendar.month_abbr[given.month]} {given.day}, {given.year}"
        return written if self.written_out else _numeric(given)

    def solve(self, slip: Slip) -> Solution:
        day = self.given
        steps = [f"{self._given_text()} is {_numeric(day)}."]
        if self.context.days:
            day = self._days_later(day, -self.context.days, slip, steps)
        if self.years:
            right = day.replace(year=day.year + self.years)
            day = slip(right, right.replace(year=right.year + 1), right.replace(year=right.year - 1))
            steps.append(f"{_amount(self.years, 'year')}: {_numeric(day)}.")
        steps.append(f"Today is {_numeric(day)}.")
        days, months = self.FAR[self.asked]
        if days:
            day = self._days_later(day, days, slip, steps)
        else:
            early = self._early(day)
            day = slip(_later(early, months), _later(early, -months))
            amount = _amount(months // 12, "year") if months % 12 == 0 else _amount(months, "month")
            steps.append(f"{amount}: {_numeric(day)}.")
        # The option that is the day, or the nearest to a mistaken one.
        label = letter(min(range(self.OPTIONS), key=lambda index: abs(self.options[index] - day)))
        return Solution((*steps, f"{_numeric(day)} is option {label}."), label)

    @staticmethod
    def _days_later(day: Date, days: int, slip: Slip, steps: list[str]) -> Date:
        """The date some days after `day`, or before it; adds the steps there."""
        right = day.day + days
        total = slip(right, right + 1, right - 1, day.day - days)
        sign = "+" if days > 0 else "-"
        steps.append(f"{_amount(days, 'day')}: {day.day} {sign} {abs(days)} = {total}.")
        before, length = day.replace(day=1) - Days(1), calendar.monthrange(day.year, day.month)[1]
        if total < 1:
            sums = f"{total} + {before.day} = {total + before.day}"
            steps.append(f"Month {before:%m} has {before.day} days: {sums}.")
        elif total > length:
            steps.append(f"Month {day:%m} has {length} days: {total} - {length} = {total - length}.")
        reached = before + Days(total)
        steps.append(f"That is {_numeric(reached)}.")
        return reached


def _later(day: Date, months: int) -> Date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return day.replace(year=year, month=month + 1)


def _numeric(day: Date) -> str:
    """A date as MM/DD/YYYY."""
    return f"{day:%m/%d}/{day.year:04}"


def _amount(number: int, unit: str) -> str:
    plural = "" if abs(number) == 1 else "s"
    return f"{abs(number)} {unit}{plural} {'later' if number > 0 else 'before'}"
