"""Teachers behind an API, word by word of the program, against a server that does what a test tells it."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib

import pytest

pytest.importorskip("openai")

from orca_jax import artifacts, cli, conversations, files
from orca_jax.config import load
from orca_jax.config_check import ConfigError
from orca_jax.config_teachers import Price
from orca_jax.configs import api as api_file
from orca_jax.data import prepared
from orca_jax.experiments import collect
from orca_jax.experiments import run as road
from orca_jax.records import Outcome, Trace
from orca_jax.teachers import collection
from orca_jax.teachers.endpoint import EndpointRefused
from orca_jax.teachers.ledger import Ledger, LedgerError
from orca_jax.teachers.limits import BudgetSpent
from tests.teachers.server import Answer, Server, completion, error
from tests.teachers.test_batch import BatchAPI

KEY = "sk-planted/Key+0123456789=="
QUERIES = 40


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)


def right(call):
    return completion(f"re {call.question}", (50, 20))


def make(url="http://127.0.0.1:9/v1", *, teachers=2, **changes):
    """configs/api.py:runlocal with its first `teachers` asked at `url`."""
    values = api_file.get_config("runlocal")
    values.update_from_flattened_dict({"train.batch_rows": 8})
    config = load(values)

    def asked(teacher):
        end = dataclasses.replace(
            teacher.api.endpoints[0], model=teacher.api.name, base_url=url, key_variable="TEACHER_KEY"
        )
        return dataclasses.replace(teacher, api=dataclasses.replace(teacher.api, endpoints=(end,), **changes))

    chosen = tuple(asked(teacher) for teacher in config.teachers[:teachers])
    return dataclasses.replace(config, teachers=chosen, curriculum=config.curriculum[:teachers])


def traces(workdir, teacher="chatgpt"):
    return list(files.read_jsonl(workdir / "traces" / teacher / collect.TRACES, Trace))


def outcomes(workdir, teacher="chatgpt"):
    return artifacts.read_manifest(workdir / "traces" / teacher)["counts"]["outcomes"]


def asked(server):
    """How often each model was asked each question."""
    return collections.Counter((call.body["model"], call.question) for call in server.calls)


def stand(workdir, teacher="chatgpt"):
    return next(one for one in collection.status(workdir) if one.about.teacher == teacher)


# --- run


def test_both_teachers_answer_and_nothing_is_paid_for_twice(tmp_path):
    with Server(right) as server:
        config = make(server.url)
        collect.run(config, tmp_path)
        cheap, dear = traces(tmp_path), traces(tmp_path, "gpt4")
        assert set(asked(server).values()) == {1}
        collect.run(config, tmp_path)
        for teacher in ("chatgpt", "gpt4"):  # of the traces lost, too, the ledger knows all
            (tmp_path / "traces" / teacher / artifacts.MANIFEST).unlink()
        collect.run(config, tmp_path)
        assert len(server.calls) == len(cheap) + len(dear)
        body = server.calls[0].body
    assert (len(cheap), outcomes(tmp_path)) == (QUERIES, {"ok": QUERIES})
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.95, 64)
    assert {trace.query_id for trace in dear} < {trace.query_id for trace in cheap}
    assert all(trace.answer == f"re {trace.messages[1].content}" for trace in cheap)
    assert (traces(tmp_path), traces(tmp_path, "gpt4")) == (cheap, dear)
    assert {trace.sampling.temperature for trace in dear} == {0.7}


def test_limits_prices_and_addresses_are_no_part_of_what_was_made(tmp_path):
    with Server(right) as server:
        collect.run(make(server.url, teachers=1), tmp_path)
    collect.run(make(teachers=1, budget_money=7.0, price=Price(prompt=1.0), concurrency=3), tmp_path)
    with pytest.raises(artifacts.ArtifactError, match=r"api.temperature: 0.7 there, 0.1 now"):
        collect.run(make(teachers=1, temperature=0.1), tmp_path)


def test_all_that_was_answered_needs_no_key(tmp_path, monkeypatch):
    with Server(right) as server:
        collect.run(make(server.url, teachers=1), tmp_path)
    monkeypatch.delenv("TEACHER_KEY")
    (tmp_path / "traces/chatgpt" / artifacts.MANIFEST).unlink()
    collect.run(make(teachers=1), tmp_path)
    assert outcomes(tmp_path) == {"ok": QUERIES}


def test_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ValueError, match="variable TEACHER_KEY is not set"):
        collect.run(make(teachers=1), tmp_path)


def test_several_samples_of_a_query(tmp_path):
    with Server(lambda call: completion(f"draw {call.number}")) as server:
        collect.run(make(server.url, teachers=1, samples=3), tmp_path)
        assert set(asked(server).values()) == {3}
    found = traces(tmp_path)
    assert len(found) == 3 * QUERIES == len({trace.id for trace in found}) == len({t.answer for t in found})
    assert [trace.sample for trace in found[:4]] == [0, 1, 2, 0]
    assert found[0].id == f"{found[0].query_id}/chatgpt/0"


def test_what_samples_of_a_model_agree_on_is_kept(tmp_path):
    config = make(teachers=1, samples=3)
    teacher = dataclasses.replace(config.teachers[0], filters=("outvoted", "spare"))
    with pytest.raises(ValueError, match="filter 'outvoted' needs several samples a query"):
        dataclasses.replace(teacher, api=dataclasses.replace(teacher.api, samples=1))
    with pytest.raises(ValueError, match=r"samples=2 must be 1; set api\.samples"):
        dataclasses.replace(teacher, samples=2)
    said = collections.Counter()

    def answer(call):  # two of three say "yes"
        said[call.question] += 1
        number = said[call.question]
        return completion(f"Draw {number}. The answer is {'yes' if number < 3 else 'no'}.")

    with Server(answer) as server:
        api = dataclasses.replace(make(server.url, teachers=1, samples=3).teachers[0].api, concurrency=1)
        config = dataclasses.replace(config, teachers=(dataclasses.replace(teacher, api=api),))
        collect.run(config, tmp_path)
    counts = prepared.make_flags(config, config.teachers[0], tmp_path, {}, [])["counts"]
    assert counts["left_out"] == {"outvoted": QUERIES, "spare": QUERIES}
    assert counts["kept"] == QUERIES


def test_log_probabilities_are_kept_with_the_trace(tmp_path):
    content = {"content": [{"token": "So", "logprob": -0.1, "top_logprobs": []}]}
    with Server(lambda call: completion(logprobs=content)) as server:
        collect.run(make(server.url, teachers=1, top_logprobs=2), tmp_path)
        assert {call.body["top_logprobs"] for call in server.calls} == {2}
    found = traces(tmp_path)
    assert all(trace.extra["logprobs"] == content for trace in found)
    assert "family" in found[0].extra
    assert found[0].sampling.top_logprobs == 2


def test_a_ledger_is_shared_between_workdirs(tmp_path):
    with Server(right) as server:
        for name in ("one", "two"):
            collect.run(make(server.url, teachers=1, ledger=str(tmp_path / "shared.sqlite")), tmp_path / name)
        assert len(server.calls) == QUERIES
    assert traces(tmp_path / "one") == traces(tmp_path / "two")


def test_two_collections_on_one_ledger_at_once(tmp_path):
    said = []

    def answer(call):
        if not said:  # while the first one asks
            said.append(str(stand(tmp_path / "one").about.requests))
            try:
                collect.run(make(other.url, **shared), tmp_path / "two")
            except LedgerError as refused:
                said.append(str(refused))
        return right(call)

    with Server(answer) as server, Server(right) as other:
        shared = {"teachers": 1, "ledger": str(tmp_path / "shared.sqlite")}
        collect.run(make(server.url, **shared), tmp_path / "one")
        collect.run(make(server.url, **shared), tmp_path / "two")
        assert set(asked(server).values()) == {1}
        assert not other.calls
    total, refusal = said
    assert int(total) == QUERIES
    assert re.search(
        r"shared\.sqlite: process \d+ is collecting from gpt-3.5-turbo with this ledger", refusal
    )
    assert traces(tmp_path / "one") == traces(tmp_path / "two")


def test_reasoning_is_kept_with_the_trace(tmp_path):
    thought = completion(message={"role": "assistant", "content": "So.", "reasoning_content": "First,"})
    with Server(lambda call: thought) as server:
        collect.run(make(server.url, teachers=1), tmp_path)
    for form in ("parquet", "jsonl"):
        export(tmp_path, "messages", form)
        found = list(conversations.read_traces(tmp_path / f"out/chatgpt.{form}", teacher="chatgpt"))
        assert {trace.extra["reasoning_content"] for trace in found} == {"First,"}
    assert {trace.answer for trace in traces(tmp_path)} == {"So."}


@pytest.mark.proof
def test_the_whole_road(tmp_path):
    with Server(right) as server:
        table = road.run(make(server.url), tmp_path)
    assert table == (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "training/manifest.json").exists()


# --- plan, estimate


def test_plan(tmp_path, capsys):
    collect.plan(make(), tmp_path)
    rows = {name: read(tmp_path / f"plan/{name}.jsonl") for name in ("chatgpt", "gpt4")}
    said = capsys.readouterr().out
    counts = re.findall(r"^\| (\w+) \| \S+ \| \d+ \| ([\d,]+) \|$", said, re.MULTILINE)
    for name, planned in rows.items():
        assert sum(int(count) for teacher, count in counts if teacher == name) == len(planned)
    assert len(rows["chatgpt"]) == QUERIES
    assert 0 < len(rows["gpt4"]) < QUERIES
    assert {row["query_id"] for row in rows["gpt4"]} < {row["query_id"] for row in rows["chatgpt"]}
    assert not (tmp_path / "traces").exists()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_estimate_before_and_after(tmp_path, capsys):
    price = Price(prompt=0.5, completion=1.0)
    with Server(right) as server:
        config = make(server.url, teachers=1, price=price)
        collect.estimate(config, tmp_path)
        before = capsys.readouterr().out
        assert not server.calls
        collect.run(config, tmp_path)
    collect.estimate(config, tmp_path)
    after = capsys.readouterr().out
    spent = QUERIES * (50 * 0.5 + 20 * 1.0) / 1000
    assert "| paper |" in before
    assert "chatgpt: 0.00 USD spent so far on gpt-3.5-turbo; the cap is 20.00 USD" in before
    (total,) = [line.split(" | ") for line in after.splitlines() if "| all | all |" in line]
    requests, prompt, reply, money = (float(cell.replace(",", "")) for cell in total[3:7])
    assert (requests, reply) == (QUERIES, QUERIES * 20)
    assert (prompt, money) == (pytest.approx(QUERIES * 50, rel=0.1), pytest.approx(spent, rel=0.1))
    assert "| measured |" in after
    assert f"chatgpt: {spent:.2f} USD spent so far" in after


# --- Budget


def test_a_spent_budget_ends_the_program_with_its_own_status(tmp_path, capsys):
    price = Price(prompt=0.01, completion=0.01)
    with Server(right) as server:
        # A request reserves 64 reply tokens and a token for each byte, and then uses 70.
        with pytest.raises(SystemExit) as left:
            cli.checked(lambda: collect.run(make(server.url, price=price, budget_money=0.02), tmp_path))
        assert left.value.code == 3
        assert "the budget of 0.02 USD is spent" in capsys.readouterr().err
        paid = len(server.calls)
        halted = stand(tmp_path)
        assert 0 < halted.done == paid < QUERIES
        assert halted.money == pytest.approx(paid * 70 * 0.01 / 1000)
        assert halted.money <= halted.about.api.budget_money == 0.02
        collect.run(make(server.url, price=price, budget_money=1.0), tmp_path)
        assert set(asked(server).values()) == {1}
    assert outcomes(tmp_path) == {"ok": QUERIES}


def test_a_cap_on_tokens_counts_what_was_used_before(tmp_path):
    with Server(right) as server:
        with pytest.raises(BudgetSpent):
            collect.run(make(server.url, teachers=1, budget_tokens=2000), tmp_path)
        first = len(server.calls)
        with pytest.raises(BudgetSpent):
            collect.run(make(server.url, teachers=1, budget_tokens=2000), tmp_path)
        assert len(server.calls) == first > 0


# --- retry


def questions(config, tmp_path):
    return [query.text for query in collect.jobs(config, tmp_path)[0].queries()]


def test_retry_asks_again_what_ended_in_an_error_and_nothing_filtered(tmp_path):
    config = make(teachers=1)
    bad, filtered, *_ = questions(config, tmp_path)
    broken = [bad]

    def answer(call):
        if call.question in broken:
            return error(400, "cannot")
        if call.question == filtered:
            return completion(None, finish_reason="content_filter")
        return right(call)

    with Server(answer) as server:
        config = make(server.url, teachers=1)
        collect.run(config, tmp_path)
        made = artifacts.read_manifest(tmp_path / "traces/chatgpt")
        assert made["counts"]["outcomes"] == {"ok": QUERIES - 2, "error": 1, "filtered": 1}
        assert stand(tmp_path).done == QUERIES - 1
        collect.run(config, tmp_path)  # it is finished
        assert len(server.calls) == QUERIES
        broken.clear()
        collect.retry(config, tmp_path)
        assert [call.question for call in server.calls[QUERIES:]] == [bad]
        assert outcomes(tmp_path) == {"ok": QUERIES - 1, "filtered": 1}
        # What was made of the old traces must be made again.
        assert artifacts.read_manifest(tmp_path / "traces/chatgpt")["fingerprint"] != made["fingerprint"]
        collect.run(config, tmp_path)
        collect.retry(config, tmp_path)
        assert len(server.calls) == QUERIES + 1
    by_question = {trace.messages[1].content: trace for trace in traces(tmp_path)}
    assert by_question[filtered].outcome is Outcome.FILTERED
    assert by_question[bad].outcome is Outcome.OK


def test_retry_of_what_was_not_finished_goes_on(tmp_path):
    with Server(lambda call: right(call) if call.number < 9 else error(401, "no such key")) as server:
        with pytest.raises(EndpointRefused):
            collect.retry(make(server.url, teachers=1, concurrency=2), tmp_path)
        server.answer = right
        collect.retry(make(server.url, teachers=1), tmp_path)
        assert asked(server).most_common(1)[0][1] <= 2
    assert outcomes(tmp_path) == {"ok": QUERIES}


# --- status


def test_status_of_nothing(tmp_path):
    with pytest.raises(artifacts.ArtifactError, match="no collection was begun"):
        collect.status(tmp_path)


def test_status(tmp_path, capsys):
    with Server(right) as server:
        collect.run(make(server.url, price=Price(prompt=1.0)), tmp_path)
    collect.status(tmp_path)
    cheap, dear = capsys.readouterr().out.splitlines()
    assert cheap.startswith(f"chatgpt: done {QUERIES} of {QUERIES}; requests/min {QUERIES};")
    assert f"USD {QUERIES * 50 / 1000:.2f} of 20.00; end done; attempts ok {QUERIES}" in cheap
    assert dear.startswith("gpt4: done ")


def test_status_of_oracles_too(finished, capsys):
    collect.status(finished)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["apprentice", "expert"]


# --- export


def export(workdir, schema, form):
    options = dict(workdir=workdir, input="", out=workdir / "out", schema=schema, form=form, kept=False)
    collect.export(cli.Options(**options))


# --- Batch API


def test_in_batches_at_half_the_price(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "POLL_SECONDS", 0.01)
    service = BatchAPI(lambda question: completion(f"re {question}", (50, 20)))
    with Server(service) as server:
        price = Price(prompt=0.01, completion=0.01)
        collect.run(make(server.url, teachers=1, batch=True, batch_requests=30, price=price), tmp_path)
    assert sorted(len(some) for some in service.inputs()) == [10, 30]
    assert all(trace.answer == f"re {trace.messages[1].content}" for trace in traces(tmp_path))
    assert stand(tmp_path).money == pytest.approx(0.5 * QUERIES * 70 * 0.01 / 1000)


# --- Keys


def test_no_part_of_the_key_is_in_what_is_written(tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    answers = [
        lambda call: completion(f"Your key is {KEY}."),
        lambda call: error(500, f"broken at {KEY}"),
        lambda call: Answer(200, f"<html>{KEY}</html>".encode()),
        lambda call: error(400, KEY),
        lambda call: completion(KEY, logprobs={KEY: KEY}),
        lambda call: error(429, f"{KEY}: try again in 1ms"),
    ]
    with Server(lambda call: answers[call.number % len(answers)](call)) as server:
        config = make(server.url, teachers=1, top_logprobs=1, retries=1)
        few = dataclasses.replace(config.puzzles, per_family=2)  # errors are waited for
        config = dataclasses.replace(config, puzzles=few)
        collect.run(config, tmp_path)
        collect.plan(config, tmp_path)
        collect.estimate(config, tmp_path)
        export(tmp_path, "native", "jsonl")
        server.answer = lambda call: error(401, f"Incorrect API key provided: {KEY}")
        with pytest.raises(SystemExit):
            cli.checked(lambda: collect.retry(config, tmp_path))
        collect.status(tmp_path)
    said = "".join(capfd.readouterr())
    assert "the key is wrong" in said
    assert "planted" not in said + caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        assert b"planted" not in path.read_bytes(), path
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for table, column in (("attempts", "text"), ("attempts", "raw"), ("attempts", "messages")):
            for (blob,) in ledger._rows(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
                assert b"planted" not in zlib.decompress(blob)


# --- The program itself


def program(repo, workdir, url, word, *overrides):
    """The first teacher alone, at `url`, in a process of its own."""
    command = [sys.executable, "-m", "experiments.collect", word, f"--workdir={workdir}"]
    if word != "status":
        command += [
            f"--config={repo}/configs/api.py:runlocal",
            "--config.teachers[1].share=0.01",
            *(f"--config.teachers[{n}].api.endpoints[0].base_url={url}" for n in (0, 1)),
            *overrides,
        ]
    return subprocess.Popen(
        command,
        cwd=repo,
        env={**os.environ, "PYTHONPATH": str(repo)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.proof
def test_killed_and_resumed(repo, tmp_path):
    def slow(call):
        return Answer(200, right(call), delay=0.2)

    with Server(slow) as server:
        running = program(repo, tmp_path, server.url, "run", "--config.teachers[0].api.concurrency=4")
        until = time.monotonic() + 180
        while len(server.calls) < 15 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        running.kill()
        assert running.communicate() is not None
        assert running.returncode == -signal.SIGKILL
        dead = program(repo, tmp_path, server.url, "status")
        said, _ = dead.communicate()
        kept = int(re.match(r"chatgpt: done (\d+) of 40;", said)[1])
        assert 0 < kept < QUERIES
        assert "in flight" in said
        again = program(repo, tmp_path, server.url, "run")
        _, words = again.communicate()
        assert again.returncode == 0, words
        assert re.search(r"chatgpt: done 40 of 40; requests/min \d+", words)  # plain, where no terminal is
        twice = [key for key, count in asked(server).items() if count > 1]
        assert len(twice) <= 4
    assert outcomes(tmp_path) == {"ok": QUERIES}


@pytest.mark.proof
def test_the_programs_status_and_words(repo, tmp_path):
    with Server(right) as server:
        budget = "--config.teachers[0].api.budget_tokens=500"
        stopped = program(repo, tmp_path, server.url, "run", budget)
        unknown = program(repo, tmp_path / "other", server.url, "colect")
        _, words = stopped.communicate()
        assert stopped.returncode == 3, words
        assert "stopped: the budget of 20.00 USD and 500 tokens is spent" in words
        assert "Traceback" not in words
        _, words = unknown.communicate()
        assert unknown.returncode == 1
        assert "unknown command 'colect'; known: run, plan, estimate, retry, status" in words


# --- Config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ()}, r"'teachers\[0\].api.endpoints' must be not empty, got an empty list"),
        ({"top_logprobs": 21}, "api.top_logprobs' must be at most 20, got 21"),
        ({"batch": True, "endpoints": ({"model": "a"}, {"model": "b"})}, "leave one in endpoints"),
        ({"endpoints": ({"model": "a", "key_variable": KEY},)}, "is no variable's name"),
        ({"endpoints": ({"model": "a", "base_url": "http://far/v1"},)}, "is not https"),
        ({"endpoints": {"model": "a", "key_variable": KEY}}, "api.endpoints' must be a list, got a mapping"),
        ({"temperatur": 1.0}, "unknown config key 'teachers\\[0\\].api.temperatur'; did you mean"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    values = json.loads(api_file.get_config("runlocal").to_json_best_effort())
    values["teachers"][0]["api"].update(changes)
    with pytest.raises(ConfigError, match=message) as raised:
        load(values)
    assert KEY not in str(raised.value)


def test_limits_of_several_endpoints_are_added():
    values = json.loads(api_file.get_config().to_json_best_effort())
    one = values["teachers"][0]["api"]["endpoints"][0]
    values["teachers"][0]["api"]["endpoints"] = [one, one]
    limits = load(values).teachers[0].api.limits
    assert (limits.requests, limits.tokens) == (600, 240_000)
    values["teachers"][0]["api"]["endpoints"] = [one, {"model": "unlimited"}]
    assert load(values).teachers[0].api.limits.requests == 0
