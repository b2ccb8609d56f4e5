"""The Batch API: files within limits, submitting, polling, resuming after a kill, partial results."""

import asyncio
import itertools
import json
import random
import re
from urllib.parse import urlsplit

import pytest

pytest.importorskip("openai")

from orca_jax.config_teachers import ApiConfig, OpenAIConfig, Price
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.teachers import batch, collection
from orca_jax.teachers.batch import STATE, BatchError, Batches, read_state
from orca_jax.teachers.endpoint import EndpointRefused, Fault, Request, request_id
from orca_jax.teachers.ledger import Attempt, Ledger
from orca_jax.teachers.limits import Budget, BudgetSpent
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import bound
from tests.teachers.server import Answer, Server, completion, error
from tests.teachers.tried import answer, tried

PRICE = Price(prompt=0.0005, completion=0.001)


class BatchAPI:
    """Files and batches. A batch ends at the `polls`-th look; `result(question)` is a line's answer."""

    def __init__(
        self, result=lambda question: completion(f"re {question}", (4, 6)), status="completed", polls=2
    ):
        self.result, self.status, self.polls = result, status, polls
        self.files, self.batches, self.looks = {}, {}, {}
        self.errors = None
        self.broken = lambda method, path: None
        self.most_open = 0

    def __call__(self, call):
        path = urlsplit(call.path).path
        if (answer := self.broken(call.method, path)) is not None:
            return answer
        if call.method == "POST" and path.endswith("/files"):
            return self.upload(call.content)
        if call.method == "POST" and path.endswith("/batches"):
            return self.create(call.body)
        if path.endswith("/content"):
            return Answer(200, self.files[path.split("/")[-2]])
        if path.endswith("/batches"):
            return {"object": "list", "data": list(self.batches.values()), "has_more": False}
        return self.look(path.split("/")[-1])

    def upload(self, content):
        (body,) = re.findall(rb"\r\n\r\n(\{.*?\n)\r\n--", content, re.DOTALL)
        self.files[name := f"file-{len(self.files)}"] = body
        return {
            "id": name,
            "object": "file",
            "bytes": len(body),
            "created_at": 1,
            "filename": "x",
            "purpose": "batch",
        }

    def create(self, body):
        name = f"batch_{len(self.batches)}"
        self.looks[name] = 0
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "created_at": 1,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        } | body
        self.most_open = max(
            self.most_open, sum(one["status"] == "validating" for one in self.batches.values())
        )
        return self.batches[name]

    def look(self, name):
        batch = self.batches[name]
        self.looks[name] += 1
        if self.looks[name] == self.polls:
            batch |= {"status": self.status, "errors": self.errors}
            if self.status != "failed":
                self.finish(batch)
        return batch

    def finish(self, batch):
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        good, bad = b"", b""
        for line in lines:
            answer = self.result(line["body"]["messages"][-1]["content"])
            row = {"id": "x", "custom_id": line["custom_id"], "error": None}
            if isinstance(answer, dict):
                good += json.dumps(row | {"response": {"status_code": 200, "body": answer}}).encode() + b"\n"
            elif isinstance(answer, int):
                response = {"status_code": answer, "body": {"error": {"message": "no"}}}
                bad += json.dumps(row | {"response": response}).encode() + b"\n"
            elif answer == "expired":
                failure = {"code": "batch_expired", "message": "This request could not be executed"}
                bad += json.dumps(row | {"response": None, "error": failure}).encode() + b"\n"
        for kind, content in (("output", good), ("error", bad)):
            if content:
                self.files[name := f"file-{len(self.files)}"] = content
                batch[f"{kind}_file_id"] = name

    def inputs(self):
        """The questions of each batch."""
        return [
            [
                json.loads(line)["body"]["messages"][-1]["content"]
                for line in self.files[b["input_file_id"]].splitlines()
            ]
            for b in self.batches.values()
        ]


def requests(count):
    sampling = Sampling(0.7, 0.95, 50)
    return [
        Request((Message("system", ""), Message("user", f"q{number}")), sampling) for number in range(count)
    ]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "batches"


def batches(folder, ledger, config, *, budget=None, requests=50_000, price=PRICE):
    api = ApiConfig(endpoints=(config,), identity="teacher", price=price, batch_requests=requests)
    return Batches(folder, api, ledger, budget or Budget())


def api_config(url):
    return ApiConfig(endpoints=(OpenAIConfig(model="gpt-4", base_url=url, key_variable=""),), price=PRICE)


