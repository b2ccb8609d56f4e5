"""Sets of arms: shared data, what is run, going on, the table, and configs that cannot be."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orca_jax import artifacts
from orca_jax.artifacts import plain
from orca_jax.config_arms import load_set, merged
from orca_jax.config_check import ConfigError
from orca_jax.configs.ablations import crossover, main, onpolicy, segments, stages
from orca_jax.evaluation import arm_files
from orca_jax.experiments import ablate, run
from orca_jax.queries.make import training_puzzles
from orca_jax.reporting import arm_runs
from orca_jax.reporting.report_sources import CONFIG, SET


def small(arms=("progressive", "answers"), seeds=(0, 1)):
    """Arms of the main set, with rows for the tests' eight devices."""
    config = main.get_config("runlocal")
    config.base.train.update(batch_rows=8)
    config.seeds = seeds
    config.arms = [arm for arm in config.arms if arm["name"] in arms]
    return load_set(config)


given = ablate.PROGRAM.options  # `given(arms=..., bbh=...)`: the options of a command line


@pytest.fixture(scope="module")
def one_alone(tmp_path_factory):
    """The folder of a set of which one arm and seed ran first, what was in it then, and its table."""
    directory = tmp_path_factory.mktemp("ablation")
    text = ablate.ablate(small(), directory, given(arms=["answers"], seeds=["1"]))
    return directory, {str(path.relative_to(directory)) for path in directory.glob("*/*/")}, text


@pytest.fixture(scope="module")
def workdir(one_alone):
    """The folder of the whole set."""
    ablate.ablate(small(), one_alone[0])
    return one_alone[0]


def stamps(directory):
    return {p: p.stat().st_mtime_ns for p in directory.rglob("manifest.json") if not p.parent.is_symlink()}


def test_arms_of_a_seed_share_their_data(workdir):
    made = [path for path in (workdir / "data").iterdir() if path.is_dir()]
    assert len(made) == 2  # one a seed
    for arm in ("progressive", "answers"):
        tokens = arm_runs.folder(workdir, arm, 0) / "tokens"
        assert tokens.is_symlink()
        assert not os.path.isabs(os.readlink(tokens))
        assert tokens.resolve() == (arm_runs.folder(workdir, "answers", 0) / "tokens").resolve()
    assert (workdir / "ledger.sqlite").is_file()


def test_run_again_it_makes_nothing(workdir):
    before = stamps(workdir)
    text = ablate.ablate(small(), workdir)
    assert stamps(workdir) == before
    assert text == (workdir / "table.md").read_text()


def test_a_part_may_leave_the_table_to_others(workdir):
    table = workdir / "table.md"
    before = table.stat().st_mtime_ns
    assert ablate.ablate(small(), workdir, given(arms=["answers"], table=False)) == ""
    assert table.stat().st_mtime_ns == before


def test_hypotheses_that_changed_are_refused_before_anything_runs(workdir):
    config = merged(
        plain(small()), {"hypotheses": [dict(name="x", arm="answers", minus="chance", at_least=0.0)]}
    )
    with pytest.raises(artifacts.ArtifactError, match=r"x: absent there.*begin a new set"):
        ablate.ablate(load_set(config), workdir)


def test_a_refused_set_leaves_what_describes_the_one_that_ran(workdir):
    about = [workdir / SET, *workdir.glob(f"*/*/{CONFIG}")]
    before = [path.read_text() for path in about]
    other = merged(plain(small()), {"base": {"optimizer": {"clip_norm": 0.5}}})
    with pytest.raises(artifacts.ArtifactError, match=r"optimizer\.clip_norm: 1\.0 there, 0\.5 now"):
        ablate.ablate(load_set(other), workdir)
    assert [path.read_text() for path in about] == before


def test_every_arm_and_seed_is_a_whole_run(workdir):
    for arm, message in (("progressive", 7), ("answers", 1)):
        for seed in (0, 1):
            directory = arm_runs.folder(workdir, arm, seed)
            assert json.loads((directory / "experiment.json").read_text())["seed"] == seed
            manifest = artifacts.read_manifest(directory / "training")
            assert manifest["provenance"]["seed"] == seed
            assert (directory / f"evaluation/puzzles-message-{message}/items.jsonl").is_file()
    assert not (arm_runs.folder(workdir, "answers", 0) / "evaluation/puzzles-message-7").exists()


