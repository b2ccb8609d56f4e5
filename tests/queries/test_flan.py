import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.files import Tally
from orca_jax.queries import flan
from orca_jax.records import RecordError

SUBMIX = {
    "inputs": "Is it so?\nOPTIONS:\n- yes\n- no",
    "targets": "yes",
    "task_source": "Flan2021",
    "task_name": "glue/rte:2.0.0",
    "template_type": "zs_opt",
}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def underscored(row):
    names = ("task_source", "task_name", "template_type")
    return {f"_{key}" if key in names else key: value for key, value in row.items()}


def test_a_submix_row_becomes_a_query(tmp_path):
    path = write_lines(tmp_path / "part.jsonl", [SUBMIX])
    (query,) = flan.read("submix", path)
    assert (query.text, query.target) == (SUBMIX["inputs"], "yes")
    assert (query.collection, query.task) == ("flan2021", "glue/rte:2.0.0")
    assert (query.template_type, query.multiple_choice) == ("zs_opt", True)
    assert re.fullmatch(r"flan2021\.[0-9a-f]{20}", query.id)


def test_every_form_of_a_submix_file_gives_the_same_queries(tmp_path):
    rows = [{**SUBMIX, "inputs": f"{SUBMIX['inputs']} {number}"} for number in range(600)]
    plain = write_lines(tmp_path / "plain.jsonl", rows)
    other = write_lines(tmp_path / "other.json", [underscored(row) for row in rows])
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    parquet = tmp_path / "part.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    read = [list(flan.read("submix", path)) for path in (plain, other, packed, parquet)]
    assert len(read[0]) == 600
    assert all(queries == read[0] for queries in read)


@pytest.mark.parametrize(
    ("source", "collection"),
    [
        ("CoT", "cot"),
        ("NIv2", "niv2"),
        ("P3", "t0"),
        ("T0", "t0"),
        ("Dialog", "dialog"),
        ("Flan 2021", "flan2021"),
    ],
)
def test_task_sources_name_the_sub_collections(tmp_path, source, collection):
    path = write_lines(tmp_path / "a.jsonl", [{**SUBMIX, "task_source": source}])
    assert next(flan.read("submix", path)).collection == collection


def test_source_and_name_the_wrong_way_round_are_put_right(tmp_path):
    swapped = {**SUBMIX, "task_source": SUBMIX["task_name"], "task_name": SUBMIX["task_source"]}
    paths = [write_lines(tmp_path / f"{n}.jsonl", [row]) for n, row in enumerate((SUBMIX, swapped))]
    assert list(flan.read("submix", paths[0])) == list(flan.read("submix", paths[1]))


@pytest.mark.parametrize(
    ("name", "template_type", "zero_shot"),
    [("zs_opt", "zs_opt", True), ("zsnoopt", "zs_noopt", True), ("fs_opt", "fs_opt", False)],
)
def test_template_types_in_both_spellings(tmp_path, name, template_type, zero_shot):
    path = write_lines(tmp_path / "a.jsonl", [{**SUBMIX, "template_type": name}])
    (query,) = flan.read("submix", path)
    assert (query.template_type, flan.is_zero_shot(query)) == (template_type, zero_shot)


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_an_id_is_of_the_content_alone(text, target):
    first, second = (flan._query("cot", "sums", text, target, "zs_opt") for _ in range(2))
    assert first == second
    assert flan._query("cot", "sums", f"{text}.", target, "zs_opt").id != first.id