def collect(server, folder, ledger, asked, *, config=None, **settings):
    config = config or OpenAIConfig(model="gpt-4", base_url=server.url, key_variable="")

    async def run():
        made = batches(folder, ledger, config, **settings)
        await made.run(lambda: asked, poll_seconds=0.01)
        return made

    return asyncio.run(run())


def texts(ledger, asked):
    answers = ledger.get_many(request_id("teacher", request) for request in asked)
    return {answer.reply.text for answer in answers.values()}


def test_everything_is_collected(folder, ledger):
    api = BatchAPI()
    with Server(api) as server:
        collect(server, folder, ledger, requests(25), requests=10)
    assert texts(ledger, requests(25)) == {f"re q{number}" for number in range(25)}
    assert sorted(map(len, api.inputs()), reverse=True) == [10, 10, 5]
    status = ledger.status()["teacher"]
    assert (status.answers, status.attempts, status.in_flight) == (25, {Outcome.OK: 25}, 0)
    assert status.usage == Usage(100, 150)


def test_results_are_read_as_answers_are(folder, ledger):
    answers = {
        "q0": completion("half", (27, 6), finish_reason="MAX_TOKENS"),
        "q1": completion("half", (27, 6), finish_reason="insufficient_system_resource"),
        "q2": completion("word " * 10, None) | {"usage": {"prompt_tokens": 1e30, "completion_tokens": 1e30}},
        "q3": completion("half", (27, 6), finish_reason="SAFETY"),
    }
    with Server(BatchAPI(answers.get)) as server:
        batches = collect(server, folder, ledger, requests(4))
    found = [tried(ledger, request_id("teacher", one))[0].reply for one in requests(4)]
    assert [reply.outcome for reply in found] == ["length", "error", "ok", "filtered"]
    assert found[1].raw["finish_reason"] == "insufficient_system_resource"
    assert 5 < found[2].usage.completion_tokens <= 50
    assert batches.batches[0].used == sum((reply.usage for reply in found), Usage())


def test_lines_are_what_is_documented(folder, ledger):
    api, (request, *_) = BatchAPI(), requests(1)
    with Server(api) as server:
        collect(server, folder, ledger, [request])
        (batch,) = api.batches.values()
    assert json.loads((folder / "00001.jsonl").read_text()) == {
        "custom_id": request_id("teacher", request).hex(),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4",
            "messages": [{"role": "user", "content": "q0"}],
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 50,
        },
    }
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")


def test_azure(folder, ledger, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "planted-key")
    api = BatchAPI()
    with Server(api) as server:
        config = OpenAIConfig(
            model="deployed", base_url=server.azure_url, api_version="2024-10-21", key_variable="AZURE_KEY"
        )
        collect(server, folder, ledger, requests(3), config=config)
        assert all(call.headers["api-key"] == "planted-key" for call in server.calls)
        assert {urlsplit(call.path).path.split("/")[1] for call in server.calls} == {"openai"}
    assert len(texts(ledger, requests(3))) == 3
    assert json.loads((folder / "00001.jsonl").read_text().splitlines()[0])["url"] == "/chat/completions"


def test_files_keep_to_the_size(folder, ledger, monkeypatch):
    monkeypatch.setattr(batch, "SIZE", 1000)
    with Server(BatchAPI()) as server:
        collect(server, folder, ledger, requests(20))
    sizes = [path.stat().st_size for path in folder.glob("0000?.jsonl")]
    assert len(sizes) > 3
    assert max(sizes) <= 1000


def test_a_request_greater_than_a_file(folder, ledger, monkeypatch):
    monkeypatch.setattr(batch, "SIZE", 100)
    with Server(BatchAPI()) as server, pytest.raises(ValueError, match="fits into no batch file"):
        collect(server, folder, ledger, requests(1))


def test_so_many_are_under_way(folder, ledger, monkeypatch):
    monkeypatch.setattr(batch, "OPEN_BATCHES", 2)
    api = BatchAPI(polls=3)
    with Server(api) as server:
        collect(server, folder, ledger, requests(30), requests=3)
    assert api.most_open == 2
    assert ledger.status()["teacher"].answers == 30


def test_answered_and_equal_ones_are_left_out(folder, ledger):
    api = BatchAPI()
    with Server(api) as server:
        collect(server, folder, ledger, requests(10))
        collect(server, folder, ledger, requests(15) * 2)
        collect(server, folder, ledger, requests(15))
    assert sorted(map(len, api.inputs()), reverse=True) == [10, 5]


