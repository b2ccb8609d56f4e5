"""Tables as files, byte for byte: of a run, of arms, of two evaluations, of the paper, and a data card.

After a wanted change: `python -m pytest tests/reporting/test_golden.py --regenerate-golden`.
"""

import json
import re
import tarfile

import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.config import load
from orca_jax.config_arms import load_set
from orca_jax.configs import mini
from orca_jax.configs.ablations import main
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.experiments import evaluate, prepare, tables
from orca_jax.records import Item, Outcome
from orca_jax.reporting import arm_runs, paper_writers

FAMILIES = ("boolean_expressions", "navigate", "tracking_shuffled_objects_three_objects", "web_of_lies")

CHANGES = {  # of mini.py:runlocal in the fixture
    "puzzles.per_family": 15,
    "student.hidden_size": 8,
    "student.intermediate_size": 8,
    "student.num_layers": 1,
    "student.num_heads": 2,
    "student.num_kv_heads": 2,
    "student.head_dim": 4,
    "student.vocab_size": 384,
}


@pytest.fixture
def golden(repo, regenerate_golden):
    """`golden(name, text)`: the text is that of the golden file."""

    def check(name, text):
        path = repo / "tests/golden/reporting" / name
        if regenerate_golden:
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{name}; if meant so: --regenerate-golden"

    return check


def made(benchmark, tasks, *, share, seed=0, mode="orca", message=1, sizes=None, levels=0):
    """Questions and items, drawn: of each task a share is right, a few are not parsed."""
    random = np.random.default_rng(seed)
    questions, items = [], []
    for task in tasks:
        for number in range((sizes or {}).get(task, 100)):
            id, drawn = f"{task}-{number}", random.random()
            answer = "A" if drawn < share else "B" if drawn < 0.95 else None
            extra = {}
            if levels:
                stated = int(random.integers(3)) * 2
                steps = {"stated": stated, "correct": int(random.integers(stated + 1)), "expected": 3}
                extra = {"difficulty": 1 + number % levels, "steps": steps}
            questions.append(Question(benchmark, task, id, "?", "A", ("A", "B"), 0.5, 0.5))
            items.append(
                Item(benchmark, task, id, seed, mode, Outcome.OK, answer == "A", answer, "A", message, extra)
            )
    return questions, items


def evaluated(directory, name, *given, provenance=None, **how):
    questions, items = made(*given, **how)
    target = directory / "evaluation" / name
    scores = scoring.summarise(items, questions, groups=registry.BENCHMARKS[given[0]].groups) if (
        given[0] in registry.BENCHMARKS
    ) else scoring.summarise(items, questions)  # fmt: skip
    scoring.write(target, items, scores | {"system_message_id": how.get("message", 1)})
    artifacts.Artifact(target, {"name": name, **(provenance or {})}, {}).finish({"items": len(items)})