MALFORMED = [
    ("{", "not a JSON object on one line"),
    ("[1]", "expected a JSON object"),
    (json.dumps({**SUBMIX, "inputs": None}), "inputs must be text"),
    (json.dumps({**SUBMIX, "inputs": " "}), "the query is empty"),
    (
        json.dumps({key: SUBMIX[key] for key in SUBMIX if key != "targets"}),
        "targets is missing, among inputs",
    ),
    (json.dumps({**SUBMIX, "task_source": "xP3"}), "unknown task_source 'xP3'"),
    (json.dumps({**SUBMIX, "template_type": "few"}), "unknown template_type 'few'"),
    (b"\xff\xfe{}".decode("latin-1"), "not UTF-8"),
    (json.dumps({**SUBMIX, "inputs": "\ud83d"}), "half a surrogate pair ('\\ud83d')"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED)
def test_a_malformed_row_is_counted_with_its_place_and_left_out(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    good = json.dumps(SUBMIX).encode()
    path.write_bytes(b"\n".join([good, line.encode("latin-1"), good, b""]))
    tally = Tally(max_rate=0.5)
    assert len(list(flan.read("submix", path, tally))) == 2
    assert (tally.read, tally.malformed) == (2, 1)
    assert tally.places[0].startswith(f"{path}:2: ")
    assert reason in tally.places[0]


def test_too_many_malformed_rows_stop_the_run_before_the_end(tmp_path):
    bad = {**SUBMIX, "inputs": ""}
    path = write_lines(tmp_path / "a.jsonl", [SUBMIX] * 500 + [bad] * 500 + [SUBMIX] * 5000)
    taken = []
    with pytest.raises(
        RecordError, match=rf"{path}: 11 rows are malformed(.|\n)*{path}:501: the query is empty"
    ):
        taken.extend(flan.read("submix", path, Tally(max_rate=0.01)))
    assert len(taken) == 500


def test_a_rate_just_kept_does_not_stop_the_run(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{**SUBMIX, "inputs": ""}] * 2 + [SUBMIX] * 198)
    assert len(list(flan.read("submix", path, Tally(max_rate=0.01)))) == 198
    with pytest.raises(RecordError, match="2 rows are malformed"):
        list(flan.read("submix", path, Tally(max_rate=0.009)))


def test_damaged_and_unknown_files_are_named(tmp_path):
    parquet = tmp_path / "a.parquet"
    parquet.write_bytes(b"PAR1 and nothing")
    cut = tmp_path / "a.jsonl.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    for path in (parquet, cut):
        with pytest.raises(RecordError, match=rf"{path.name}: damaged"):
            list(flan.read("submix", path))
    with pytest.raises(RecordError, match=r"unknown suffix; name it \.jsonl"):
        list(flan.read("submix", tmp_path / "a.txt"))


def test_cot_rows_are_asked_and_turned_round(tmp_path):
    path = tmp_path / "aqua_train.tsv"
    path.write_text("How many?\\nOptions:\\n(A) 1\\n(B) 2\t(B)\tOne and one.\n", encoding="utf-8")
    forward, inverted = flan.read("cot", path)
    assert forward.text.startswith("How many?\nOptions:\n(A) 1\n(B) 2\n")
    assert (forward.task, forward.target, forward.multiple_choice) == ("stream_aqua", "(B)", True)
    assert "One and one." in inverted.text
    assert (inverted.task, inverted.multiple_choice) == ("stream_aqua_inverted", False)
    assert inverted.target == "How many?\nOptions:\n(A) 1\n(B) 2"


def test_cot_as_json_lines_is_the_same(tmp_path):
    tsv, lines = tmp_path / "creak_train.tsv", tmp_path / "creak_train.jsonl"
    tsv.write_text("So?\tyes\tBecause.\nNot?\tno\tFor that.\n", encoding="utf-8")
    rows = [("So?", "yes", "Because."), ("Not?", "no", "For that.")]
    write_lines(lines, [dict(zip(("question", "answer", "explanation"), row)) for row in rows])
    assert list(flan.read("cot", tsv)) == list(flan.read("cot", lines))


def test_a_tsv_row_of_two_fields_is_malformed(tmp_path):
    path = tmp_path / "qed_train.tsv"
    path.write_text("So?\tyes\n", encoding="utf-8")
    with pytest.raises(RecordError, match=rf"{path}:1: expected question, answer and rationale"):
        list(flan.read("cot", path))


@pytest.mark.parametrize("definition", ["Add.", ["Add."]])
@pytest.mark.parametrize(
    ("output", "extra"), [("3", {}), (["3"], {}), (["3", "three"], {"targets": ["3", "three"]})]
)
def test_natural_instructions_have_texts_or_lists(tmp_path, definition, output, extra):
    path = tmp_path / "task001_sum.json"
    task = {"Definition": definition, "Instances": [{"id": "x", "input": "1, 2", "output": output}]}
    path.write_text(json.dumps(task), encoding="utf-8")
    (query,) = flan.read("niv2", path)
    assert (query.text, query.target, query.extra) == ("Add.\n\n1, 2", "3", extra)
    assert (query.collection, query.task) == ("niv2", "task001_sum")


def test_bad_task_files_and_instances_are_named(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"Definition": "Add.", "Instances": [{"input": "1"}]}), encoding="utf-8")
    with pytest.raises(RecordError, match=r"Instances\[0\]: output must be a text or a list"):
        list(flan.read("niv2", path))
    for damaged in ({"Instances": []}, {"Definition": [], "Instances": []}, [1]):
        path.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(RecordError, match="no task file"):
            flan.read("niv2", path)


