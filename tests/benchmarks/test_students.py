"""Students that are mapped into one program train as each does alone."""

import jax
import numpy as np
import pytest

from benchmarks import racing, students
from orca_jax.data.rows import stack


def test_mapped_students_are_each_their_own():
    examples = racing.uneven_examples(40, students.VOCABULARY, 32, 12, 0.2)
    rows = racing.packed_rows(examples, 32)
    batches = [stack(rows[2 * i : 2 * i + 2]) for i in range(2)]
    several, alone = students.together(batches), students.together(batches[:1])
    assert (several.name, alone.name) == ("2 together", "one alone")
    assert several.tokens == sum(np.count_nonzero(batch.segment_ids) for batch in batches)
    for _ in range(3):
        mapped, single = several.step(), alone.step()
        first = jax.tree.map(lambda leaf: leaf[0], mapped)
        assert first.loss.mean == pytest.approx(float(single.loss.mean), rel=1e-5)
