"""What is asked under which system message, and what benchmarks ask stays out."""

import collections
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax import files
from orca_jax.artifacts import ArtifactError, read_manifest
from orca_jax.config import load
from orca_jax.config_check import ConfigError, build
from orca_jax.config_teachers import FlanConfig, PuzzlesConfig
from orca_jax.configs import flan as flan_file
from orca_jax.configs import mini as mini_file
from orca_jax.data import prepared
from orca_jax.evaluation.benchmarks import registry
from orca_jax.experiments import collect, prepare, train
from orca_jax.queries import make, puzzles
from orca_jax.records import Query
from orca_jax.training import metrics


def make_queries(config, workdir):
    return make.make_queries(config, workdir, registry.documents(config.given_benchmarks))


# --- System messages


def assigned(shares, *, multiple_choice, count=4000, seed=0):
    found = [make.assign_message(f"query {i}", multiple_choice, shares, seed) for i in range(count)]
    return {message: times / count for message, times in collections.Counter(found).items()}


def test_messages_come_in_their_shares():
    found = assigned({"1": 1.0, "7": 2.0, "8": 1.0}, multiple_choice=True)
    assert found == pytest.approx({1: 0.25, 7: 0.5, 8: 0.25}, abs=0.03)


def test_messages_for_multiple_choice_only_go_to_puzzles_with_options():
    found = assigned({"1": 1.0, "7": 2.0, "8": 1.0}, multiple_choice=False)
    assert found == pytest.approx({1: 1 / 3, 7: 2 / 3}, abs=0.03)


@settings(max_examples=30)
@given(st.text(max_size=8), st.integers(0, 9), st.permutations(["1", "4", "7", "8"]))
def test_assignment_depends_on_query_and_seed_alone(query_id, seed, order):
    shares = {name: float(name) for name in order}
    assert make.assign_message(query_id, True, shares, seed) == make.assign_message(
        query_id, True, dict(sorted(shares.items())), seed
    )


def test_seed_changes_the_assignment():
    first, second = (
        [make.assign_message(f"q{i}", True, {"1": 1.0, "7": 1.0}, seed) for i in range(50)] for seed in (0, 1)
    )
    assert first != second


def test_no_message_for_a_query_without_options():
    with pytest.raises(ValueError, match="only messages for multiple choice"):
        make.assign_message("q", False, {"8": 1.0}, 0)


@given(st.lists(st.one_of(st.text(), st.integers()), min_size=1, max_size=3))
def test_unit_hash_is_a_share(parts):
    assert 0 <= make.unit_hash(*parts) < 1
    assert make.unit_hash(*parts) == make.unit_hash(*parts)


# --- What benchmarks ask stays out


@pytest.fixture
def bbh_folder(tmp_path):
    """A BBH file of 250 navigate questions; five of them are among the first training puzzles of seed 0."""
    options = dict(difficulties=(1, 2, 3), split="train")
    training = puzzles.make_puzzles("navigate", count=40, seed=0, **options)
    others = puzzles.make_puzzles("navigate", count=260, seed=99, **options)
    known = {puzzle.id for puzzle in training}
    chosen = training[3:8] + [puzzle for puzzle in others if puzzle.id not in known][:245]
    examples = [{"input": puzzle.question, "target": puzzle.target} for puzzle in chosen]
    folder = tmp_path / "bbh"
    folder.mkdir()
    (folder / "navigate.json").write_text(json.dumps({"examples": examples}))
    return folder


def test_questions_of_a_bbh_folder_never_reach_training(bbh_folder, tmp_path):
    values = mini_file.get_config("runlocal")
    values.update_from_flattened_dict(
        {
            "benchmarks.bbh": str(bbh_folder),
            "puzzles.families": ("navigate",),
            "puzzles.difficulties": (1, 2, 3),
            "train.batch_rows": 8,
        }
    )
    config = load(values)
    texts = {document.text for document in registry.documents(config.given_benchmarks)}
    manifest = make_queries(config, tmp_path / "workdir")
    assert manifest["counts"] == {"queries": 35, "known_to_benchmark": 5}
    written = tmp_path / "workdir/queries" / make.QUERIES
    asked = {query.text for query in files.read_jsonl(written, Query)}
    assert not asked & texts
    unfiltered, _ = make.training_puzzles(config.puzzles, config.seed)
    assert len({puzzle.question for puzzle in unfiltered} & texts) == 5


def test_no_folder_no_questions():
    config = PuzzlesConfig(families=("navigate",), per_family=5)
    made, known = make.training_puzzles(config, 0)
    assert (len(made), known) == (5, 0)


