"""From FLAN's files to the queries that are asked: every row is drawn, left out or counted."""

import json

import pytest

from orca_jax.config_teachers import FlanConfig
from orca_jax.queries import make, system_messages
from orca_jax.queries.quality import Exact

PLANTED = (
    "How many of the seven blue elephants in the garden of the old king have a golden ring on their left ear?"
)


def row(number, source, text, target="yes", template="zs_opt"):
    task = f"{source.lower()}_task_{number % 3}"
    return {
        "inputs": text,
        "targets": target,
        "task_source": source,
        "task_name": task,
        "template_type": template,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of four sub-collections, a few-shot one, a repeated text, a planted question, a broken line."""
    rows = [
        row(number, source, f"Is number {number} of {source} even?")
        for source in ("CoT", "NIv2", "Flan2021", "P3")
        for number in range(60)
    ]
    rows += [row(0, "CoT", "Is number 0 of CoT even?", target="no")]  # the same text with another target
    rows += [row(1, "NIv2", f"Question: {PLANTED}")]
    rows += [row(2, "P3", "Many examples, and a question", template="fs_opt")]
    path = tmp_path_factory.mktemp("flan") / "all_submix.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows) + "{broken\n", encoding="utf-8")
    return {"submix": str(path)}


def drawn(files, folder, *, seed=0, documents=(), known=None, **settings):
    """The queries, their counts and the hits."""
    counts, hits = make.Counts(), []
    config = FlanConfig(sources=files, flan2021=30, t0=20, malformed=0.1, **settings)
    queries = make.draw_queries(
        config,
        folder,
        counts,
        seed=seed,
        expert=0.25,
        documents=documents,
        known=known or Exact(),
        on_hit=hits.append,
    )
    return list(queries), counts.summary(), hits


def test_every_row_is_accounted_for(files, tmp_path):
    queries, counts, hits = drawn(files, tmp_path, documents=[("test", "1", PLANTED)])
    assert counts["rows"]["read"] == 243
    assert counts["rows"]["malformed"] == 1
    assert "all_submix.jsonl:244" in counts["rows"]["malformed_places"][0]
    assert counts["not_drawn_from"] == {"template_type": 1, "collection": 0, "duplicate": 0}
    assert {name: part["queries"] for name, part in counts["drawn"].items()} == {
        "cot": 61,
        "flan2021": 30,
        "niv2": 61,
        "t0": 20,
    }
    assert counts["duplicates"] == 1
    assert counts["contamination"] == {
        "queries": 171,
        "hit": 1,
        "dropped": 1,
        "by_benchmark": {"test": 1},
        "by_kind": {"exact": 1},
        "by_task": {"niv2_task_1": 1},
    }
    assert counts["queries"] == len(queries) == 61 + 30 + 61 + 20 - 1 - 1
    assert counts["expert"] == sum(query.extra["expert"] for query in queries)
    assert counts["expert"] == pytest.approx(0.25 * len(queries), abs=2)
    assert [(hit.document_text, PLANTED in hit.query_text) for hit in hits] == [(PLANTED, True)]


def test_contaminated_queries_can_be_kept(files, tmp_path):
    documents = [("test", "1", PLANTED)]
    queries, counts, hits = drawn(files, tmp_path, documents=documents, contamination="keep")
    assert any(PLANTED in query.text for query in queries)
    assert (counts["contamination"]["hit"], counts["contamination"]["dropped"], len(hits)) == (1, 0, 1)


def test_without_benchmarks_it_says_so(files, tmp_path):
    assert drawn(files, tmp_path)[1]["contamination"] == "no benchmark was given"


def test_messages_are_those_of_the_sub_collection(files, tmp_path):
    shares = {id: message.shares for id, message in system_messages.all_messages().items()}
    queries, _, _ = drawn(files, tmp_path)
    assert all(shares[query.system_message_id][query.collection] > 0 for query in queries)
    assert len({query.system_message_id for query in queries}) > 8


def test_messages_of_ones_own_go_with_their_texts(files, tmp_path):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps([{"id": 1, "text": "Be kind."}, {"id": 2, "text": "Be brief."}]))
    queries, _, _ = drawn(files, tmp_path / "w", messages=str(path))
    texts = {(query.system_message_id, system_messages.text_of(query)) for query in queries}
    assert texts == {(1, "Be kind."), (2, "Be brief.")}


def test_what_is_asked_already_is_not_asked_again(files, tmp_path):
    known = Exact()
    first, _, _ = drawn(files, tmp_path / "a", known=known)
    again, counts, _ = drawn(files, tmp_path / "b", known=known)
    assert first
    assert again == []
    assert counts["duplicates"] == len(first) + 1


def test_the_same_seed_draws_the_same_and_an_interrupted_draw_goes_on(files, tmp_path):
    first, counts, _ = drawn(files, tmp_path / "a")
    other, _, _ = drawn(files, tmp_path / "c", seed=1)
    torn = tmp_path / "a" / "99999.jsonl"  # left by a draw that was killed
    torn.write_text('{"id": "torn')
    again, counted, _ = drawn(files, tmp_path / "a")
    assert again == first
    assert counted == counts
    assert {query.id for query in other} != {query.id for query in first}


def test_every_pass_is_watched(files, tmp_path, monkeypatch):
    seen = {}

    def watch(stream, title):
        for query in stream:
            seen[title] = seen.get(title, 0) + 1
            yield query

    monkeypatch.setattr(make, "_watched", watch)
    queries, _, _ = drawn(files, tmp_path)
    assert seen == {"indexing FLAN": 243, "drawing queries": 243, "checking queries": len(queries)}
