"""Rows: segments are their examples exactly, and one whole row is a golden file.

After a wanted change: `python -m pytest tests/data/test_rows.py --regenerate-golden`.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data.layouts import LAYOUTS, encode, stop_ids
from orca_jax.data.rows import Distillation, Row, as_leaking, build_row, stack
from orca_jax.records import Message

PAD = 999


@st.composite
def packed(draw):
    """Examples of distinct tokens and mixed weights, and a row length that holds them."""
    sizes = draw(st.lists(st.integers(2, 12), max_size=6))
    weights = [draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n)) for n in sizes]
    examples = [
        {"tokens": np.arange(n, dtype=np.int32) + 100 * i, "weights": np.array(w, np.float32)}
        for i, (n, w) in enumerate(zip(sizes, weights))
    ]
    return examples, max(1, sum(sizes) - len(sizes) + draw(st.integers(0, 10)))


@given(case=packed())
def test_a_rows_segments_reproduce_their_examples(case):
    examples, row_length = case
    row = build_row(examples, row_length, PAD)
    for segment, example in enumerate(examples, 1):
        here = row.segment_ids == segment
        tokens, weights = example["tokens"], example["weights"]
        np.testing.assert_array_equal(row.tokens[here], tokens[:-1])
        np.testing.assert_array_equal(row.targets[here], tokens[1:])
        np.testing.assert_array_equal(row.loss_weights[here], weights[1:])
        np.testing.assert_array_equal(row.positions[here], np.arange(len(tokens) - 1))


@given(case=packed())
def test_what_is_no_segment_is_padding_at_the_end(case):
    examples, row_length = case
    row = build_row(examples, row_length, PAD)
    filled = sum(len(example["tokens"]) - 1 for example in examples)
    assert (row.segment_ids[:filled] > 0).all()
    assert (np.diff(row.segment_ids[:filled]) >= 0).all()
    padding = Row(*(array[filled:] for array in row[:-1]))
    assert set(padding.tokens) | set(padding.targets) <= {PAD}
    for array in (padding.loss_weights, padding.segment_ids, padding.positions):
        np.testing.assert_array_equal(array, 0)


@given(case=packed())
@settings(max_examples=20)
def test_rows_have_one_shape_and_type(case):
    examples, row_length = case
    row = build_row(examples, row_length, PAD)
    assert {array.shape for array in row[:-1]} == {(row_length,)}
    assert [array.dtype for array in row[:-1]] == [np.int32, np.int32, np.float32, np.int32, np.int32]


@given(size=st.integers(2, 40), row_length=st.integers(1, 20))
def test_an_example_longer_than_the_row_is_cut_at_its_end(size, row_length):
    tokens = np.arange(size, dtype=np.int32)
    row = build_row([{"tokens": tokens, "weights": np.ones(size, np.float32)}], row_length, PAD)
    kept = min(size - 1, row_length)
    np.testing.assert_array_equal(row.tokens[:kept], tokens[:kept])
    np.testing.assert_array_equal(row.targets[:kept], tokens[1 : kept + 1])
    assert row.loss_weights.sum() == kept


@given(case=packed())
def test_a_leaking_row_is_one_example_of_the_same_tokens(case):
    row = build_row(*case, PAD)
    one, filled = as_leaking(row), int((row.segment_ids > 0).sum())
    for name in ("tokens", "targets", "loss_weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(row, name))
    np.testing.assert_array_equal(one.segment_ids, np.arange(len(row.tokens)) < filled)
    np.testing.assert_array_equal(one.positions[:filled], np.arange(filled))
    assert (one.segment_ids.dtype, one.positions.dtype) == (row.segment_ids.dtype, row.positions.dtype)


def test_a_row_of_nothing_weighs_nothing():
    row = build_row([], 4, PAD)
    assert row.tokens.tolist() == row.targets.tolist() == [PAD] * 4
    assert row.loss_weights.sum() == row.segment_ids.sum() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_end_of_sequence_is_a_supervised_target(layout, tokenizer):
    messages = [Message("user", "Is it red?"), Message("assistant", "It is.")]
    encoded = encode(messages, layout, tokenizer)
    example = {"tokens": encoded.tokens, "weights": encoded.weights}
    row = build_row([example, example], 2 * len(encoded.tokens), tokenizer.pad_id)
    ends = row.loss_weights * (row.targets == stop_ids(layout, tokenizer)[0])
    assert ends.sum() == 2
    assert [row.segment_ids[i] for i in np.flatnonzero(ends)] == [1, 2]


def test_stacked_rows_are_a_batch():
    rows = [build_row([{"tokens": np.arange(n), "weights": np.ones(n)}], 6, PAD) for n in (3, 5, 7)]
    batch = stack(rows)
    assert batch.tokens.shape == (3, 6)
    for index, row in enumerate(rows):
        for one, many in zip(row[:-1], batch, strict=False):
            np.testing.assert_array_equal(many[index], one)


def taught(tokens, weights, top=2, seed=0):
    """An example whose supervised tokens have alternatives; the first id of each is its number."""
    known = np.log(np.random.default_rng(seed).dirichlet(np.ones(top + 1), int(np.count_nonzero(weights))))
    ids = (np.arange(len(known))[:, None] + [[0, 50]]).astype(np.uint16)
    return {"tokens": tokens, "weights": weights, "teacher_ids": ids, "teacher_log_probs": known}


def test_soft_targets_stand_where_their_tokens_are_predicted():
    """Of two turns with loss; a token without alternatives, and an example without, have none."""
    weights = np.array([0, 0, 1, 1, 0, 0, 0.5, 1], np.float32)
    first, second = taught(np.arange(8), weights), {"tokens": np.arange(3), "weights": np.ones(3)}
    first["teacher_log_probs"][1] = -np.inf
    row = build_row([second, first, first], 14, PAD, Distillation(0.25, 1.0), top=2)
    soft = row.soft_targets
    places = np.flatnonzero(soft.weights.any(-1))
    assert places.tolist() == [3, 7, 8, 10]  # the last example is cut after five positions
    assert soft.ids[places, 0].tolist() == [0, 2, 3, 0]
    np.testing.assert_allclose(soft.weights[places].sum(-1), 0.25, rtol=1e-6)
    np.testing.assert_allclose(soft.weights[3], 0.25 * np.exp(first["teacher_log_probs"][0]), rtol=1e-6)
    assert (soft.ids[soft.weights[:, 0] == 0] == -1).all()
    plain = build_row([second, first, first], 14, PAD)
    assert plain.soft_targets is None
    for mine, theirs in zip(row[:-1], plain, strict=False):
        np.testing.assert_array_equal(mine, theirs)


def test_at_a_temperature_soft_targets_are_flatter_and_unknown_ids_have_no_share():
    example = taught(np.arange(3), np.array([0, 1, 1], np.float32))
    example["teacher_log_probs"] = np.log(np.array([[0.81, 0.01, 0.18], [0.9, 1e-300, 0.1]]))
    example["teacher_log_probs"][1, 1] = -np.inf
    soft = build_row([example], 2, PAD, Distillation(1.0, 2.0), top=2).soft_targets
    roots = np.sqrt([[0.81, 0.01, 0.18], [0.9, 0, 0.1]])
    np.testing.assert_allclose(soft.weights, roots / roots.sum(-1, keepdims=True), rtol=1e-6)
    assert soft.ids.tolist() == [[0, 50], [1, -1]]
    assert soft.inverse_temperature.tolist() == [0.5, 0.5]


CONVERSATIONS = (
    [Message("system", "You are brief."), Message("user", "2 + 3 = ?"), Message("assistant", "5")],
    [
        Message("user", "Does </s> end it?"),
        Message("assistant", "No.\nIt is text."),
        Message("user", "And now?"),
        Message("assistant", "Bläh!"),
    ],
)


def test_the_golden_row(tokenizer, repo, regenerate_golden):
    """A changed layout, tokenization, shift, weight or padding shows up here as a diff."""
    found = {layout: golden_row(layout, tokenizer) for layout in LAYOUTS}
    path = repo / "tests/golden/packed_row.json"
    if regenerate_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_text(found), encoding="utf-8")
    assert found == json.loads(path.read_text(encoding="utf-8"))


def golden_row(layout, tokenizer):
    """Position by position: input, target, its weight, segment, position; and the ids beside their texts."""
    encoded = [encode(messages, layout, tokenizer) for messages in CONVERSATIONS]
    examples = [{"tokens": e.tokens, "weights": e.weights} for e in encoded]
    row = build_row(examples, 240, tokenizer.pad_id)
    columns = (array.tolist() for array in row[:-1])
    texts = (tokenizer.token_text(int(token)) for token in row.targets)
    return [[text, *values] for text, values in zip(texts, zip(*columns))]


def to_text(golden):
    """JSON with one position a line."""
    layouts = []
    for layout, positions in golden.items():
        lines = ",\n  ".join(json.dumps(position, ensure_ascii=False) for position in positions)
        layouts.append(f" {json.dumps(layout)}: [\n  {lines}\n ]")
    return "{\n" + ",\n".join(layouts) + "\n}\n"