def test_students_of_all_seeds_have_the_same_evaluation(workdir):
    arms = small()
    asked = {
        tuple(sorted(item.id for item in arm_runs.items(workdir, "progressive", seed, "puzzles-message-7")))
        for seed in arms.seeds
    }
    assert len(asked) == 1


def test_the_table_compares_under_each_arms_own_message(workdir):
    text = (workdir / "table.md").read_text()
    own, empty = text.split("## Under the message it was trained for")[1].split("## Under the empty message")
    assert "answers" in own
    assert "progressive" in own
    assert "answers" in empty
    assert "procedural oracles" in text
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    assert {(row["result"], row["arm"]) for row in rows} == {
        (title, arm)
        for title in ("Under the message it was trained for", "Under the empty message")
        for arm in ("progressive", "answers")
    }


def test_arms_trained_on_as_many_positions_and_told_of_what(workdir):
    facts = {fact["arm"]: fact for fact in arm_runs.training_facts(small(), workdir)}
    assert facts["progressive"]["positions"] == facts["answers"]["positions"] == 4 * 8 * 512
    assert set(facts["progressive"]["by_set"]) == {"apprentice", "expert"}
    assert facts["answers"]["examples"] > facts["progressive"]["examples"]
    data = artifacts.read_manifest(arm_runs.folder(workdir, "answers", 0) / "training")["counts"]["data"]
    assert facts["answers"]["examples"] == pytest.approx(4 * 8 * data["answers"]["examples_per_row"])
    assert facts["answers"]["supervised"] < facts["progressive"]["supervised"]


def test_one_arm_alone_leaves_the_others_out_of_the_table(one_alone):
    _, there, text = one_alone
    assert "Nothing is finished under all seeds" in text
    assert "- progressive: seed 0, 1\n- answers: seed 0\n" in text
    assert "without `--arms` and `--seeds`" in text
    assert {name for name in there if "seed" in name} == {"answers/seed-1"}


@pytest.mark.parametrize(("values", "message"), [
    ({"arms": ["answer"]}, "main has no arm 'answer'; known: .*answers"),
    ({"seeds": ["7"]}, "main has no seed '7'; known: 0"),
    ({"bbh": "nowhere"}, "nowhere has no file of boolean_expressions"),
])  # fmt: skip
def test_what_is_not_there_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        ablate.ablate(small(), tmp_path, given(**values))


def bbh_folder(folder, questions):
    """Files as Big-Bench Hard's, of one family of the sets and of one that is none."""
    folder.mkdir()
    for name in ("boolean_expressions", "word_sorting"):
        examples = [{"input": text, "target": "False"} for text in questions]
        (folder / f"{name}.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    return folder


def test_a_real_question_that_was_trained_on_is_asked_of_nobody(tmp_path):
    arm_set = small()
    config = arm_set.config(arm_set.arms[1], arm_set.seeds[-1])
    trained, _ = training_puzzles(config.puzzles, config.seed)
    asked = next(puzzle.question for puzzle in trained if puzzle.family == "boolean_expressions")
    others = [f"not ( True ) and {'not ' * i}True is" for i in range(249)]
    folder = bbh_folder(tmp_path / "bbh", [*others[:100], asked.upper(), *others[100:]])
    assert [q.id for q in arm_files.questions(arm_set, folder)] == [
        f"boolean_expressions-{i}" for i in range(250) if i != 100
    ]


@pytest.mark.proof
def test_students_sit_the_real_files_of_their_families(tmp_path):
    """Those that are finished too, and those of another set."""
    folder = bbh_folder(tmp_path / "bbh", [f"not ( True ) and {'not ' * i}True is" for i in range(250)])
    chosen = {"arms": ["answers"], "seeds": ["0"]}
    ablate.ablate(small(), tmp_path / "set", given(**chosen))
    scores = tmp_path / "set/answers/seed-0/evaluation/bbh-robust-message-1/scores.json"
    reuse = [str(tmp_path / "set")]
    ablate.ablate(small(), tmp_path / "other", given(**chosen, bbh=str(folder), reuse=reuse))
    assert (tmp_path / "other/answers/seed-0").is_symlink()
    evaluated = scores.stat().st_mtime_ns
    ablate.ablate(small(), tmp_path / "set", given(**chosen, bbh=str(folder)))
    assert scores.stat().st_mtime_ns == evaluated, "what is evaluated stays"
    assert {task: row["n"] for task, row in json.loads(scores.read_text())["tasks"].items()} == {
        "boolean_expressions": 250
    }


@pytest.mark.parametrize("jobs", [1, 3, 5])
def test_jobs_share_the_cores(jobs, monkeypatch):
    monkeypatch.setattr(ablate.os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    shares = ablate.shares_of_cores(jobs)
    assert len(shares) == jobs
    assert all(set(share) <= {0, 1, 4, 5} and share for share in shares)
    if jobs <= 4:
        assert len({core for share in shares for core in share}) == sum(map(len, shares))


def test_changes_are_merged_into_the_base():
    base = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    assert merged(base, {"a": {"b": 3}, "d": [4]}) == {"a": {"b": 3, "c": 2}, "d": [4]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1, 2]}


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.arms[1]["changes"].update(data=dict(segment="leaking")), "arm 'leaking': unknown config"),
    (lambda c: c.update(baseline="nobody"), "baseline's among them"),
    (lambda c: c.arms[1].update(name="separated"), "distinct names"),
    (lambda c: c.arms[1].update(evaluations={"x": "y"}), "arm 'leaking' names the result 'x'; known: Under"),
])  # fmt: skip
def test_sets_that_cannot_be_are_refused(change, message):
    config = segments.get_config("runlocal")
    change(config)
    with pytest.raises(ConfigError, match=message):
        load_set(config)