# --- FLAN-v2


def flan_config(folder, **changes):
    """configs/flan.py:runlocal on files of all four sub-collections, and a BBH task that asks one row."""
    config = flan_file.get_config("runlocal")
    rows = {
        source: [flan_row(source, number) for number in range(40)]
        for source in ("CoT", "NIv2", "Flan2021", "P3")
    }
    for source, part in rows.items():
        (folder / source).mkdir(parents=True)
        (folder / source / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    asked = [rows["P3"][0]["inputs"], *(f"What is the colour of thing {i}, blue or red?" for i in range(249))]
    examples = [{"input": text, "target": "Yes"} for text in asked]
    (folder / "bbh").mkdir()
    (folder / "bbh/navigate.json").write_text(json.dumps({"examples": examples}))
    config.flan[0]["sources"]["submix"] = str(folder / "*" / "part.jsonl")
    config.benchmarks.bbh = str(folder / "bbh")
    config.update_from_flattened_dict({"train.batch_rows": 8, **changes})
    return config


def flan_row(source, number):
    name = f"{source.lower()}{chr(97 + number // 26)}{chr(97 + number % 26)}"
    text = f"Does {' '.join(name + letter for letter in 'pqrstuvwxyz')} come first?"
    task = f"{source}_{number % 2}"
    names = {"task_source": source, "task_name": task, "template_type": "zs_opt"}
    return {"inputs": text, "targets": f"house {number}", **names}


@pytest.fixture(scope="module")
def flan(tmp_path_factory):
    """A config of FLAN's kind and the workdir of its queries."""
    folder = tmp_path_factory.mktemp("flan")
    config = load(flan_config(folder))
    make_queries(config, folder / "w")
    return config, folder / "w"


def read(workdir):
    return list(files.read_jsonl(workdir / "queries" / make.QUERIES, Query))


def test_flan_is_drawn_checked_and_counted(flan):
    config, workdir = flan
    made, manifest = read(workdir), read_manifest(workdir / "queries")
    counts = manifest["counts"]["flan"][0]
    assert {query.collection for query in made} == {"cot", "niv2", "flan2021", "t0"}
    assert manifest["counts"]["queries"] == counts["queries"] == len(made)
    assert counts["contamination"]["by_benchmark"] == {"bbh": 1}
    hits = (workdir / "queries" / make.HITS).read_text().splitlines()
    assert [json.loads(hit)["benchmark"] for hit in hits] == ["bbh"]
    assert sorted(manifest["inputs"]) == [
        f"flan[0].submix: {source}/part.jsonl" for source in ("CoT", "Flan2021", "NIv2", "P3")
    ]
    assert not list(workdir.glob("queries/draw-*"))
    assert config.asked_shares == {0.2}


def test_the_smaller_share_is_the_marked_part(flan):
    _, workdir = flan
    made = read(workdir)
    marked = [query for query in made if query.extra["expert"]]
    assert [query for query in made if make.is_asked(query, 0.2, 0)] == marked
    assert all(make.is_asked(query, 1.0, 0) for query in made)
    assert len(marked) == pytest.approx(0.2 * len(made), abs=2)


def test_made_again_they_are_the_same_wherever_the_files_are(flan, tmp_path):
    config = load(flan_config(tmp_path))
    make_queries(config, tmp_path / "w")
    assert read(tmp_path / "w") == read(flan[1])
    assert make_queries(config, flan[1]) == read_manifest(flan[1] / "queries")


def test_a_changed_file_is_noticed(tmp_path):
    config = load(flan_config(tmp_path))
    make_queries(config, tmp_path / "w")
    with (tmp_path / "P3/part.jsonl").open("a") as file:
        file.write(json.dumps(flan_row("P3", 77)) + "\n")
    with pytest.raises(ArtifactError, match=r"flan\[0\]\.submix: P3/part\.jsonl"):
        make_queries(config, tmp_path / "w")


def test_queries_that_were_interrupted_go_on(flan, tmp_path, monkeypatch):
    config = load(flan_config(tmp_path))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make.Index, "check", killed)
        with pytest.raises(KeyboardInterrupt):
            make_queries(config, tmp_path / "w")
    assert not (tmp_path / "w/queries/manifest.json").exists()
    make_queries(config, tmp_path / "w")
    assert read(tmp_path / "w") == read(flan[1])
    assert len((tmp_path / "w/queries" / make.HITS).read_text().splitlines()) == 1


