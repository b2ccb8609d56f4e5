import json
import random
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orca_jax.evaluation.benchmarks import registry
from orca_jax.queries import contamination, flan
from orca_jax.queries.contamination import Hit, Index
from orca_jax.records import Query

LETTERS = "abcdefghijklmnop"
WORDS = [f"w{LETTERS[i]}{LETTERS[j]}{LETTERS[k]}" for i in range(10) for j in range(16) for k in range(12)]
WRAPPERS = (
    "{}",
    "Question: {}\nAnswer:",
    "Please answer the following question.\n\n{}\n\nThink step by step.",
    "Student: {} Teacher: let me think.",
)


def prose(seed, length):
    random_words = random.Random(seed).choices(WORDS, k=length)
    return " ".join(random_words).capitalize() + "."


DOCUMENTS = [("made", f"doc-{number}", prose(number, 40)) for number in range(50)]
SHORT_DOCUMENT = ("truth", "truth-0", "What is the capital of Australia?")
INDEX = Index([*DOCUMENTS, SHORT_DOCUMENT])


def query(text, id="q"):
    return Query(id, text, "flan2021", "task")


def all_hits(index, queries):
    return [hit for _, found in index.check(queries) for hit in found]


def hits(text, index=INDEX):
    return all_hits(index, [query(text)])


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "change", [str, str.upper, lambda t: t.replace(" ", "  \n"), lambda t: t.replace(".", "!")]
)
def test_planted_copies_are_found(wrapper, change):
    for benchmark, id, text in DOCUMENTS[:5]:
        found = hits(wrapper.format(change(text)))
        assert [(hit.benchmark, hit.document_id) for hit in found] == [(benchmark, id)]
        assert found[0].kind in ("exact", "13-gram")
        assert found[0].document_text == text


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_short_question_is_found_as_a_sentence(wrapper):
    found = hits(wrapper.format(SHORT_DOCUMENT[2]))
    if wrapper.startswith("Student"):
        assert [hit.kind for hit in found] == ["exact"]  # one word stands before it
    assert [hit.document_id for hit in found] == ["truth-0"]


@pytest.mark.parametrize(
    "text", ["What is the capital of Austria?", "The capital of Australia is old.", "What is the capital?"]
)
def test_what_is_like_a_short_question_is_none(text):
    assert hits(text) == []


def test_a_text_of_three_words_is_found_alone_only():
    index = Index([("truth", "1", "Are toads frogs?")])
    assert [hit.kind for hit in hits("are toads frogs", index)] == ["exact"]
    assert hits("Tell me. Are toads frogs? Think.", index) == []


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not():
    words = DOCUMENTS[7][2].split()
    assert [hit.kind for hit in hits(f"Before {' '.join(words[5:18])} after")] == ["13-gram"]
    assert hits(f"Before {' '.join(words[5:17])} after") == []


def test_eight_grams_must_cover_enough():
    words = DOCUMENTS[8][2].split()
    scattered = " other ".join(" ".join(words[start : start + 8]) for start in (0, 10, 20, 30))
    (hit,) = hits(scattered)
    assert (hit.kind, hit.coverage) == ("8-gram", 0.8)
    half = " other ".join(" ".join(words[start : start + 8]) for start in (0, 10))
    strict = Index(DOCUMENTS, coverage=0.41)
    assert hits(half, strict) == []
    lenient = Index(DOCUMENTS, coverage=0.39)
    assert [found.coverage for found in hits(half, lenient)] == [0.4]


def test_the_longest_shared_run_is_shown():
    words = DOCUMENTS[9][2].split()
    (hit,) = hits(f"See {' '.join(words[3:25])} now {' '.join(words[28:38])}.")
    assert hit.shared == " ".join(words[3:25]).lower()
    assert hit.coverage == (22 + 10) / 40


