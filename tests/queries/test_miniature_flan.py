"""Real files of all four sub-collections: drawn, checked against real benchmarks, given their messages."""

import collections

import pytest

from orca_jax.config_teachers import FlanConfig
from orca_jax.evaluation.benchmarks import registry
from orca_jax.queries import contamination, flan, sampling, system_messages

QUOTAS = FlanConfig(sources={}, niv2_per_task=20, flan2021=900, t0=900)


@pytest.mark.realdata
def test_from_files_to_queries_with_messages(shared_data):
    sources = {
        "cot": list((shared_data / "flan_cot").glob("*.jsonl")),
        "niv2": list((shared_data / "superni").glob("*.json")),
        "t0": list((shared_data / "t0").glob("*.jsonl")),
        "raw": list((shared_data / "flan21_raw").glob("*.jsonl")),
    }
    drawn = sampling.plan(sampling.index(flan.read_all(sources)), QUOTAS, expert=0.2, seed=0)
    queries = list(sampling.select(flan.read_all(sources), drawn))
    counts = collections.Counter(query.collection for query in queries)
    assert (counts["niv2"], counts["flan2021"], counts["t0"]) == (200, 900, 900)
    assert counts["cot"] > 13_000
    by_task = collections.Counter(query.task for query in queries if query.collection == "flan2021")
    assert max(by_task.values()) - min(by_task.values()) < 60  # tasks are equally likely, whatever their size

    files = {
        "bbh": shared_data / "bbh",
        "agieval": shared_data / "agieval",
        "truthfulqa_mc": shared_data / "truthfulqa/truthfulqa_408.jsonl",
    }
    index = contamination.Index(registry.documents(files))
    kept = [query for query, hits in index.check(queries) if not hits]
    assert 0 < len(queries) - len(kept) < 5

    messages = system_messages.MessageSet(
        system_messages.all_messages(), system_messages.measured_shares(kept)
    )
    given = list(messages.assign(kept, seed=0))
    shares = {message.id: message.shares for message in messages.messages.values()}
    assert all(shares[query.system_message_id][query.collection] > 0 for query in given)
    assert all(query.multiple_choice for query in given if query.system_message_id in (8, 10))
    eighths = [query for query in given if query.collection == "flan2021" and query.system_message_id == 8]
    assert len(eighths) / counts["flan2021"] == pytest.approx(shares[8]["flan2021"], abs=0.035)
