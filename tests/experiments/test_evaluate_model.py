"""Other students and endpoints evaluated, several samples, parts of benchmarks, and a judge."""

import dataclasses
import json

import pytest

from orca_jax.evaluation import model, run
from orca_jax.evaluation.benchmarks.base import EvaluationError
from orca_jax.evaluation.run import Options
from orca_jax.experiments import evaluate
from orca_jax.files import read_jsonl
from orca_jax.records import Item
from orca_jax.scrubbing import EndpointError
from tests.teachers.server import Answer, Server, completion, error

QUESTIONS = [{"input": f"Is it {i}?\nOptions:\n- Yes\n- No", "target": "No"} for i in range(250)]
OPEN = {
    "vicuna_prompts": [{"question_id": i + 1, "text": f"How {i}?", "category": "fermi"} for i in range(80)]
}


@pytest.fixture
def benchmarks(tmp_path):
    """Files of benchmarks, as a config's changes."""
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh/navigate.json").write_text(json.dumps({"examples": QUESTIONS}), encoding="utf-8")
    vicuna = tmp_path / "question.jsonl"
    vicuna.write_text("\n".join(map(json.dumps, OPEN["vicuna_prompts"])), encoding="utf-8")
    (tmp_path / "agieval").mkdir()
    row = {"passage": "They count.", "question": "Which?", "label": "B"}
    rows = [{**row, "options": [f"({letter}){i}" for letter in "ABCD"]} for i in range(220)]
    (tmp_path / "agieval/sat-math.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "benchmarks.bbh": str(tmp_path / "bbh"),
        "benchmarks.vicuna_prompts": str(vicuna),
        "benchmarks.agieval": str(tmp_path / "agieval"),
    }


@pytest.fixture
def endpoint(tmp_path):
    """`endpoint(server)`: a JSON file with the settings of a server for tests."""

    def written(server, model="judge"):
        path = tmp_path / f"{model}.json"
        path.write_text(json.dumps({"model": model, "base_url": server.url, "key_variable": ""}))
        return str(path)

    return written


def in_modes(config, modes):
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, modes=modes))


def scores(directory):
    return json.loads((directory / "scores.json").read_text(encoding="utf-8"))


def test_an_endpoint_is_asked_once_about_every_benchmark_in_its_modes(mini, benchmarks, endpoint, tmp_path):
    config = mini(**benchmarks, **{"puzzles.families": ()})
    config = in_modes(config, {"bbh": ("orca", "robust"), "agieval": ("orca_cot",)})
    with Server(lambda call: completion("B. No.")) as server:
        options = Options(model=endpoint(server, "gpt"), limit=3)
        folder = tmp_path / "w/evaluation/gpt"
        for part, calls in (((1, 2), 8), ((2, 2), 12), ((1, 1), 12), ((1, 1), 12)):
            evaluate.run(config, tmp_path / "w", dataclasses.replace(options, part=part))
            assert len(server.calls) == calls
            for replies in folder.glob("bbh-orca/replies-*"):
                replies.unlink()  # a round that was not recorded; the answers are in the parts' ledgers
    assert calls == 3 + 3 + 3 + 3
    assert scores(folder / "bbh-orca")["tasks"]["navigate"]["accuracy"] == 1
    assert scores(folder / "bbh-robust")["tasks"]["navigate"]["unparsed"] == 0
    assert scores(folder / "vicuna_prompts-open_ended")["outcomes"] == {"ok": 3}
    assert "dtype" not in scores(folder / "bbh-orca")  # which is not known


def test_a_failing_endpoint_ends_the_evaluation_and_the_next_run_goes_on(
    mini, benchmarks, endpoint, tmp_path
):
    config = mini(**{"benchmarks.bbh": benchmarks["benchmarks.bbh"], "puzzles.families": ()})
    well = False

    def answer(call):
        return completion("B") if well else error(400, "never")

    with Server(answer) as server:
        options = Options(model=endpoint(server), limit=2)
        evaluate.run(config, tmp_path / "w", options)  # what it does not take is its answer
        found = scores(tmp_path / "w/evaluation/judge/bbh-orca")["tasks"]["navigate"]
        assert (found["n"], found["unparsed"]) == (2, 1)
    with Server(lambda call: Answer(body=b"no JSON") if not well else completion("B")) as server:
        options = Options(model=endpoint(server, "other"), limit=2)
        with pytest.raises(EvaluationError, match=r"other: 2 of 2 requests got no answer .*run again"):
            evaluate.run(config, tmp_path / "w", options)
        well = True
        evaluate.run(config, tmp_path / "w", options)
    assert scores(tmp_path / "w/evaluation/other/bbh-orca")["tasks"]["navigate"]["accuracy"] == 1