def test_partial_results_are_kept_and_the_rest_submitted_again(folder, ledger):
    tried = set()

    def result(question):
        number = int(question[1:])
        if number % 3 == 0 or question in tried:
            return completion(f"re {question}")
        tried.add(question)
        return "expired" if number % 3 == 1 else None

    api = BatchAPI(result, status="expired")
    with Server(api) as server:
        collect(server, folder, ledger, requests(30))
    assert sorted(map(len, api.inputs()), reverse=True) == [30, 20]
    assert len(texts(ledger, requests(30))) == 30
    assert ledger.status()["teacher"].attempts == {Outcome.OK: 30, Outcome.ERROR: 20}
    assert ledger.status()["teacher"].in_flight == 0


def test_filtered_and_hopeless_ones_are_not(folder, ledger):
    def result(question):
        return {"q0": completion(None, finish_reason="content_filter"), "q1": 400, "q2": 500}.get(
            question, completion()
        )

    api = BatchAPI(result)
    with Server(api) as server:
        collect(server, folder, ledger, requests(5))
    assert api.inputs() == [["q0", "q1", "q2", "q3", "q4"], ["q2"], ["q2"]]
    assert answer(ledger, request_id("teacher", requests(1)[0])).reply.outcome is Outcome.FILTERED
    (attempt,) = tried(ledger, request_id("teacher", requests(2)[1]))
    assert attempt.reply.raw["fault"] == Fault.REQUEST


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step):
    """Makes the `step`-th thing that a collection does its last."""
    steps = itertools.count(1)

    def counting(function):
        def wrapper(*arguments, **named):
            if next(steps) == step:
                raise Killed
            return function(*arguments, **named)

        return wrapper

    monkeypatch.setattr(Batches, "_write_state", counting(Batches._write_state))
    monkeypatch.setattr(OpenAIEndpoint, "client", counting(OpenAIEndpoint.client))
    for name in ("record", "note"):
        monkeypatch.setattr(Ledger, name, counting(getattr(Ledger, name)))


@pytest.mark.parametrize("first", range(1, 5))
def test_a_kill_at_any_step_loses_and_repeats_nothing(first, tmp_path, monkeypatch):
    for step in itertools.count(first, 4):
        api, folder, killed = BatchAPI(polls=1), tmp_path / str(step), False
        with Server(api) as server, Ledger(tmp_path / f"{step}.sqlite") as ledger:
            with monkeypatch.context() as patched:
                kill_at(patched, step)
                try:
                    collect(server, folder, ledger, requests(7), requests=4)
                except Killed:
                    killed = True
            collect(server, folder, ledger, requests(7), requests=4)
            status = ledger.status()["teacher"]
        assert sorted(itertools.chain(*api.inputs())) == sorted(f"q{number}" for number in range(7)), step
        assert (status.answers, status.attempts, status.in_flight) == (7, {Outcome.OK: 7}, 0), step
        if not killed:
            assert step > 20
            return


def test_a_server_that_fails_now_and_then(folder, ledger):
    api, moments = BatchAPI(), random.Random(0)
    api.broken = lambda method, path: error(503) if moments.random() < 0.3 else None
    with Server(api) as server:
        collect(server, folder, ledger, requests(7), requests=3)
    assert ledger.status()["teacher"].attempts == {Outcome.OK: 7}
    assert len(api.batches) == 3


def test_a_full_queue_is_waited_for(folder, ledger):
    api = BatchAPI()
    full = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "queue", "line": None}]}
    looked = set()

    def look(name):
        batch = api.batches[name]
        if name == "batch_1" and name not in looked:
            looked.add(name)
            return batch | {"status": "failed", "errors": full}
        if name == "batch_0" and not looked:  # it is under way until the other is refused
            return batch
        return BatchAPI.look(api, name)

    api.look = look
    every = requests(8)
    # Both files fit once; what was reserved for the refused one must be given back.
    budget = Budget(tokens=sum((bound(one.messages, one.sampling) for one in every), Usage()).total)
    with Server(api) as server:
        collect(server, folder, ledger, every, requests=4, budget=budget)
    assert ledger.status()["teacher"].attempts == {Outcome.OK: 8}
    assert len(api.batches) == 3
    assert budget.tokens_spent == 8 * 10


