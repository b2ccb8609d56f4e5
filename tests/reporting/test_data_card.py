"""The data card says what the columns hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.reporting import data_card
from orca_jax.reporting.tables import described_message

N = 120
FLAN = {
    "rows": {"read": 500, "malformed": 1, "malformed_places": ["part.jsonl:7: RecordError"]},
    "not_drawn_from": {"template_type": 3, "duplicate": 2},
    "drawn": {"cot": {"queries": 60, "tasks": 2}, "t0": {"queries": 62, "tasks": 3}},
    "duplicates": 1,
    "near_duplicates": 0,
    "contamination": {"hit": 1, "dropped": 1, "by_benchmark": {"agieval": 1}},
    "queries": 120,
    "expert": 24,
}


def contents(**changes):
    columns = {
        "collection": np.array(["cot"] * 60 + ["t0"] * 60),
        "task": np.array([f"cot_{i % 2}" for i in range(60)] + [f"t0_{i % 3}" for i in range(60)]),
        "teacher": np.array(["expert"] * N),
        "system_message_id": np.array([6, 11, 16] * 20 + [1, 2, 3, 5, 7] * 12),
        "supervised": np.arange(1, N + 1),
    }
    expected = {**dict.fromkeys((6, 11, 16), 1 / 6), **dict.fromkeys((1, 2, 3, 5, 7), 1 / 10)}
    given = dict(
        name="expert",
        about=("config flan, seed 0",),
        columns=columns,
        expected=expected,
        left_out={"duplicate": 4, "refusal": 2},
        held_out=6,
        flags={"refusal": 2, "truncated": 5},
        packing={"rows": 40, "factor": 3.0, "fill": 0.975, "row_length": 2048},
        ngrams={"questions": {1: 0.1, 2: 0.2}, "answers": {1: 0.3, 2: 0.4}},
        sample=N,
        queries={"queries": 120, "known_to_benchmark": 0, "flan": [FLAN]},
        sources=[("flan[0].cot: flan_cot/aqua.tsv", "ab" * 32, "Apache-2.0")],
    )
    return given | changes


def rows_of(card, section):
    """The cells of the tables of a section."""
    text = card.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_count_stands_in_the_card():
    card = data_card.render(**contents())
    assert ["trained on", "120", "90.9 %"] in rows_of(card, "Size and what was left out")
    assert ["left out: duplicate", "4", "3.0 %"] in rows_of(card, "Size and what was left out")
    assert ["truncated", "5", "3.8 %"] in rows_of(card, "Size and what was left out")
    assert ["cot", "60", "50.0 %", "2.9 %"] in rows_of(card, "Collections and teachers")
    assert ["cot_0", "30", "25.0 %"] in rows_of(card, "Tasks")
    assert "5 tasks; their entropy is 2.29 bits, that of 4.9 tasks of equal size." in card
    assert [described_message(6), "20", "16.7 %", "16.7 %"] in rows_of(card, "System messages")
    assert "Chi-square against the shares aimed at: 0.0 at 7 degrees of freedom, p = 1." in card
    assert "40 rows of 2048 positions: 3.00 examples a row (the paper: 2.7" in card
    assert ["rows not drawn from: template_type", "3"] in rows_of(card, "Queries")
    assert ["meet agieval", "1"] in rows_of(card, "Queries")
    assert "part.jsonl:7" in card
    assert ["flan[0].cot: flan_cot/aqua.tsv", "abababababab", "Apache-2.0"] in rows_of(
        card, "Sources and licences"
    )


def test_lengths_stand_beside_the_papers():
    rows = {row[0]: row for row in rows_of(data_card.render(**contents()), "Lengths of answers")}
    own = np.percentile(np.arange(1, 61, 3), [25, 50, 75])
    assert rows["6"][2] == f"{own[0]:.0f} **{own[1]:.0f}** {own[2]:.0f}"
    assert rows["6"][3:] == ["78 **107** 155", "91 **172** 290"]


def test_another_allocation_has_no_aim():
    card = data_card.render(**contents(expected={}))
    assert "Chi-square" not in card
    assert [described_message(6), "20", "16.7 %", "–"] in rows_of(card, "System messages")


def test_traces_of_a_file_and_of_nothing():
    card = data_card.render(**contents(queries=None))
    assert "The traces came in a file" in card
    assert "aimed at" not in card  # by a file's makers, which it does not say
    assert "Chi-square against the paper's shares: 0.0" in card
    assert "No files" in data_card.render(**contents(sources=[]))


def test_a_draw_without_benchmarks_says_so():
    queries = {
        "queries": 1,
        "known_to_benchmark": 0,
        "flan": [{**FLAN, "contamination": "no benchmark was given"}],
    }
    assert ["contamination", "no benchmark was given"] in rows_of(
        data_card.render(**contents(queries=queries)), "Queries"
    )


@pytest.mark.parametrize("empty", [False, True])
def test_card_and_figures_are_written(tmp_path, empty):
    given = contents()
    if empty:
        given = contents(columns={name: column[:0] for name, column in given["columns"].items()})
    data_card.write(tmp_path, **given)
    assert (tmp_path / data_card.README).read_text().startswith("# expert")
    pictures = {path.name for path in tmp_path.glob("*.png") if path.read_bytes()[:4] == b"\x89PNG"}
    assert pictures == (set() if empty else {data_card.LENGTHS, data_card.TASKS})


def test_a_message_that_is_none_of_the_16(tmp_path):
    columns = {**contents()["columns"], "system_message_id": np.array([-1] * N)}
    given = contents(columns=columns)
    card = data_card.render(**given)
    assert ["other (its own, not among the 16)", "120", "100.0 %", "–"] in rows_of(card, "System messages")
    data_card.write(tmp_path, **given)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["navigate"] * N, "There is one task: navigate."),
        ([""] * N, "No task is named."),
        (["a"] * (N - 1) + ["b"], "2 tasks; their entropy is 0.07 bits, that of 1.0 tasks of equal size."),
    ],
)
def test_a_single_task_has_no_entropy(tasks, said):
    card = data_card.render(**contents(columns={**contents()["columns"], "task": np.array(tasks)}))
    assert said in card
    assert "-0.0" not in card
    assert "equal ones" not in card


def test_openorcas_prefixes_are_the_papers_collections():
    names = np.array(["niv"] * 10 + ["flan"] * 50 + ["t0"] * 40 + ["cot"] * 10 + ["own"] * 5 + [""] * 5)
    card = data_card.render(**contents(columns={**contents()["columns"], "collection": names}))
    rows = {row[0]: row[1:] for row in rows_of(card, "Collections and teachers")}
    assert rows["niv (the paper's NiV2)"] == ["10", "8.3 %", "8.6 %"]
    assert rows["flan (the paper's Flan 2021)"] == ["50", "41.7 %", "49.1 %"]
    assert (rows["t0"][-1], rows["cot"][-1]) == ("39.3 %", "2.9 %")
    assert rows["own"] == rows["not named"] == ["5", "4.2 %", "–"]


def test_all_boxes_of_figure_9():
    boxes = data_card.paper_lengths()
    assert set(boxes) == {(id, teacher) for id in range(1, 17) for teacher in ("chatgpt", "gpt-4")}
    assert all(
        box[low] <= box[high] for box in boxes.values() for low, high in zip(data_card.BOX, data_card.BOX[1:])
    )
    assert boxes[3, "gpt-4"]["median"] == 225


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_entropy_is_between_none_and_that_of_equal_tasks(counts):
    bits = data_card.entropy(counts)
    assert str(bits) != "-0.0"
    assert 0 <= bits <= math.log2(len(counts)) + 1e-9
    assert data_card.entropy([7] * len(counts)) == pytest.approx(math.log2(len(counts)))


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=6), max_size=6))
def test_distinct_ngrams(texts):
    shares = data_card.distinct((" ".join(words) for words in texts), sizes=(1, 2))
    for size, share in shares.items():
        runs = [tuple(words[i : i + size]) for words in texts for i in range(len(words) - size + 1)]
        assert share == pytest.approx(len(set(runs)) / max(len(runs), 1))
