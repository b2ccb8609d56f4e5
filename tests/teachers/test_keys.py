"""Which requests of a collection lack an answer, from their ids alone."""

import numpy as np
import pytest

from orca_jax.records import Message, Outcome, Reply
from orca_jax.teachers import keys
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Attempt, Ledger


def requests(count):
    return [Request((Message("user", str(number)),)) for number in range(count)]


@pytest.mark.parametrize("answered", [[], range(0, 500, 3), range(500), [499], [0]])
def test_missing(tmp_path, answered):
    asked = requests(500)
    assert keys.write(tmp_path / "keys", "teacher", asked) == 500
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record(Attempt("teacher", asked[place], Reply(Outcome.OK, "So.")) for place in answered)
        ledger.record(Attempt("other", request, Reply(Outcome.OK, "So.")) for request in asked)
        found = keys.missing(tmp_path / "keys", ledger)
    np.testing.assert_array_equal(found, sorted(set(range(500)) - set(answered)))


def test_failures_are_missing(tmp_path):
    keys.write(tmp_path / "keys", "teacher", requests(1))
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record([Attempt("teacher", requests(1)[0], Reply(Outcome.ERROR, ""))])
        assert keys.missing(tmp_path / "keys", ledger).tolist() == [0]


def test_no_requests(tmp_path):
    assert keys.write(tmp_path / "keys", "teacher", []) == 0
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record([Attempt("teacher", requests(1)[0], Reply(Outcome.OK, ""))])
        assert keys.missing(tmp_path / "keys", ledger).tolist() == []


def test_another_file(tmp_path):
    (tmp_path / "keys").write_bytes(b"hello")
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(ValueError, match="5 bytes are no whole number"),
    ):
        keys.missing(tmp_path / "keys", ledger)


def test_what_is_unanswered_and_what_was_answered(tmp_path):
    asked = requests(1200)
    keys.write(tmp_path / "keys", "teacher", asked)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record(Attempt("teacher", asked[n], Reply(Outcome.OK, f"re {n}")) for n in range(0, 1200, 2))
        ledger.record([Attempt("teacher", asked[1], Reply(Outcome.ERROR, "", raw={"error": "broken"}))])
        count, missing = keys.unanswered(tmp_path / "keys", ledger, iter(asked))
        found = list(keys.answers(keys.read(tmp_path / "keys"), ledger))
    assert count == 600
    assert list(missing) == asked[1::2]
    assert [answer.reply.text for answer in found[::2]] == [f"re {n}" for n in range(0, 1200, 2)]
    assert found[1].reply.raw == {"error": "broken"}
    assert found[3::2] == [None] * 599
