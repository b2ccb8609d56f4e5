"""`experiments.tables paper`: the command, from a run's scores to the files."""

import json

import pytest

from orca_jax.evaluation import judging
from orca_jax.evaluation.replies import score
from orca_jax.experiments import tables
from orca_jax.reporting import paper_tables
from orca_jax.reporting.paper import TABLES


@pytest.fixture
def workdir(tmp_path):
    """A run evaluated on one task of BBH, in two modes."""
    run = tmp_path / "mini"
    scores = {
        "benchmark": "bbh",
        "system_message_id": 1,
        "tasks": {"snarks": {"n": 178, "accuracy": 0.6, "stderr": 0.04}},
    }
    for mode in ("orca", "orca_cot"):
        directory = run / "evaluation" / f"bbh-{mode}"
        directory.mkdir(parents=True)
        (directory / "scores.json").write_text(json.dumps({**scores, "mode": mode}))
    return run


def call(*arguments):
    tables.PROGRAM.start(["paper", *map(str, arguments)])
    tables.main()


def suffixes(folder):
    found = [path.suffix for path in folder.iterdir()]
    return {suffix: found.count(suffix) for suffix in found}


def test_with_a_run_the_index_says_what_is_reproduced_and_what_was_left_out(workdir, tmp_path, capsys):
    call(f"--runs={workdir}", "--out", tmp_path / "out")
    assert "README.md lists the tables and figures" in capsys.readouterr().out
    assert suffixes(tmp_path / "out") == {
        ".md": 8, ".tex": 7, ".csv": 7, ".parquet": 7, ".svg": 5, ".png": 5,
    }  # fmt: skip
    index = (tmp_path / "out" / "README.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in index.splitlines() if "|" in line]
    row = dict(zip(table[0], next(row for row in table if row[0] == "mini")))
    assert row["Table 11"] == "1 / 0 / 0 / 22"
    assert row["Table 8"] == "0 / 0 / 0 / 8"
    assert "mini: bbh-orca_cot." in index
    assert "60.0 ± 4.0" in (tmp_path / "out" / "table_11.md").read_text()


def test_what_the_scoring_programs_write_is_read(tmp_path):
    replies = [
        {"task": "snarks", "id": str(i), "target": "(B)", "reply": f"({'AB'[i % 2]})"} for i in range(10)
    ]
    reviews = [
        {"question_id": i, "order": order, "score": score}
        for i in range(10)
        for order, score in (("reference_first", [10, 8 + i % 2]), ("candidate_first", [8, 10]))
    ]
    for name, rows in (("replies", replies), ("reviews", reviews)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = tmp_path / "ours" / "evaluation"
    score("bbh", "orca", tmp_path / "replies.jsonl", evaluation / "bbh-orca")
    judging.score_reviews(tmp_path / "reviews.jsonl", evaluation / "judged-vicuna_prompts-chatgpt")
    runs = paper_tables.find([tmp_path / "ours"])
    shown = {table.name: paper_tables.page(table, runs).tables[0] for table in TABLES}
    assert "50.0 [23.7, 76.3]" in {cell for row in shown["table_11"].rows for cell in row}
    assert any(cell.startswith("85.0 ± ") for row in shown["table_7"].rows for cell in row)


def test_a_folder_without_an_evaluation_is_an_error_with_its_name(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        call(f"--runs={tmp_path}", "--out", tmp_path / "out")
    assert f"error: {tmp_path} has no evaluation/" in capsys.readouterr().err


def test_options_of_one_command_are_refused_with_another(capsys):
    for arguments, said in (
        (["--runs=runs/mini", "--out=paper"], "--runs is an option of paper"),
        (["paper", "--runs=runs/mini"], "give --out"),
        (["paper", "--out=paper", "--workdir=runs/mini"], "--workdir is an option of run"),
    ):
        with pytest.raises(SystemExit, match="1"):
            tables.PROGRAM.start(arguments)
        assert said in capsys.readouterr().err
