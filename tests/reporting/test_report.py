"""The page: what is in it for a run and an arm set, that nothing in it can act, how a browser takes it."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from orca_jax import artifacts, files
from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Item, Outcome, Usage
from orca_jax.reporting import report, report_results, report_sources, tables
from orca_jax.training import metrics

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\n&amp; \ud83d half"
TASKS = ("navigate", "object_counting", "web_of_lies")
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(html.parser.HTMLParser):
    """A page's elements with their attributes, its text, and the elements left open or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("th", "td", "small"):
            self.text += " "

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data

    def all(self, tag, class_=None):
        classes = class_.split() if class_ else []
        return [
            a for t, a in self.elements if t == tag and set(classes) <= set((a.get("class") or "").split())
        ]


def write_evaluation(directory, message, *, right, text="So the answer is Yes.", size=4):
    """Items of three tasks, two difficulties each: the first `right` are right, the last is unparsed."""
    items, replies = [], []
    for task in TASKS:
        for index in range(size):
            answer = "Yes" if index < right else None if index == size - 1 else "No"
            common = dict(benchmark="puzzles", task=task, id=f"{task}-{index}", mode="robust", seed=0)
            common |= dict(system_message_id=message, outcome=Outcome.OK)
            extra = {"difficulty": 1 + index % 2}
            items.append(Item(**common, correct=answer == "Yes", answer=answer, target="Yes", extra=extra))
            replies.append(evaluation_run.RecordedReply(request="", text=text, usage=Usage(), **common))
    scores = {
        "benchmark": "puzzles", "mode": "robust", "system_message_id": message,
        "tasks": {task: {"chance": 0.5} for task in TASKS},
    }  # fmt: skip
    scoring.write(directory, items, scores)
    files.write_jsonl(directory / evaluation_run.REPLIES, replies)