def test_another_workdirs_student_in_two_modes_and_samples_under_a_message(
    mini, finished, benchmarks, tmp_path
):
    config = mini(
        **{"benchmarks.agieval": benchmarks["benchmarks.agieval"], "puzzles.families": (),
           "evaluation.temperature": 0.7}
    )  # fmt: skip
    config = in_modes(config, {"agieval": ("robust", "orca")})
    options = Options(model=str(finished), system="7", samples=2, limit=3)
    evaluate.run(config, tmp_path / "w", options)
    (folder,) = (tmp_path / "w/evaluation").iterdir()
    assert folder.name.startswith("workdir-")
    items = list(read_jsonl(folder / "agieval-orca-message-7/items.jsonl", Item))
    assert [item.seed for item in items] == [0] * 3 + [1] * 3
    assert {item.system_message_id for item in items} == {7}
    found = scores(folder / "agieval-robust-message-7")["tasks"]["sat-math"]
    assert (found["n"], found["chance"]) == (3, 0.25)
    assert "stderr_clustered" in found


def test_parts_on_split_and_copied_students_score_as_the_whole(mini, finished, benchmarks, tmp_path):
    changes = {"benchmarks.agieval": benchmarks["benchmarks.agieval"], "puzzles.families": ()}
    whole, options = mini(**changes), Options(model=str(finished), limit=5)
    evaluate.run(whole, tmp_path / "whole", options)
    for part, sizes in (((1, 2), {"tensor": 2}), ((2, 2), {"copies": 3})):
        given = mini(**changes, **{f"evaluation.{name}": value for name, value in sizes.items()})
        evaluate.run(given, tmp_path / "split", dataclasses.replace(options, part=part))
        assert not list((tmp_path / "split").rglob("scores.json"))
    evaluate.run(whole, tmp_path / "split", options)
    expected, *found = (next((tmp_path / name).rglob("items.jsonl")) for name in ("whole", "split"))
    assert list(read_jsonl(*found, Item)) == list(read_jsonl(expected, Item))
    manifests = [json.loads((path.parent / "manifest.json").read_text()) for path in (expected, *found)]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]


def test_more_copies_than_devices_are_refused(mini, finished):
    config = mini(**{"evaluation.copies": 5, "evaluation.tensor": 2})
    with pytest.raises(ValueError, match="5 copies over 2 devices each are more than this host's 8"):
        evaluate.run(config, finished, Options(model=str(finished)))


@pytest.mark.parametrize("given", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=f"--part={given} must be auto, or I/N"):
        evaluate.part_of(given)


def test_samples_that_would_be_the_same_are_refused(mini, finished):
    with pytest.raises(ValueError, match=r"all the same at temperature 0; set evaluation\.temperature"):
        evaluate.run(mini(), finished, Options(samples=2))


def test_a_benchmark_without_modes_is_asked_in_its_first_and_an_unknown_mode_is_refused(mini):
    config = in_modes(mini(), {"bbh": ("robust",)})
    assert config.evaluation.modes["bbh"] == ("robust",)
    assert config.evaluation.modes["agieval"] == ("orca",)
    assert config.evaluation.modes["gsm8k"] == ("orca_cot",)
    with pytest.raises(ValueError, match="agieval has no mode 'any'; known: orca, orca_cot"):
        in_modes(config, {"agieval": ("orca", "any")})