def test_puzzles_are_asked_beside_flan(tmp_path):
    changes = {"puzzles.families": ("navigate",), "puzzles.per_family": 5}
    config = load(flan_config(tmp_path, **changes))
    make_queries(config, tmp_path / "w")
    made = read(tmp_path / "w")
    assert [query.collection for query in made[:5]] == ["puzzles"] * 5
    assert len(made) > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {"cot": "nowhere/*.tsv"}}, r"flan.sources.cot: no file matches 'nowhere/\*.tsv'"),
        ({"sources": {}}, "flan.sources names no file; known kinds: submix, cot"),
    ],
)
def test_missing_files_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make.source_files(FlanConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {"coT": "x"}}, r"'sources.coT' must be 'submix', .*, got 'coT'; did you mean 'cot'"),
        ({"contamination": "ignore"}, "'contamination' must be 'drop' or 'keep', got 'ignore'"),
        ({"coverage": 2.0}, "'coverage' must be at most 1, got 2.0"),
        ({"scale": 0.0}, "'scale' must be above 0, got 0.0"),
        ({"near_duplicates": 1.5}, "'near_duplicates' must be at most 1, got 1.5"),
    ],
)
def test_impossible_settings_of_a_draw_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(FlanConfig, {"sources": {}, **changes})


def test_two_smaller_shares_are_refused(tmp_path):
    config = flan_config(tmp_path)
    config.teachers[0]["share"] = 0.5
    with pytest.raises(ConfigError, match=r"one part is marked .*; got 0.2, 0.5"):
        load(config)


# --- The whole road on FLAN's files


@pytest.mark.proof
def test_flan_trains_a_student_in_two_stages(tmp_path):
    config = load(flan_config(tmp_path, **{"train.log_every": 1, "data.validation_fraction": 0.1}))
    for program in (collect, prepare, train):
        program.run(config, tmp_path / "w")
    rows = metrics.read(tmp_path / "w/training" / metrics.FILE)
    assert [row["stage"] for row in rows if row["kind"] == "train"] == ["labels"] * 2 + ["rationales"] * 2
    labels = {trace.query_id: trace for trace in prepared.read(tmp_path / "w", "labels")}
    assert all(trace.answer == trace.target for trace in labels.values())
    assert {trace.query_id for trace in prepared.read(tmp_path / "w", "rationales")} < set(labels)
    card = (tmp_path / "w/cards/labels/README.md").read_text()
    assert "Chi-square against the shares aimed at" in card
    assert "CoT/part.jsonl" in card


@pytest.mark.proof
@pytest.mark.realdata
def test_flan_in_miniature_on_the_real_files(shared_data, tmp_path):
    config = flan_file.get_config("runlocal")
    config.flan[0].update(cot=0.02, niv2_per_task=20, flan2021=300, t0=250)
    config.flan[0]["sources"].update(
        cot=str(shared_data / "flan_cot/*.jsonl"),
        niv2=str(shared_data / "superni/*.json"),
        t0=str(shared_data / "t0/*.jsonl"),
        raw=str(shared_data / "flan21_raw/*.jsonl"),
    )
    for name, file in {
        "bbh": "bbh",
        "agieval": "agieval",
        "truthfulqa_mc": "truthfulqa/truthfulqa_408.jsonl",
    }.items():
        config.benchmarks[name] = str(shared_data / file)
    config.update_from_flattened_dict(
        {
            "train.batch_rows": 8,
            "data.tokenizer": str(shared_data / "tokenizer/mistral_v1_32000.model"),
            "student.vocab_size": 32_001,
        }
    )
    loaded = load(config)
    for program in (collect, prepare, train):
        program.run(loaded, tmp_path)
    made = read(tmp_path)
    counts = collections.Counter(query.collection for query in made)
    assert (counts["niv2"], counts["flan2021"], counts["t0"]) == pytest.approx((200, 300, 250), abs=4)
    assert 200 < counts["cot"] < 300
    reasons = [trace for trace in prepared.read(tmp_path, "rationales") if "explanation" in trace.extra]
    assert reasons
    assert all(trace.answer.startswith(trace.extra["explanation"]) for trace in reasons)
    stages = [
        row["stage"] for row in metrics.read(tmp_path / "training" / metrics.FILE) if row["kind"] == "train"
    ]
    assert set(stages) == {"labels", "rationales"}
    assert all(query.multiple_choice for query in made if query.system_message_id in (8, 10))
    card = (tmp_path / "cards/rationales/README.md").read_text()
    assert "superni/task" in card