def scored(directory, name, scores):
    target = directory / "evaluation" / name
    target.mkdir(parents=True)
    (target / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    artifacts.Artifact(target, {"name": name}, {}).finish({})


def judged(directory, benchmark="vicuna_prompts", **values):
    scores = {"per_cent": {"reference_first": 98.5, "both": 97.0}, "interval": [93.1, 102.2], "questions": 80}
    scored(
        directory,
        f"judged-{benchmark}-chatgpt",
        {"benchmark": "judged", "mode": "judged", **scores, **values},
    )


def toxic(directory, kind):
    groups = {"women": (0.19, 0.01), "asian": (0.16, 0.02), "lgbtq": (0.21, 0.015)}
    tasks = {name: {"n": 50, "toxicity": t, "stderr": e} for name, (t, e) in groups.items()}
    toxicity = {"tasks": tasks, "macro": 0.18, "stderr": 0.01, "n": 150, "silent": 2}
    scores = {"benchmark": "toxigen", "mode": "toxigen", "n": 152, "outcomes": {"ok": 150, "empty": 2}}
    scored(directory, f"toxigen-toxigen_{kind}", scores | {"toxicity": toxicity})


@pytest.fixture
def run(tmp_path):
    """A workdir with scores of puzzles, of BBH in two modes, and of what has no right answer."""
    directory = tmp_path / "run"
    for message, share in ((1, 0.4), (7, 0.93)):
        evaluated(
            directory, f"puzzles-message-{message}", "puzzles", FAMILIES[: 3 + message // 7],
            share=share, mode="robust", message=message, sizes={"navigate": 60},
        )  # fmt: skip
    tasks = {"snarks": 178, "navigate": 250, "hyperbaton": 30}
    evaluated(directory, "bbh-orca", "bbh", tasks, share=0.5, sizes=tasks)
    evaluated(directory, "bbh-robust", "bbh", [*tasks][:2], share=0.7, sizes=tasks, mode="robust")
    agieval = registry.BENCHMARKS["agieval"].groups[0].tasks
    evaluated(directory, "agieval-orca", "agieval", agieval, share=0.35)
    evaluated(directory, "truthfulqa_mc-orca", "truthfulqa_mc", ["truthfulqa_mc"], share=0.6, seed=3)
    toxic(directory, "hate")
    judged(directory)
    losses = [
        {"kind": "validation", "step": 10 * step, "loss": 2 / step, "loss/teacher=expert": 1 / step,
         "loss/collection=": 3 / step, "loss/system_message_id=-1": 1.5 / step}
        for step in range(1, 9)
    ]  # fmt: skip
    (directory / "training").mkdir()
    (directory / "training/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    return directory


@pytest.fixture
def other(tmp_path, run):
    """A second run of some of the same questions."""
    directory = tmp_path / "other"
    evaluated(directory, "bbh-orca", "bbh", ["snarks", "navigate"], share=0.62, seed=5,
              sizes={"snarks": 178, "navigate": 250})  # fmt: skip
    agieval = registry.BENCHMARKS["agieval"].groups[0].tasks
    evaluated(directory, "agieval-orca", "agieval", agieval[:2], share=0.3, seed=6)
    evaluated(directory, "agieval-5", "agieval", agieval[:3], share=0.3, seed=7, message=5)
    evaluated(directory, "truthfulqa_mc-orca", "truthfulqa_mc", ["truthfulqa_mc"], share=0.2, sizes={
        "truthfulqa_mc": 90})  # fmt: skip
    return directory


def test_tables_of_a_run(run, golden):
    config = mini.get_config("runlocal")
    config.benchmarks.update(bbh="BBH", agieval="AGIEVAL", toxigen="TOXIGEN")
    config.evaluation.modes.update(bbh=("orca", "robust"), agieval=("orca",), toxigen=("toxigen_hate",))
    golden("run.md", tables.run(load(config), run))


def test_tables_of_the_paper(run, other, tmp_path, golden, monkeypatch):
    monkeypatch.setattr(paper_writers, "drawings", lambda *_: [])
    for name, runs in (("published", []), ("measured", [f"--runs={run},{other}"])):
        tables.PROGRAM.start(["paper", f"--out={tmp_path / name}", *runs])
        tables.main()
        paths = sorted(path for path in (tmp_path / name).iterdir() if path.suffix in (".md", ".tex"))
        parts = [f"==> {path.name}\n{path.read_text(encoding='utf-8')}" for path in paths]
        records = (tmp_path / name / "table_11.csv").read_text(encoding="utf-8")
        parts.append(re.sub(r"\d+\.\d{9,}", lambda number: f"{float(number[0]):.9g}", records))
        golden(f"paper_{name}.txt", "\n".join(parts))


def test_tables_of_two_evaluations(tmp_path, golden, capsys):
    for name, share in (("first", 0.4), ("second", 0.8)):
        for seed in (0, 1):
            evaluated(tmp_path / str(seed), name, "puzzles", FAMILIES[:2], share=share,
                      seed=seed + len(name), mode="robust", sizes={"navigate": 30}, levels=2)  # fmt: skip
    folder = tmp_path / "0" / "evaluation"
    evaluate.PROGRAM.start(["compare", f"--first={folder / 'first'}", f"--second={folder / 'second'}"])
    evaluate.main()
    golden("compare.md", capsys.readouterr().out)


def arms_of_a_set(directory):
    """Three arms under two seeds, evaluated; one of them under one seed alone."""
    config = main.get_config("runlocal")
    config.seeds = (0, 1)
    config.arms = [arm for arm in config.arms if arm["name"] != "mixed"]
    arm_set = load_set(config)
    for number, (arm, seed) in enumerate(arm_set.runs(None, None)):
        if (arm.name, seed) == ("apprentice", 1):
            continue
        folder = directory / arm.name / f"seed-{seed}"
        for result in arm_set.results:
            share = 0.25 + 0.1 * (number % 4) + 0.2 * ("empty" not in result.title)
            evaluated(folder, arm.evaluation(result), "puzzles", FAMILIES, share=share, seed=number,
                      mode="robust", levels=2, sizes={"navigate": 30}) if not (
                folder / "evaluation" / arm.evaluation(result)
            ).exists() else None  # fmt: skip
        data = {"rows": 20, "examples_per_row": 3.5, "fill": 0.9, "supervised_share": 0.5}
        counts = {"steps": 4, "data": dict.fromkeys(("apprentice", "expert", "answers"), data)}
        (folder / "training").mkdir()
        artifacts.Artifact(folder / "training", {}, {}).finish(counts)
    return arm_set


def test_tables_of_arms(tmp_path, golden):
    arm_set = arms_of_a_set(tmp_path)
    golden("arms.md", arm_runs.write(arm_set, tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    golden(
        "arms.json",
        json.dumps(json.loads(json.dumps(rows), parse_float=lambda n: round(float(n), 9)), indent=1),
    )


def test_data_cards(tmp_path, repo, golden):
    with tarfile.open(repo / "tests/fixtures/finished_workdir.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    config = mini.get_config("runlocal")
    config.update_from_flattened_dict(CHANGES)
    for path in tmp_path.glob("cards/*/*"):
        path.unlink()
    prepare.run(load(config), tmp_path)
    for path in sorted(tmp_path.glob("cards/*/README.md")):
        golden(f"card_{path.parent.name}.md", path.read_text(encoding="utf-8"))