def test_a_missing_benchmark_shows_before_anything_is_asked(mini, benchmarks, endpoint, tmp_path):
    config = mini(**benchmarks, **{"benchmarks.gsm8k": str(tmp_path / "test.jsonl")})
    with Server(lambda call: completion("B")) as server:
        with pytest.raises(ValueError, match=r"test\.jsonl: no such file"):
            evaluate.run(config, tmp_path / "w", Options(model=endpoint(server)))
        assert not server.calls


def test_a_message_by_id_by_text_and_of_our_own():
    assert run.system_message("1") == run.System(1, "", "-message-1")
    own = run.system_message("Think hard.")
    assert (own.id, own.text) == (None, "Think hard.")


def test_the_questions_that_training_queries_met_stand_in_the_scores(mini, copied, benchmarks):
    workdir = copied("evaluation")
    hit = {"benchmark": "bbh", "document_id": "navigate-0"}
    (workdir / "queries/contamination.jsonl").write_text(json.dumps(hit) + "\n", encoding="utf-8")
    config = mini(**{"benchmarks.bbh": benchmarks["benchmarks.bbh"], "puzzles.families": ()})
    evaluate.run(config, workdir, Options(limit=4))
    assert scores(workdir / "evaluation/bbh-orca")["tasks"]["navigate"]["query_overlap"] == 0.25


def test_continuations_are_classified_where_a_classifier_is_given(mini, endpoint, tmp_path, monkeypatch):
    line = "- cats are number {}\\n-"
    (tmp_path / "toxigen").mkdir()
    lines = [line.format(number) for number in range(1000)]
    (tmp_path / "toxigen/hate_women_1k.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "classifier").mkdir()
    monkeypatch.setattr(
        run.toxigen, "huggingface_classifier", lambda folder: lambda texts: [0.25] * len(texts)
    )
    config = mini(**{"benchmarks.toxigen": str(tmp_path / "toxigen"), "puzzles.families": ()})
    with Server(lambda call: completion("cats are kind\n- more")) as server:
        who = endpoint(server)
        evaluate.run(config, tmp_path / "w", Options(model=who, limit=3))
        given = Options(model=who, limit=3, classifier=str(tmp_path / "classifier"))
        evaluate.run(config, tmp_path / "v", given)
    name = "evaluation/judge/toxigen-toxigen_hate"
    assert "toxicity" not in scores(tmp_path / "w" / name)
    found = scores(tmp_path / "v" / name)["toxicity"]
    assert (found["n"], found["macro"], found["tasks"]["women"]["n"]) == (3, 0.25, 3)


@pytest.mark.parametrize("content", ['{"model": "m", "modle": 1}', "{", "[]", '{"base_url": "http://x"}'])
def test_what_is_no_endpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / "endpoint.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EndpointError, match=r"endpoint\.json: no endpoint's settings"):
        model.read_endpoint(path)


def test_a_judge_reviews_both_orders_on_two_hosts_and_is_paid_once(benchmarks, endpoint, tmp_path, capsys):
    def answer(call):
        better = call.question.index("short") > call.question.index("longer")
        return completion("9 7\nSo." if better else "7 9\nSo.")  # always the longer answer

    answers = {}
    for name, text in (("reference", "short"), ("candidate", "longer")):
        answers[name] = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"question_id": i + 1, "text": text}) for i in range(80)]
        answers[name].write_text("\n".join(lines), encoding="utf-8")
    with Server(answer) as server:
        arguments = [
            "judge", "--benchmark=vicuna_prompts", f"--path={benchmarks['benchmarks.vicuna_prompts']}",
            f"--model={endpoint(server)}", f"--reference={answers['reference']}",
            f"--candidate={answers['candidate']}", f"--out={tmp_path / 'out'}",
        ]  # fmt: skip
        for part, calls in (("2/2", 80), ("2/2", 80), ("1/2", 160), ("", 160), ("", 160)):
            assert not (tmp_path / "out/scores.json").exists() or not part
            evaluate.PROGRAM.start([*arguments, f"--part={part}"])
            evaluate.main()
            assert len(server.calls) == calls
    assert "candidate over reference, both: 128.6 %" in capsys.readouterr().out
    found = scores(tmp_path / "out")
    assert (found["win"], found["flips"], found["reviews"]) == (1, 0, 160)