def test_what_is_of_a_row_alone_shares_tokens():
    arm_set = load_set(segments.get_config("runlocal"))
    separated, leaking = (arm_set.config(arm, 0) for arm in arm_set.arms)
    assert leaking.data.segments == "leaking"
    assert arm_runs.data_key(separated) == arm_runs.data_key(leaking)
    assert arm_runs.data_key(separated) != arm_runs.data_key(arm_set.config(arm_set.arms[0], 1))


def test_what_another_set_has_run_is_taken(tmp_path):
    """Whatever its name: `two` of the stages is `separated` of the segments."""
    finished, config = tmp_path / "one/separated/seed-0", segments.get_config("runlocal")
    run.keep_config(load_set(config).config(load_set(config).arms[0], 0), finished)
    (finished / "table.md").write_text("")
    reuse = [str(tmp_path / "one")]
    arm_set = load_set(stages.get_config("runlocal"))
    two, three = arm_set.arms
    assert arm_runs.take(arm_set, two, 0, tmp_path / "other", reuse)
    assert arm_runs.folder(tmp_path / "other", "two", 0).resolve() == finished
    assert not arm_runs.take(arm_set, three, 0, tmp_path / "other", reuse)
    assert not arm_runs.take(arm_set, two, 1, tmp_path / "other", reuse), "another seed"
    (finished / "table.md").unlink()
    assert not arm_runs.take(arm_set, two, 0, tmp_path / "third", reuse), "it had not ended"
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(artifacts.ArtifactError, match="two/seed-0 links to a run that is gone"):
        arm_runs.take(arm_set, two, 0, tmp_path / "other", reuse)


FOLDER = Path(__file__).parents[2] / "configs/ablations"
SETS = sorted(
    {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "crossover", "main", "miniature", "onpolicy"}
)
QUICK = ("agreement", "few_shot", "order")  # what no other test runs: votes, shots, annealing
EVERY_SET = [name if name in QUICK else pytest.param(name, marks=pytest.mark.proof) for name in SETS]


@pytest.mark.parametrize("name", EVERY_SET)
def test_every_set_runs(name, tmp_path):
    config = importlib.import_module(f"orca_jax.configs.ablations.{name}").get_config("runlocal")
    config.base.train.update(batch_rows=8)
    config.base.puzzles.per_family = 24
    arm = config.arms[-1]  # what differs most from the baseline
    for stage in arm["changes"]["curriculum"]:
        stage["steps"] = 1
    text = ablate.ablate(load_set(config), tmp_path, given(arms=[arm["name"]], seeds=["0"]))
    assert f"| {arm['name']} " in text
    assert (arm_runs.folder(tmp_path, arm["name"], 0) / "table.md").is_file()


def under_conditions():
    """Two conditions of the crossover, one step each, with rows for the tests' eight devices."""
    config = crossover.get_config("variant=findings")
    config.conditions, config.seeds = config.conditions[:2], (0,)
    config.hypotheses = [one for one in config.hypotheses if "tracking-4" in one["conditions"]]
    config.base.evaluation.update(per_family=4, max_tokens=8, max_length=64, batch_size=8)
    config.base.student.update(
        num_layers=1, hidden_size=16, intermediate_size=16, num_heads=2, num_kv_heads=2
    )
    for condition in config.conditions:
        condition["changes"]["puzzles"]["per_family"] = 40
        for changes in condition["arms"].values():
            changes["train"]["batch_rows"] = 8
            changes["data"]["row_length"] = 80  # one shape, which is compiled once
            changes["curriculum"][0].update(steps=1, warmup_steps=0)
    return config