def test_a_benchmarks_phrasing_is_no_hit():
    phrase = "which one of the following if true most strengthens the argument that the author makes above"
    documents = [("made", str(number), f"{prose(number, 20)} {phrase}") for number in range(8)]
    assert hits(f"Tell me {phrase} here", Index(documents)) == []
    assert len(hits(f"Tell me {phrase} here", Index(documents, max_documents=8))) == 8
    assert [hit.document_id for hit in hits(documents[3][2], Index(documents))] == ["3"]


def test_a_question_with_other_numbers_is_found():
    index = Index([("aqua", "1", "A car goes 60 miles in 2 hours. How many miles does it go in 7 hours?")])
    (hit,) = hits("Solve: A car goes 45 miles in 3 hours. How many miles does it go in 11 hours?", index)
    assert hit.kind == "13-gram"


def test_runs_of_numbers_and_signs_are_no_hits():
    index = Index(
        [("aqua", "1", "How many? (A) 2 minutes (B) 3 minutes (C) 4 minutes (D) 5 minutes (E) 6 minutes")]
    )
    assert hits("Which?\n(A) 2 minutes (B) 3 minutes (C) 4 minutes (D) 5 minutes (E) 6 minutes", index) == []


def test_a_whole_text_is_found_in_place_though_all_of_it_is_phrasing():
    puzzle = "Close the brackets in the right order, please, all of them. Input: {}"
    index = Index([("bbh", str(n), puzzle.format("( " * n)) for n in range(1, 30)])
    (hit,) = hits(f"Student: {puzzle.format('( ( (')}\nThink.", index)
    assert (hit.kind, hit.document_id) == ("exact", "3")


def test_texts_that_read_the_same_are_one_with_all_their_names():
    index = Index(
        [("a", "1", "Who was the first king of Rome?"), ("b", "2", "who was the first KING of rome")]
    )
    (hit,) = hits("Who was the first king of Rome?", index)
    assert (hit.benchmark, hit.also) == ("a", ("b/2",))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Isn\u2019t it \u201cso\u201d?", 'isn\'t it "so"', True),
        ("(A) yes\n(B) no", "a. Yes\nb. no", True),
        ("f(a) = 2", "f = 2", False),
        ("\ufb01eld \u00bd", "field 1\u20442", True),
        ("not ( True ) and", "not True and", False),
        ("3 - -2 * 4", "3 - 2 * 4", False),
        ("[ ( {", "[ ( <", False),
        ("step-by-step", "step by step", True),
    ],
)
def test_what_counts_in_a_text(one, other, same):
    assert (contamination.tokens(one) == contamination.tokens(other)) == same


@given(st.text())
def test_every_text_meets_itself(text):
    if contamination.tokens(text):
        (hit,) = hits(text, Index([("made", "1", text)]))
        assert (hit.kind, hit.coverage) == ("exact", 1.0)
    else:
        with pytest.raises(ValueError, match="no benchmark text"):
            Index([("made", "1", text)])


ATOMS = ("good ", "bad ", "man ", "(", "1 ", ". ", "\n")


def spoken_runs(tokens):
    """The runs of 13 tokens, numbers masked, of which most are words."""
    masked = contamination.masked(tokens)
    runs = [tuple(masked[i : i + 13]) for i in range(len(tokens) - 12)]
    return [run for run in runs if sum(len(word) > 1 for word in run) > 6]


@example(  # a run of 13 that is mostly words, in which no run of 8 is
    ["good (good good ((good (((good good good "], ["good (good good ((. good (((good good good "]
)
@given(
    st.lists(st.lists(st.sampled_from(ATOMS), max_size=40).map("".join), min_size=1),
    st.lists(st.lists(st.sampled_from(ATOMS), max_size=80).map("".join)),
)
def test_hits_are_the_shared_runs(documents, texts):
    """Against every run of 13 tokens, compared one by one."""
    triples = [("made", str(number), text) for number, text in enumerate(documents)]
    if not any(map(contamination.tokens, documents)):
        return
    index = Index(triples, max_documents=10**6, coverage=1.0)
    for text in texts:
        words = contamination.tokens(text)
        runs = set(spoken_runs(words))
        expected = {
            tuple(tokens)
            for tokens in map(contamination.tokens, documents)
            if runs & set(spoken_runs(tokens))
        }
        kinds = {tuple(contamination.tokens(hit.document_text)): hit.kind for hit in hits(text, index)}
        assert expected <= {tokens for tokens, kind in kinds.items() if kind in ("exact", "13-gram")}
        assert {tokens for tokens, kind in kinds.items() if kind == "13-gram"} <= expected