def write_training(directory, inputs, stages=("apprentice", "expert")):
    speed = {"tokens_per_second": 1000, "data_wait": 0.25, "save_wait": 0.05, "learning_rate": 1e-3}
    rows = [
        {"kind": "train", "step": step, "stage": stages[(step - 1) // 10], "loss": 5 / step}
        | {**speed, "tokens_per_second": 1000 + step}
        for step in range(1, 21)
    ]
    rows.append({"kind": "validation", "step": 20, "loss": 0.5, "loss/teacher=apprentice": 0.7})
    rows.append({"kind": "evaluation", "step": 20, "accuracy": 0.5, "stderr": 0.05, "n": 100, "chance": 0.25})
    rows[-1]["accuracy/family=navigate"] = 0.75
    (directory / "training").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "training" / metrics.FILE).write_text(lines, encoding="utf-8")
    return artifacts.Artifact(directory / "training", {"program": "train"}, inputs).finish({"steps": 20})


def write_data(directory, teacher="apprentice", kind="oracle"):
    provenance = {"program": "collect", "teacher": {"kind": kind}}
    traces = artifacts.Artifact(directory / "traces" / teacher, provenance, {}).finish({"traces": 3})
    columns = {
        "supervised": [5, 10, 20], "collection": ["puzzles"] * 3,
        "task": ["navigate", "navigate", "web_of_lies"], "system_message_id": [1, 7, 7],
    }  # fmt: skip
    store = directory / "tokens" / teacher
    store.mkdir(parents=True)
    np.savez(store / "columns.npz", **columns)
    np.save(store / "lengths.npy", [30, 40, 50])
    inputs = {teacher: traces["fingerprint"]}
    return artifacts.Artifact(store, {"program": "prepare"}, inputs).finish({"examples": 3})["fingerprint"]


def write_run(directory, *, text="So the answer is Yes.", right=2):
    fingerprint = write_data(directory)
    training = write_training(directory, {"apprentice": fingerprint})
    for message, more in ((1, 0), (7, 1)):
        evaluated = directory / "evaluation" / f"puzzles-message-{message}"
        write_evaluation(evaluated, message, right=right + more, text=text)
        artifacts.Artifact(evaluated, {"program": "evaluate"}, {"training": training["fingerprint"]}).finish(
            {"items": 12}
        )
    return directory


def write_whole_run(directory):
    write_run(directory, text=HOSTILE)
    (directory / "experiment.json").write_text(json.dumps({"name": "mini", "seed": 3}), encoding="utf-8")
    (directory / "table.md").write_text("# mini\n\n## Written\n\n| a | b |\n| - | -: |\n| x | 1 |\n")
    (directory / "cards/apprentice").mkdir(parents=True)
    (directory / "cards/apprentice/README.md").write_text("# apprentice\n\n## Variety\n\nDistinct n-grams.\n")
    return directory


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with its page; read only."""
    directory = write_whole_run(tmp_path_factory.mktemp("reported") / "mini")
    page_of(directory)
    return directory


@pytest.fixture
def arm_set(tmp_path):
    directory = tmp_path / "set"
    for number, arm in enumerate(("answers", "explained")):
        for seed in (0, 1):
            write_run(directory / arm / f"seed-{seed}", right=1 + number + seed * (1 - number))
    about = {
        "name": "main", "question": "Do explanations help?", "baseline": "answers", "seeds": [0, 1, 2],
        "results": [{"title": "own message", "evaluation": "puzzles-message-7"}],
        "arms": [
            {"name": "answers", "note": "no steps", "changes": {"data": {"supervise": "last"}}},
            {"name": "explained", "evaluations": {"own message": "puzzles-message-1"}},
            {"name": "never begun"},
        ],
    }  # fmt: skip
    (directory / "set.json").write_text(json.dumps(about), encoding="utf-8")
    (directory / "table.md").write_text("# main\n\nNo significant difference.\n", encoding="utf-8")
    return directory


@dataclasses.dataclass
class Config:
    """The keys of a config: one that must be given, and two with defaults."""

    name: str
    seed: int = 0
    x: int = 1


def asked(config):
    """The questions of three of four items a task."""
    keys = [(task, i) for task in TASKS for i in range(3)]
    return [Question("puzzles", task, f"{task}-{i}", f"Is {task} {i} so?", "Yes") for task, i in keys]


def page_of(workdir):
    path = workdir / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "load", lambda kept: Config(kept["name"], kept["seed"]))
        patch.setattr(report.evaluation_run, "evaluations", lambda config: {"": asked(config)})
        assert report.write(workdir) == path
    return read(workdir)


def read(workdir):
    page = Page((workdir / "report.html").read_text(encoding="utf-8"))
    assert not page.wrong
    assert not page.open
    return page


def section(workdir, name):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    return Page(re.search(rf'<section id="{name}">.*?</section>', text, re.S)[0])


def test_a_run_has_every_part(reported):
    page = read(reported)
    captions = [text for text in page.text.split("\n") if text.strip()]
    for caption in (
        "Training loss by stage.", "Validation loss on held-out traces, by teacher.", "Learning rate.",
        "Throughput, padding not counted.", "Written", "Examples by system message",
        "Different from the default",
        "Accuracy on validation puzzles while training, by family: 100 questions, standard error at most 5.0 "
        "over all.",
    ):  # fmt: skip
        assert caption in captions
    written = (reported / "report.html").read_text(encoding="utf-8")
    assert "navigate: 75 at step 20" in written
    assert "chance: 25 at step 20" in written
    assert "Distinct n-grams." in page.text
    assert tables.ORACLE_NOTE in page.text
    assert page.text.count("not kept") == 3  # the questions whose text is not given


def test_accuracies_have_n_and_errors_by_task_and_difficulty(reported):
    text = " ".join(section(reported, "results").text.split())
    assert "navigate 4 50.0 50.0 [15.0, 85.0] 25.0 unparsed 75.0 [30.1, 95.4] 25.0 unparsed" in text
    assert "difficulty 1 2 50.0 [9.5, 90.5] 100.0 [34.2, 100.0]" in text
    assert "mean of 3 tasks 12 50.0 50.0 [29.8, 70.2] 75.0 [49.1, 86.8]" in text


def tiles(page_path):
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page_path.read_text(encoding="utf-8"))
    return dict(found)


def test_headline_figures_name_benchmark_mode_message_and_n(reported):
    found = tiles(reported / "report.html")
    asked = "puzzles, mode robust, {}: accuracy in %, mean of 3 tasks, n = 12"
    assert found[asked.format("empty message")] == "50.0 [29.8, 70.2]"
    assert found[asked.format("step by step")] == "75.0 [49.1, 86.8]"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run with its page: a part of the puzzles, evaluated twice, long replies, toxicity, other columns."""
    run = write_run(tmp_path_factory.mktemp("odd") / "mini", text="a" * 9000 + "end")
    for evaluated in (run / "evaluation").iterdir():
        provenance = {"program": "evaluate", "name": evaluated.name, "evaluation": {"per_family": 6}}
        (evaluated / "manifest.json").unlink()
        artifacts.Artifact(evaluated, provenance, {}).finish({"items": 12})
    write_evaluation(run / "evaluation/puzzles-once-more", 1, right=0)
    store = run / "tokens/apprentice"
    with np.load(store / "columns.npz") as columns:
        kept = {**columns, "system_message_id": [1, 7, -1], "collection": ["niv", "", "flan"]}
    np.savez(store / "columns.npz", **kept)
    (run / "evaluation/toxigen-toxigen_hate").mkdir()
    toxicity = {"macro": 0.25, "stderr": 0.01, "tasks": {"women": {}}}
    scores = json.dumps({"n": 3, "outcomes": {"ok": 3}, "toxicity": toxicity})
    (run / "evaluation/toxigen-toxigen_hate/scores.json").write_text(scores)
    page_of(run)
    return run


def test_a_part_of_the_questions_is_marked_as_one(odd):
    text = " ".join(section(odd, "results").text.split())
    assert "navigate 4 of 6 50.0 50.0 [15.0, 85.0]" in text
    assert "mean of 3 tasks 12 of 18" in text
    assert "n of N: a part of the N questions" in text
    assert any(name.endswith("n = 12 of 18") for name in tiles(odd / "report.html"))
    assert "n = 4 of 6" in read(odd).text  # of the bars


def test_two_evaluations_alike_are_both_shown(odd):
    labels = {reply["data-label"] for reply in read(odd).all("div", "reply")}
    assert labels == {"empty message", "empty message (puzzles-once-more)", "step by step"}


def test_a_message_of_the_conversations_own_is_not_called_none(odd):
    text = " ".join(section(odd, "data").text.split())
    assert "other (its own, not among the 16) 1" in text
    assert "no message" not in text
    assert "niv (the paper's NiV2) 1" in text
    assert "not named 1" in text


def test_stages_have_their_losses_and_their_goodput(reported):
    text = " ".join(section(reported, "training").text.split())
    assert "apprentice 10 0.5000 – 1,006 70.0 % expert 20 0.2500 0.5000 1,016 70.0 %" in text


def test_every_figure_says_what_it_shows_and_every_table_has_a_caption(reported):
    page = read(reported)
    drawings, figures = page.all("svg"), page.all("figure")
    assert len(drawings) == len(figures) == len(page.all("figcaption")) == 10
    assert all(drawing["role"] == "img" and drawing["aria-label"].strip() for drawing in drawings)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(region["aria-label"] for region in page.all("div", "scroll"))


def test_artifacts_are_linked_to_what_they_were_made_of(reported):
    page = read(reported)
    anchors = {attributes["id"] for attributes in page.all("details", "artifact")}
    assert len(anchors) == 5
    links = {link["href"].removeprefix("#") for link in section(reported, "lineage").all("a")}
    assert links == {anchor for anchor in anchors if "evaluation" not in anchor}


def test_nothing_in_a_reply_can_act(reported):
    page = read(reported)
    text = (reported / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    policy = page.all("meta")[-1]["content"]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert not page.all("img")
    assert (
        "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\n&amp; ? half"
        in page.text
    )


def test_the_page_asks_for_nothing(reported):
    page = read(reported)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object")
        assert not attributes.keys() & {"src", "srcset"}
        assert attributes.get("href", "#").startswith("#"), tag
    assert "url(" not in (reported / "report.html").read_text(encoding="utf-8")


def test_replies_stand_side_by_side_and_all_outcomes_are_among_them(reported):
    page = read(reported)
    replies = page.all("div", "reply")
    assert {reply["data-outcome"] for reply in replies} == {"right", "wrong", "unparsed"}
    assert {reply["data-label"] for reply in replies} == {"empty message", "step by step"}
    assert len(replies) == 2 * len(page.all("article")) == 24
    assert page.text.count("The question's text is not kept here.") == 3


def test_samples_are_bounded_and_of_every_kind(tmp_path, monkeypatch):
    workdir = write_run(tmp_path)
    found = report_results.groups(report_sources.open_workdir(workdir))
    monkeypatch.setattr(report_results, "MOST_SAMPLES", 9)
    chosen = report_results.samples(found, {})
    assert len(chosen) == len({sample.pattern for sample in chosen}) == 9
    monkeypatch.setattr(report_results, "MOST_CHARACTERS", 3 * chosen[0].size)
    assert report_results.samples(found, {}) == chosen[:3]


def test_long_replies_lose_their_middle(odd):
    page = read(odd)
    assert "a\n[… 5003 characters left out …]\na" in page.text
    assert "aend" in page.text


def test_an_arm_set_has_its_arms_beside_one_another(arm_set):
    page = page_of(arm_set)
    results = " ".join(section(arm_set, "results").text.split())
    assert "No significant difference." in results
    assert "answers no steps" not in results  # which table.md says itself
    assert 'answers data.supervise = "last"' in " ".join(section(arm_set, "config").text.split())
    # Two runs of four questions: right are 2 and 3 with the steps asked for, 2 and 2 without.
    assert "navigate 4 50.0 62.5 [21.9, 90.8] 25.0 unparsed 50.0 [15.0, 85.0] 25.0 unparsed" in results
    assert "counted with its mean over the runs (answers 2, explained 2)" in results
    assert "runs begun" in page.text
    assert "4 of 9" in page.text
    lines = [
        json.loads(drawing["data-lines"]) for drawing in section(arm_set, "training").all("svg", "lines")
    ]
    assert {name for one in lines for name in one} == {"answers", "explained", "chance"}
    shared = [a for a in page.all("details", "artifact") if "traces" in a["id"]]
    assert len(shared) == 1  # all four runs' traces are the same


def test_an_arm_set_without_a_table_says_what_its_arms_are(arm_set, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(arm_set / "set.json", begun)
    page_of(begun)
    results = " ".join(section(begun, "results").text.split())
    assert "answers no steps" in results
    assert "no table.md yet: experiments.ablate" in results


def test_replies_without_a_right_answer_are_counted_and_their_toxicity_said(odd):
    said = "3 replies (3 ok), which have no right answer; mean probability of toxicity 25.0 ± 1.0 %"
    assert said in read(odd).text


def test_what_is_not_there_is_named(tmp_path):
    write_data(tmp_path / "begun", kind="api")
    page = page_of(tmp_path / "begun")
    for part in ("No evaluation is finished", "No training has logged", "no data cards", "no replies yet",
                 "config was not kept", "no table.md"):  # fmt: skip
        assert part in page.text, part
    assert "oracles" not in page.text


def test_a_set_of_version_0_1_0_is_the_same(arm_set, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(arm_set, old, symlinks=True)
    path = old / report_sources.SET
    former = path.read_text().replace('"results"', '"examined"').replace('"evaluations"', '"examined"')
    path.write_text(former.replace('"evaluation"', '"examination"'))
    now, then = report_sources.open_workdir(arm_set), report_sources.open_workdir(old)
    assert [(run.arm, run.seed) for run in then.runs] == [(run.arm, run.seed) for run in now.runs]
    assert [column[:2] for column in then.columns] == [column[:2] for column in now.columns] != []


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no workdir of a run or of an arm set"):
        report_sources.open_workdir(tmp_path)
    for text, said in (("{", "is not JSON"), ('{"name": "main"}', "is not of experiments.ablate")):
        (tmp_path / "set.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"set\.json {said}"):
            report_sources.open_workdir(tmp_path)


# In a browser


def chromium():
    """A Chromium on the path, or in Playwright's cache; None where there is none."""
    names = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome")
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    cached = (
        str(path) for name in ("*headless*shell", "chrome") for path in cache.glob(f"chromium*/*/{name}")
    )
    return next((found for found in (*map(shutil.which, names), *cached) if found), None)


def opened(path, state):
    """The page's elements once its script has run, and what the browser's console said."""
    if not chromium():
        pytest.skip("no Chromium on the path or in Playwright's cache")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--user-data-dir={path.parent}/browser"]
    command += ["--virtual-time-budget=5000", f"{path.as_uri()}#{state}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def seen(page):
    return [article["data-task"] for article in page.all("article") if "hidden" not in article]


@pytest.mark.slow
def test_a_browser_runs_it_without_an_error_and_its_search_works(reported):
    page, console = opened(reported / "report.html", "q=object_counting-2+so")
    assert console == []
    assert page.all("html")[0]["data-ready"] == "yes"
    assert len(page.all("svg")) == 10
    assert seen(page) == ["object_counting"]
    assert "1 of 12 questions" in page.text


@pytest.mark.slow
def test_filters_in_a_browser_choose_by_task_column_and_outcome(reported):
    page, console = opened(reported / "report.html", "task=navigate&label=step+by+step&outcome=right")
    assert console == []
    assert seen(page) == ["navigate"] * 3
    shown = [reply for reply in page.all("div", "reply") if "hidden" not in reply]
    assert {reply["data-label"] for reply in shown} == {"step by step"}
