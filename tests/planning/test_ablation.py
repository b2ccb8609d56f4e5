"""What an arm set can find: against the plan's table, a simulation, and what finished arms say."""

import numpy as np
import pytest

from orca_jax.config_arms import load_set
from orca_jax.configs.ablations import crossover, main
from orca_jax.evaluation.statistics import crossed_mean
from orca_jax.planning import ablation
from orca_jax.planning.ablation import Variances, assumed, smallest


@pytest.mark.parametrize(("seeds", "items", "normal", "student"), [
    (3, 450, [6.8, 7.5], [10.0, 12.4]),
    (8, 3000, [3.2, 3.5], [3.6, 4.0]),
    (12, 3000, [2.7, 2.9], [2.8, 3.2]),
    (24, 6000, [1.8, 2.0], [1.9, 2.1]),
])  # fmt: skip
def test_these_are_the_differences_of_the_page_on_ablations(seeds, items, normal, student):
    """Alone, and with Holm over two."""
    for known, expected in ((True, normal), (False, student)):
        found = [100 * smallest(assumed(2.0), seeds, items, tests, normal=known) for tests in (1, 2)]
        assert [round(value, 1) for value in found] == expected


def drawn(rng, variances, seeds, items, mean):
    """Values with these variances, float [seeds, items]."""
    shapes = zip(variances, ((seeds, 1), (1, items), (seeds, items)))
    return mean + sum(rng.normal(0, variance**0.5, shape) for variance, shape in shapes)


@pytest.mark.parametrize(("seeds", "items"), [(3, 450), (8, 300)])
def test_the_smallest_difference_is_found_four_times_of_five(seeds, items):
    """By the report's own test; and where there is none, at most one time of twenty."""
    rng, variances = np.random.default_rng(0), assumed(2.0)
    difference = smallest(variances, seeds, items)

    def share(mean):
        tests = (crossed_mean(drawn(rng, variances, seeds, items, mean)) for _ in range(500))
        return np.mean([test.p_value(0) < 0.05 for test in tests])

    assert share(difference) == pytest.approx(0.8, abs=0.05)
    assert share(0) < 0.07


def test_variances_are_measured_from_arms():
    rng, true = np.random.default_rng(1), Variances(0.002, 0.05, 0.2)
    found = ablation.measured([drawn(rng, true, 40, 400, 0) for _ in range(10)])
    assert found == pytest.approx(true, rel=0.15)
    with pytest.raises(ValueError, match="two seeds"):
        ablation.measured([np.zeros((1, 5))])


def with_hypotheses(*hypotheses):
    config = main.get_config("runlocal")
    config.base.train.update(batch_rows=8)  # for the tests' eight devices
    config.hypotheses = hypotheses
    return load_set(config)


def test_a_set_without_hypotheses_compares_with_the_baseline():
    table = ablation.table(with_hypotheses(), {1: assumed(2.0, 1), 2: assumed(2.0)}, items=450)
    assert [row[0] for row in table.rows] == ["answers", "expert", "apprentice", "mixed"]
    assert table.header[4] == "Holm over 4"


def test_items_are_those_of_the_families_and_difficulties():
    one = dict(arm="answers", minus="progressive", at_least=0)
    arm_set = with_hypotheses(
        dict(one, name="all"),
        dict(one, name="a family", tasks=("dyck",)),
        dict(one, name="hard", difficulties=(3,)),
    )
    counts = [ablation.items_of(arm_set, one) for one in arm_set.hypotheses]
    config = arm_set.config(arm_set.arms[0], 0)
    each = config.evaluation.per_family
    assert counts == [3 * each, each, 3 * len(range(2, each, 3))]


def test_an_interaction_needs_twice_as_much():
    one = dict(arm="explanations", minus="answers", at_least=0, conditions=("nested_booleans-8",))
    config = crossover.get_config("variant=families")
    config.hypotheses = [
        dict(one, name="alone"),
        dict(one, name="interaction", less=("dyck_languages-4",)),
    ]
    alone, both = ablation.table(load_set(config), {2: assumed(2.0)}).rows
    assert alone[1:3] == both[1:3] == [300, 6]
    assert float(both[3]) == pytest.approx(float(alone[3]) * 2**0.5, abs=0.1)


def test_more_seeds_or_items_find_a_smaller_difference():
    arm_set = with_hypotheses(dict(name="all", arm="answers", minus="progressive", at_least=0))
    of = {1: assumed(2.0, 1), 2: assumed(2.0)}
    [row] = ablation.table(arm_set, of, items=3000, seeds=4, difference=4.0).rows
    *_, seeds, items = row
    assert 100 * smallest(of[2], seeds, 3000) <= 4.0 < 100 * smallest(of[2], seeds - 1, 3000)
    assert items == "none", "so few seeds do not find it however many items there are"


def test_hours_are_those_of_the_students():
    arm_set = with_hypotheses()
    assert ablation.hours(arm_set, seeds=4, seconds_per_student=360, jobs=2).endswith("1.0 hours.")


@pytest.mark.proof
def test_hours_are_of_steps_that_are_timed(monkeypatch):
    arm_set = with_hypotheses()
    monkeypatch.setattr(ablation, "TIMED", 0.0)
    text = ablation.hours(arm_set)
    assert "ms a step of 8 rows" in text
    assert "15 students" in text


def test_a_students_hours_are_not_known_in_epochs():
    config = main.get_config("runlocal")
    config.arms[0]["changes"]["curriculum"][0].update(steps=0, epochs=1)
    with pytest.raises(ValueError, match="measured in epochs; give --seconds_per_student"):
        ablation.hours(load_set(config))