def test_p3_rows_by_both_names_of_their_columns(tmp_path):
    folder = tmp_path / "ag_news_classify"
    folder.mkdir()
    ours = write_lines(
        folder / "a.jsonl",
        [{"inputs": [5, 1], "inputs_pretokenized": "So? ", "targets_pretokenized": "\nyes"}],
    )
    theirs = write_lines(
        tmp_path / "t.jsonl", [{"template": "ag_news_classify", "prompt": "So?\n", "completion": "yes"}]
    )
    assert list(flan.read("t0", ours)) == list(flan.read("t0", theirs))
    assert next(flan.read("t0", ours)).task == "ag_news_classify"


def test_a_linked_file_is_of_the_task_of_the_folder_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "blob").write_text('{"inputs": "Which?", "targets": "This."}\n')
    (tmp_path / "ag_news_classify").mkdir()
    (tmp_path / "ag_news_classify/train.jsonl").symlink_to("../blob")
    monkeypatch.chdir(tmp_path / "ag_news_classify")
    assert next(flan.read("t0", Path("train.jsonl"))).task == "ag_news_classify"


def test_raw_sets_list_their_labels(tmp_path):
    rows = [{"sentence": "Text: fine film ", "label": "Good"}, {"sentence": "Text: bad", "label": "Bad"}]
    path = write_lines(tmp_path / "SST-2.jsonl", rows)
    query = next(flan.read("raw", path))
    assert query.text.startswith("Text: fine film\n")
    assert query.text.endswith("\nOptions:\n- Bad\n- Good")
    assert (query.multiple_choice, query.template_type) == (True, "zs_opt")
    many = [{"sentence": "Text: bad", "label": f"label {number}"} for number in range(21)]
    plain = next(flan.read("raw", write_lines(tmp_path / "many.jsonl", many)))
    assert (plain.multiple_choice, plain.template_type) == (False, "zs_noopt")
    assert "Options" not in plain.text


def test_many_files_are_read_by_kind_and_name(tmp_path):
    second = write_lines(tmp_path / "b.jsonl", [{**SUBMIX, "task_name": "b"}])
    first = write_lines(tmp_path / "a.jsonl", [{**SUBMIX, "task_name": "a"}])
    tally = Tally()
    assert [query.task for query in flan.read_all({"submix": [second, first]}, tally)] == ["a", "b"]
    assert tally.summary() == {
        "read": 2,
        "malformed": 0,
        "malformed_reasons": {},
        "malformed_places": [],
    }
    with pytest.raises(RecordError, match="unknown kind of FLAN file 'p3'; known: submix, cot"):
        list(flan.read_all({"p3": [first]}))


@pytest.mark.realdata
def test_real_files_of_all_four_sub_collections(shared_data):
    sources = {
        "cot": list((shared_data / "flan_cot").glob("[ag]*.jsonl")),
        "niv2": list((shared_data / "superni").glob("*.json")),
        "t0": list((shared_data / "t0").glob("*.jsonl")),
        "raw": list((shared_data / "flan21_raw").glob("*.jsonl")),
    }
    tally = Tally()
    queries = list(flan.read_all(sources, tally))
    tasks = {
        name: {q.task for q in queries if q.collection == name} for name in ("cot", "niv2", "t0", "flan2021")
    }
    assert {name: len(found) for name, found in tasks.items()} == {
        "cot": 4,
        "niv2": 10,
        "t0": 207,
        "flan2021": 9,
    }
    assert tally.malformed <= 0.01 * tally.read
    assert len({query.id for query in queries}) > 0.98 * len(queries)