def test_a_refused_file(folder, ledger):
    api = BatchAPI(status="failed")
    api.errors = {
        "object": "list",
        "data": [{"code": "invalid_json_line", "message": "line 3 is bad", "line": 3}],
    }
    with (
        Server(api) as server,
        pytest.raises(BatchError, match=r"00001\.jsonl: .* invalid_json_line: line 3 is bad"),
    ):
        collect(server, folder, ledger, requests(3))
    assert ledger.status()["teacher"].in_flight == 0


def test_a_wrong_key(folder, ledger, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-planted-key")
    api = BatchAPI()
    api.broken = lambda method, path: error(401, "Incorrect API key provided: sk-planted-key")
    with Server(api) as server:
        config = OpenAIConfig(model="gpt-4", base_url=server.url, key_variable="TEACHER_KEY")
        with pytest.raises(EndpointRefused, match="key is wrong") as raised:
            collect(server, folder, ledger, requests(3), config=config)
    assert "planted" not in str(raised.value)


def test_budget(folder, ledger):
    api, budget = BatchAPI(), Budget(tokens=800)
    with Server(api) as server, pytest.raises(BudgetSpent):
        collect(server, folder, ledger, requests(50), requests=4, budget=budget)
    assert 0 < ledger.status()["teacher"].answers < 50
    assert budget.tokens_spent == 10 * ledger.status()["teacher"].answers <= 800
    status = ledger.status()["teacher"]
    assert status.in_flight == 50 - status.answers  # in files that wait for money
    with Server(api) as server:
        collect(server, folder, ledger, requests(50), requests=4, budget=Budget(tokens=8000))
    status = ledger.status()["teacher"]
    assert (status.in_flight, status.attempts) == (0, {Outcome.OK: 50})
    spent = collection.count_spent(Budget(), api_config(server.url), status, folder)
    assert spent.money_spent == pytest.approx(PRICE.times(0.5).cost(status.usage))


def test_a_file_that_was_not_submitted_leaves_no_notes(folder, ledger):
    """The file that is written instead is another one if one of its requests was answered meanwhile."""
    api, asked = BatchAPI(), requests(8)
    with Server(api) as server:
        with pytest.raises(BudgetSpent):
            collect(server, folder, ledger, asked, requests=4, budget=Budget(tokens=1))
        assert ledger.status()["teacher"].in_flight == 8
        ledger.record([Attempt("teacher", asked[0], Reply(Outcome.OK, "elsewhere", Usage(4, 6)))])
        collect(server, folder, ledger, asked, requests=4)
    status = ledger.status()["teacher"]
    assert (status.in_flight, status.attempts) == (0, {Outcome.OK: 8})
    assert len(list(itertools.chain(*api.inputs()))) == 7
    assert collection.count_spent(Budget(), api_config(server.url), status, folder).tokens_spent == 80


def test_results_that_cannot_be_read_are_left_out(folder, ledger):
    api = BatchAPI()
    finish = api.finish

    def torn(batch):
        finish(batch)
        if len(api.batches) == 1:
            content = api.files[batch["output_file_id"]]
            api.files[batch["output_file_id"]] = b"nonsense\n{}\n" + content[:-40]

    api.finish = torn
    with Server(api) as server:
        collect(server, folder, ledger, requests(4))
    assert sorted(map(len, api.inputs()), reverse=True) == [4, 1]
    assert len(texts(ledger, requests(4))) == 4


def test_a_broken_state_file(folder, ledger):
    folder.mkdir()
    (folder / STATE).write_text("[{}]")
    with pytest.raises(BatchError, match=r"batches\.json cannot be read"):
        batches(folder, ledger, OpenAIConfig(model="gpt-4", key_variable=""))


def test_what_the_results_used_is_kept_and_open_ones_are_reserved_on_resume(folder, ledger):
    api = BatchAPI(polls=2)
    with Server(api) as server:
        config = OpenAIConfig(model="gpt-4", base_url=server.url, key_variable="")

        async def begin():
            async with asyncio.timeout(0.5):
                await batches(folder, ledger, config).run(lambda: requests(5), poll_seconds=60)

        with pytest.raises(TimeoutError):
            asyncio.run(begin())
        bound = read_state(folder)[0].file.bound
        budget = Budget(tokens=bound.prompt_tokens + bound.completion_tokens)
        collect(server, folder, ledger, requests(5), budget=budget)
    (state,) = read_state(folder)
    assert state.used == Usage(20, 30)
    assert (budget.tokens_spent, len(api.batches)) == (50, 1)
