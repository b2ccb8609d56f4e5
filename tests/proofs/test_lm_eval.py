"""Against lm-eval itself: likelihoods item by item, and our student behind its model interface.

In an environment that has this package and lm-eval (`pip install -e '.[test,lm_eval]'`), then
`python -m pytest --proof -s tests/proofs/test_lm_eval.py`. The parity of likelihoods needs the real data.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import agieval, truthfulqa
from orca_jax.evaluation.lm_eval import RESULTS, SAMPLES, StudentLM, evaluate, windows
from orca_jax.records import Message, Outcome, Reply, Sampling
from orca_jax.serving.local import LocalStudent
from tests.student.students import SMALL, make_params

pytestmark = pytest.mark.proof
TASKS = Path(lm_eval.__file__).parent / "tasks"


class Replay(LM):
    """Answers each document with a stored text, each choice with a stored likelihood; keeps the prompts."""

    def __init__(self, replies):
        super().__init__()
        self.replies, self.prompts = replies, {}

    def generate_until(self, requests, disable_tqdm=False):
        for request in requests:
            self.prompts[request.task_name, request.doc_id] = request.args[0]
        return [self.replies[request.task_name][request.doc_id] for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        for request in requests:
            self.prompts[request.task_name, request.doc_id] = request.args[0]
        return [(self.replies[request.task_name][request.doc_id][request.idx], False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def local_task(folder, source, rows, split="test"):
    """A task of lm-eval, `source` among its files, over a local file; its name."""
    name = "local_" + source.replace("/", "_")
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"include: {TASKS / source}.yaml\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n",
        encoding="utf-8",
    )
    return name


def samples(model, names, folder):
    """lm-eval's samples of its tasks in `folder`, answered by `model`."""
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(names),
        task_manager=TaskManager(include_path=str(folder)),
        log_samples=True,
        bootstrap_iters=0,
    )["samples"]


def made_up_likelihoods(sizes):
    """A log-likelihood for each of so many choices; every fifth document's are all the same."""
    random = np.random.default_rng(0)
    return [[-7.0] * n if i % 5 == 0 else (-9 * random.random(n)).tolist() for i, n in enumerate(sizes)]


def likelihood_items(asked, likelihoods):
    replies = [Reply(Outcome.OK, "", raw={"log_likelihoods": found}) for found in likelihoods]
    return scoring.score(asked, replies, seed=0, mode="lm_eval_loglik", system_message_id=None)


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["aqua-rat", "logiqa-en", "lsat-ar", "sat-math"])
def test_agievals_likelihoods_score_as_in_lm_eval(shared_data, tmp_path, task):
    every = agieval.questions(shared_data / "agieval", mode="lm_eval_loglik")
    asked = [question for question in every if question.task == task]
    rows = [
        {"query": q.text, "choices": q.extra["continuations"], "gold": [q.extra["labels"].index(q.target)]}
        for q in asked
    ]
    name = local_task(tmp_path, f"agieval/{task}", rows)
    likelihoods = made_up_likelihoods([len(row["choices"]) for row in rows])
    found = samples(Replay({name: likelihoods}), [name], tmp_path)[name]
    theirs = {sample["doc_id"]: sample for sample in found}
    items = likelihood_items(asked, likelihoods)
    assert len(theirs) == len(items)
    for number, item in enumerate(items):
        assert item.correct == bool(theirs[number]["acc"]), number
        assert item.extra["metrics"]["acc_norm"] == theirs[number]["acc_norm"], number


