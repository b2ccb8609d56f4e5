"""Chat keeps its history and streams; a batch is answered once, goes on, and refuses another's answers."""

import dataclasses
import json
import subprocess
import sys

import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.data.layouts import LayoutError
from orca_jax.experiments import convert, generate
from orca_jax.records import Message, Outcome, RecordError, Sampling
from tests.data import hf_folders

SAMPLING = Sampling(max_tokens=12, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def student(finished):
    return generate.load(str(finished), "", batch_size=4, max_length=256)


@pytest.fixture
def chat(student):
    return generate.Chat(student, SAMPLING, system="Be brief.")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"id": "a", "question": "Is it red?"},
        {"id": "b", "question": "2 + 2 = ?", "system_prompt": "Be exact."},
        {"id": "c", "messages": [{"role": "user", "content": "Hello"}], "extra column": 1},
        {"id": "d", "question": "why " * 300},
        {"id": "e", "question": "No system?", "system_prompt": ""},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_layout_is_the_one_trained_in_unless_given(finished, student):
    assert student.layout == "orca"
    assert generate.load(str(finished), "vicuna").layout == "vicuna"


def test_what_holds_no_student_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no student"):
        generate.load(str(tmp_path), "")


def test_a_system_message_by_id_or_by_text():
    assert generate.system_text(0, "") == ""
    assert generate.system_text(0, "Be brief.") == "Be brief."
    assert "justify" in generate.system_text(7, "")
    with pytest.raises(ValueError, match="not both"):
        generate.system_text(7, "Be brief.")
    with pytest.raises(ValueError, match="no system message 99"):
        generate.system_text(99, "")


def test_a_reply_is_streamed_and_kept(chat, student):
    said = "".join(chat.say("Is it red?")).removesuffix(" [cut off by --max_tokens]")
    asked = [Message("system", "Be brief."), Message("user", "Is it red?")]
    replies = student.as_finished([asked], SAMPLING, numbers=[len(asked)])
    ((_, reply),) = replies
    assert said == reply.text
    assert chat.messages == [*asked, Message("assistant", reply.text)]


def test_the_next_question_comes_behind_what_was_said(chat):
    for question in ("Is it red?", "Why?"):
        "".join(chat.say(question))
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_question_without_room_leaves_the_history_as_it_was(chat):
    before = list(chat.messages)
    assert "exceeds 256 tokens" in "".join(chat.say("why " * 300))
    assert chat.messages == before


def test_commands(chat):
    written = []
    typed = [
        "",
        "Hello",
        "/system Be long.",
        "/nonsense",
        "/system 7",
        "/system 99",
        "/reset",
        "/quit",
        "never",
    ]
    generate.converse(chat, typed, written.append)
    said = "".join(written)
    for words in ("[system message: Be long.]", generate.HELP, "[no system message 99", "justify"):
        assert words in said
    assert [message.role for message in chat.messages] == ["system"]


def test_an_interrupted_reply_ends_alone(chat, monkeypatch):
    stream, written = chat.student.stream, []

    def interrupted(messages, *rest, **settings):
        with_delta = stream(messages, *rest, **settings)
        yield next(with_delta)
        with_delta.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.student, "stream", interrupted)
    generate.converse(chat, ["Hello", "/reset"], written.append)
    assert " [interrupted]" in written
    assert "[system message: Be brief.]" in written
    assert not chat.student.generator.engine.busy


def test_every_question_is_answered_once(student, questions, tmp_path):
    out = tmp_path / "replies.jsonl"
    assert generate.answer_file(student, questions, out, SAMPLING, system="Be brief.") == 5
    rows = {row["id"]: row for row in lines(out)}
    assert sorted(rows) == ["a", "b", "c", "d", "e"]
    assert rows["d"]["outcome"] == Outcome.ERROR
    before = out.read_bytes()
    generate.answer_file(student, questions, out, SAMPLING, system="Be brief.")
    assert out.read_bytes() == before


def test_each_question_has_its_own_system_message(questions):
    read = list(generate.files.read_jsonl(questions, generate.Question))
    first = [question.conversation("Be brief.")[0] for question in read]
    assert [message.content for message in first[:3]] == ["Be brief.", "Be exact.", "Hello"]
    assert first[4] == Message("user", "No system?")


def test_a_stopped_batch_goes_on_to_the_same_replies(student, questions, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    generate.answer_file(student, questions, whole, SAMPLING)
    first, second, *_ = whole.read_text().splitlines(keepends=True)
    torn.write_text(first + second[:20])
    generate.answer_file(student, questions, torn, SAMPLING)
    by_id = lambda row: row["id"]  # noqa: E731
    assert sorted(lines(torn), key=by_id) == sorted(lines(whole), key=by_id)


@pytest.mark.parametrize("change", [dict(seed=2), dict(stop=("x",)), dict(max_tokens=13)])
def test_answers_of_other_settings_are_not_mixed_in(student, questions, tmp_path, change):
    out = tmp_path / "replies.jsonl"
    generate.answer_file(student, questions, out, SAMPLING)
    with pytest.raises(ArtifactError, match=r"id 'd' of another input, .* give another --output"):
        generate.answer_file(student, questions, out, dataclasses.replace(SAMPLING, **change))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "question": "x"}, "two lines have the same id"),
        ({"id": "z"}, "id 'z' asks nothing"),
        ({"id": "z", "messages": [{"role": "user", "content": "x"}] * 2}, "id 'z': turns must be"),
        ({"question": "x"}, "lacks id"),
        ({"id": "z", "question": "\ud83d"}, "id 'z' has half a surrogate pair"),
    ],
    ids=["twice", "nothing", "turns", "no id", "half a pair"],
)
def test_questions_that_cannot_be_asked_are_named(student, questions, tmp_path, row, said):
    with questions.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=said):
        generate.answer_file(student, questions, tmp_path / "replies.jsonl", SAMPLING)


def test_an_exported_folder_has_the_trained_layout_and_one_without_a_template_none(finished, tmp_path):
    folder = tmp_path / "model"
    convert.export(finished, folder, dtype="float32", layout="")
    theirs, ours = generate.load(str(folder), ""), generate.load(str(finished), "")
    assert theirs.layout == "template"
    assert theirs.stop_ids == ours.stop_ids
    hf_folders.without_template(folder)
    with pytest.raises(LayoutError, match="--prompt_layout"):
        generate.load(str(folder), "")


@pytest.mark.proof
def test_the_program(finished, questions, tmp_path, repo):
    def run(*arguments, typed=""):
        command = [sys.executable, "-m", "experiments.generate", *arguments, f"--student={finished}"]
        return subprocess.run(command, cwd=repo, input=typed, capture_output=True, text=True, check=False)

    files = (f"--input={questions}", f"--output={tmp_path / 'out.jsonl'}")
    ended = run("batch", *files, "--max_tokens=4", "--max_length=256")
    assert ended.returncode == 0, ended.stderr
    assert len(lines(tmp_path / "out.jsonl")) == 5
    talk = run("chat", "--max_tokens=4", "--system_id=1", typed="Hello\n/quit\n")
    assert talk.returncode == 0, talk.stderr
    assert "[system message: none]" in talk.stdout
    wrong = run("batch", "--max_tokens=4")
    assert (wrong.returncode, "batch needs --input" in wrong.stderr) == (1, True)