def test_a_set_under_conditions_runs_each_in_a_folder_of_its_own(tmp_path):
    arm_set, options = load_set(under_conditions()), given(conditions=["tracking-4"], arms=["answers"])
    text = ablate.ablate(arm_set, tmp_path, options)
    assert text == (tmp_path / "table.md").read_text()
    assert re.search(r"\| tracking-4 +\| +4 \| +20.0 \| +\d+\.\d \[.*\], \d tokens \| +– \|", text)
    assert re.search(r"\| tracking-2 +\| +– \| +– \| +– \| +– \|", text)
    (question, *_) = arm_runs.items(tmp_path / "tracking-4", "answers", 0, "puzzles-message-1")
    assert question.extra["difficulty"] == 4
    assert question.extra["tokens"] <= 8
    about = json.loads((tmp_path / "tracking-4" / SET).read_text())
    assert (about["name"], about["conditions"]) == ("crossover-tracking-4", [])
    kept = json.loads((tmp_path / arm_runs.HYPOTHESES).read_text())
    assert text.count("not finished") == len(kept) == len(arm_set.hypotheses) > 0
    before = stamps(tmp_path)
    assert ablate.ablate(arm_set, tmp_path, options) == text
    assert stamps(tmp_path) == before
    with pytest.raises(ValueError, match="crossover has no condition 'tracking-3'; known: tracking-2, track"):
        ablate.ablate(arm_set, tmp_path, given(conditions=["tracking-3"]))


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.conditions[1].update(name="tracking-2"), "conditions need distinct names; got tracking"),
    (lambda c: c.conditions[0]["arms"].update(guess={}), "'tracking-2' changes arm 'guess'; known: answers"),
    (lambda c: c.conditions[0]["changes"].update(data=dict(rows=1)), "arm 'answers': unknown config key"),
])  # fmt: skip
def test_conditions_that_cannot_be_are_refused(change, message):
    config = under_conditions()
    change(config)
    with pytest.raises(ConfigError, match=message):
        load_set(config)


def test_arms_of_the_crossover_have_equal_positions_and_see_a_question_once():
    for variant in crossover.CONDITIONS:
        arm_set = load_set(crossover.get_config(f"variant={variant}"))
        for condition in arm_set.conditions:
            for arm in (own := arm_set.under(condition)).arms:
                config = own.config(arm, 0)
                positions = config.data.row_length * config.train.batch_rows
                assert positions == pytest.approx(crossover.POSITIONS, rel=0.05)
                assert config.curriculum[0].names == (arm.name,)


@pytest.mark.parametrize("variant", onpolicy.CONDITIONS)
def test_arms_of_onpolicy_have_equal_positions_and_see_a_question_about_once(variant):
    arm_set = load_set(onpolicy.get_config(f"variant={variant}"))
    for condition in arm_set.conditions:
        configs = [own.config(arm, 0) for own in [arm_set.under(condition)] for arm in own.arms]
        shapes = {(one.train.batch_rows, one.data.row_length, one.curriculum[0].steps) for one in configs}
        assert len(shapes) == 1
        answered = [one.curriculum[0].on_policy for one in configs]
        seen = [own.rounds * own.questions / own.share for own in answered if own]
        assert len(seen) == 2
        kept = 1 - configs[0].data.validation_fraction
        assert all(0.9 < count / (kept * configs[0].puzzles.per_family) <= 1 for count in seen)


@pytest.mark.proof
def test_several_at_once_come_to_the_same_table(workdir, tmp_path, repo):
    command = [sys.executable, "-m", "experiments.ablate", "--config=configs/ablations/main.py:runlocal"]
    command += [f"--workdir={tmp_path}", "--config.base.train.batch_rows=8", "--jobs=2", "--seeds=0"]
    command += ["--arms=progressive,answers"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for arm in ("progressive", "answers"):
        mine, theirs = (
            list(arm_runs.items(directory, arm, 0, "puzzles-message-1")) for directory in (tmp_path, workdir)
        )
        assert mine == theirs
        assert f"run 1 of 1: {arm}, seed 0" in (arm_runs.folder(tmp_path, arm, 0) / "log.txt").read_text()