@pytest.mark.realdata
def test_truthfulqas_prompts_and_likelihoods_are_those_of_lm_eval(shared_data, tmp_path):
    path = shutil.copy(shared_data / "truthfulqa/truthfulqa_408.jsonl", tmp_path)
    bare = truthfulqa.questions(path, mode="loglik", size=408)
    labelled = {"mc1": lambda q: [int(label == q.target) for label in q.extra["labels"]],
                "mc2": lambda q: [int(true) for true in q.extra["mc2"]]}  # fmt: skip
    rows = []
    for q in bare:
        count = {"mc1": slice(len(q.extra["labels"])), "mc2": slice(len(q.extra["labels"]), None)}
        targets = {
            f"{kind}_targets": {"choices": q.extra["continuations"][count[kind]], "labels": labels(q)}
            for kind, labels in labelled.items()
        }
        rows.append({"question": q.text.removeprefix("Q: ").removesuffix("\nA:"), **targets})
    likelihoods = made_up_likelihoods([len(q.extra["continuations"]) for q in bare])
    firsts = [len(q.extra["labels"]) for q in bare]
    names = {
        kind: local_task(tmp_path, f"truthfulqa/truthfulqa_{kind}", rows, "validation") for kind in labelled
    }
    model = Replay(
        {
            names["mc1"]: [found[:first] for found, first in zip(likelihoods, firsts)],
            names["mc2"]: [found[first:] for found, first in zip(likelihoods, firsts)],
        }
    )
    found = samples(model, names.values(), tmp_path)
    primer = model.prompts[names["mc1"], 0].removesuffix("\n\n" + bare[0].text)
    (tmp_path / truthfulqa.PRIMER).write_text(primer, encoding="utf-8")
    asked = truthfulqa.questions(path, mode="lm_eval_loglik", size=408)
    items = likelihood_items(asked, likelihoods)
    first, second = ({s["doc_id"]: s["acc"] for s in found[names[kind]]} for kind in labelled)
    assert len(first) == len(items) == 408
    for number, (question, item) in enumerate(zip(asked, items)):
        assert question.text == model.prompts[names["mc1"], number]
        assert item.correct == bool(first[number]), number
        assert item.extra["metrics"]["mc2"] == pytest.approx(second[number]), number


@pytest.fixture(scope="module")
def student(tokenizer):
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    return LocalStudent(
        make_params(config), config, tokenizer, "chatml", checkpoint="c", batch_size=4, max_length=64
    )


@pytest.fixture(scope="module")
def model(student):
    return StudentLM(student)


def requests(kind, *arguments):
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_replies_are_the_students_in_its_layout_and_end_at_stop_texts(student, model):
    texts = ["Is it red?", "2 + 2 = ?", "Why?"]
    settings = {"until": [" "], "max_gen_toks": 6, "temperature": 0.0}
    given = [(text, {**settings, "max_gen_toks": 6 + i // 2}) for i, text in enumerate(texts)]
    for (text, kwargs), said in zip(given, model.generate_until(requests("generate_until", *given))):
        sampling = Sampling(max_tokens=kwargs["max_gen_toks"], stop=(" ",))
        assert said == student.answer([[Message("user", text)]], sampling)[0].text
        assert " " not in said


def test_a_rendered_conversation_keeps_its_roles(student, model):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}]
    context = model.apply_chat_template(turns)
    found = model.loglikelihood(requests("loglikelihood", (context, "Yes"), ("Is it red?", "Yes")))
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    scores = student.log_likelihoods([(messages, "Yes"), (messages[1:], "Yes")])
    assert found == [(score.total, score.greedy) for score in scores]
    assert found[0] != found[1]


def test_a_whole_texts_likelihood_is_that_of_its_tokens_one_by_one(student, model, tokenizer):
    text = "the cat sees a red house. " * 20
    tokens = tokenizer.encode(text, first=True)
    length = student.generator.max_length
    assert len(tokens) > 2 * length
    prefix = int(student.prompt([Message("user", "?")])[0])
    total, whole = 0.0, [prefix, *tokens]
    for context, continuation in windows(tokens, prefix, length):
        assert len(context) + len(continuation) <= length + 1
        for i, token in enumerate(continuation):
            before = np.array([*context, *continuation[:i]], np.int32)
            (score,) = student.generator.scorer.score([before], [np.array([token], np.int32)])
            total += score.total
    assert [t for _, c in windows(tokens, prefix, length) for t in c] == whole[1:]
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(total, rel=1e-4)


@pytest.mark.realdata
def test_lm_eval_runs_its_own_task_on_the_student(student, shared_data, tmp_path):
    rows = json.loads((shared_data / "bbh/snarks.json").read_text(encoding="utf-8"))["examples"]
    name = local_task(tmp_path, "bbh/zeroshot/snarks", rows)
    out = tmp_path / "out"
    table = evaluate(student, [name], out, include_path=str(tmp_path), limit=3, bootstrap_iters=0)
    assert "flexible-extract" in table
    found = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    assert "exact_match,flexible-extract" in found["results"][name]
    samples = json.loads((out / SAMPLES).read_text(encoding="utf-8"))
    assert len(samples[name]) == 2 * 3
