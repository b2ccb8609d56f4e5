"""Our student behind lm-eval's model interface, and lm-eval's own tasks on it.

In an environment that has this package and lm-eval (`pip install -e '.[test,lm_eval]'`), then
`python -m pytest --proof -s tests/proofs/test_lm_eval.py`. Its own tasks need the real data.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance

from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.lm_eval import RESULTS, StudentLM, evaluate, windows
from orca_jax.evaluation.replies import read_items
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import LocalStudent
from tests.student.students import SMALL, make_params

pytestmark = pytest.mark.proof
TASKS = Path(lm_eval.__file__).parent / "tasks"


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


@pytest.fixture(scope="module")
def student(tokenizer):
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    return LocalStudent(
        make_params(config), config, tokenizer, "chatml", checkpoint="c", batch_size=4, max_length=64
    )


@pytest.fixture
def model(student, tmp_path):
    return StudentLM(student, tmp_path / "answers.jsonl")


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
    assert len(read_items(out, "exact_match,strict-match")) == 3


@pytest.mark.realdata
def test_choices_by_likelihood_are_lm_evals_own_over_local_files(student, shared_data, tmp_path):
    every = registry.questions("agieval", shared_data / "agieval", mode="orca")
    asked = [question for question in every if question.task == "sat-math"]
    rows = [
        {"query": q.text, "choices": q.extra["options"], "gold": [q.choices.index(q.target)]} for q in asked
    ]
    name = local_task(tmp_path, "agieval/sat-math", rows)
    evaluate(student, [name], tmp_path / "out", include_path=str(tmp_path), limit=3, bootstrap_iters=0)
    lines = (tmp_path / "out" / f"samples_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = list(map(json.loads, lines))
    assert len(found) == 3
    for sample, row in zip(sorted(found, key=lambda sample: sample["doc_id"]), rows):
        assert [text.strip() for _, text in sample["arguments"]] == [text.strip() for text in row["choices"]]
        choices = [((Message("user", context),), text) for context, text in sample["arguments"]]
        totals = [score.total for score in student.log_likelihoods(choices)]
        assert [float(total) for total, _ in sample["filtered_resps"]] == pytest.approx(totals)
        assert sample["acc"] == (int(np.argmax(totals)) in row["gold"])


def test_parts_of_a_task_give_the_results_of_the_whole(student, tmp_path):
    """Choices by likelihood and replies, on two hosts; the whole then computes nothing."""
    rows = [{"query": f"Is it {i}?", "choices": ["(A) yes", "(B) no"], "gold": [i % 2]} for i in range(7)]
    likely = local_task(tmp_path, "agieval/sat-math", rows)
    rows = [{"input": f"Is it {i}?\nOptions:\n(A) Yes\n(B) No", "target": "(A)"} for i in range(5)]
    said = local_task(tmp_path, "bbh/zeroshot/snarks", rows)
    given = dict(include_path=str(tmp_path), bootstrap_iters=0)
    evaluate(student, [likely, said], tmp_path / "whole", **given)
    for part in ((1, 2), (2, 2)):
        assert "of 2 is answered" in evaluate(student, [likely, said], tmp_path / "parts", part=part, **given)
    lines = [(tmp_path / "parts" / f"answers-{which}-of-2.jsonl").read_text() for which in (1, 2)]
    assert [len(text.splitlines()) for text in lines] == [7 + 3, 7 + 2]
    assert not (tmp_path / "parts" / RESULTS).exists()
    evaluate(student, [likely, said], tmp_path / "parts", **given)
    assert not (tmp_path / "parts" / "answers.jsonl").read_text()
    for task in (likely, said):
        one, other = ((tmp_path / name / f"samples_{task}.jsonl").read_text() for name in ("whole", "parts"))
        assert one == other