def test_a_batch_keeps_its_queries_apart(monkeypatch):
    monkeypatch.setattr(contamination, "BATCH", 7)
    words = DOCUMENTS[0][2].split()
    halves = [query(" ".join(words[:10]), "left"), query(" ".join(words[10:20]), "right")]
    assert all_hits(INDEX, halves) == []
    many = [query(f"see {text}", id) for _, id, text in DOCUMENTS]
    assert [hit.query_id for hit in all_hits(INDEX, many)] == [
        hit.document_id for hit in all_hits(INDEX, many)
    ]
    assert len(all_hits(INDEX, many)) == 50


@pytest.fixture(scope="module")
def real(shared_data):
    """The real benchmarks' texts and their index."""
    sources = {
        "bbh": shared_data / "bbh",
        "agieval": shared_data / "agieval",
        "vicuna_prompts": shared_data / "vicuna_bench/question.jsonl",
        "awesome_prompts": shared_data / "awesome_prompts/prompts.csv",
    }
    documents = list(registry.documents(sources))
    return documents, Index(documents)


@pytest.mark.realdata
def test_planted_copies_of_real_questions_are_found(real):
    documents, index = real
    planted = [query(WRAPPERS[n % 4].format(d.text), f"{n}") for n, d in enumerate(documents[::5])]
    found = {hit.query_id for hit in all_hits(index, planted)}
    assert len(found) >= 0.99 * len(planted)


@pytest.mark.realdata
def test_aqua_rats_neighbours_are_found_in_flan(real, shared_data):
    """One of the first 1,000 training problems is a test problem with other numbers, read as such by hand."""
    queries = list(flan.read("cot", shared_data / "flan_cot/aqua_train.jsonl"))[::2]  # not those turned round
    found = all_hits(real[1], queries)
    assert {hit.document_id for hit in found} == {"aqua-rat-198"}
    assert "A car finishes a journey in ten hours" in found[0].query_text


@pytest.mark.realdata
def test_real_questions_with_other_numbers_are_found(real):
    documents = [d for d in real[0] if d.id.startswith("aqua-rat") and len(d.text.split()) > 25]
    changed = [query(re.sub(r"\d", "7", document.text), document.id) for document in documents]
    found = {hit.query_id for hit in all_hits(real[1], changed) if hit.query_id == hit.document_id}
    assert len(documents) > 150
    assert len(found) >= 0.98 * len(documents)


@pytest.mark.realdata
def test_common_phrases_of_real_queries_are_no_hits(real, shared_data):
    with open(shared_data / "openorca/gpt4_600.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = all_hits(real[1], (query(row["question"], row["id"]) for row in rows))
    assert found == []


@pytest.mark.proof
@pytest.mark.realdata
def test_throughput_on_real_queries(real, shared_data, capsys):
    queries = list(flan.read("t0", shared_data / "t0/t0_templates_4080.jsonl"))
    start = time.perf_counter()
    found: list[Hit] = all_hits(real[1], queries)
    seconds = time.perf_counter() - start
    megabytes = sum(len(q.text.encode()) for q in queries) / 1e6
    with capsys.disabled():
        print(f"\n{len(queries) / seconds:.0f} queries/s, {megabytes / seconds:.1f} MB/s, {len(found)} hits")
    assert len(queries) / seconds > 300
