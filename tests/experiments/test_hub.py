"""A run that starts from the hub and ends there: private weights, traces of a data set, a moved `main`."""

import json
import shutil

import pytest

from orca_jax import artifacts
from orca_jax.config import load
from orca_jax.experiments import convert
from orca_jax.reporting import model_card
from tests import forks
from tests.hub import TOKEN, digest, running

pytestmark = pytest.mark.slow
ROWS = "hf://datasets/owner/rows/expert.jsonl"
TEACHER = ["--config.teachers[1].kind=file", f"--config.teachers[1].path={ROWS}"]
STUDENT = ["--config.student.init=owner/name", "--config.student.vocab_size=0", "--config.data.tokenizer="]


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory):
    """The finished student as the files of a repository."""
    folder = tmp_path_factory.mktemp("released")
    convert.export_student(finished, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jinja"} | {
        "chat_template.jinja": (folder / "chat_template.jinja").read_bytes(),
        "README.md": b"Released.",
        "pytorch_model.bin": b"pickle",
    }


@pytest.fixture(scope="module")
def place(repo, overrides, files, finished, tmp_path_factory):
    """A hub with the student and a teacher's traces, and `do(program, *arguments)` for one who uses it."""
    folder = tmp_path_factory.mktemp("user")
    with running() as hub:
        hub.add("owner/name", files, private=True)
        traces = (finished / "traces/expert/traces.jsonl").read_bytes()
        hub.add("datasets/owner/rows", {"expert.jsonl": traces}, private=True)
        environment = {
            k: v for k, v in hub.environment(folder, HF_TOKEN=TOKEN).items() if k.startswith("HF_")
        }

        def do(program, *arguments, workdir=folder / "run"):
            given = list(arguments)
            if program != "convert":
                given += [f"--config={repo}/configs/mini.py:runlocal", f"--workdir={workdir}", *overrides]
                given += [*TEACHER, *[one for one in STUDENT if one.partition("=")[0] not in " ".join(given)]]
            case = program, given, f"os.environ |= {environment}"
            (ended,) = forks.mains({"it": case}, folder).values()
            assert TOKEN not in ended[1]
            return ended

        yield hub, do, folder / "run"


@pytest.fixture(scope="module")
def ran(place):
    """The workdir, and the commits that it was made of."""
    hub, do, workdir = place
    commits = {name: repository.log[-1] for name, repository in hub.repositories.items()}
    status, said = do("run")
    assert status == 0, said
    return workdir, commits


def manifest(workdir, name):
    return artifacts.read_manifest(workdir / name)


def test_manifests_name_commits_and_files(ran, files):
    workdir, commits = ran
    rows = manifest(workdir, "traces/expert")["revisions"][ROWS]
    assert rows["commit"] == commits["datasets/owner/rows"]
    assert rows["files"] == {"expert.jsonl": manifest(workdir, "traces/expert")["inputs"]["file"]}
    taken = manifest(workdir, "training")["revisions"]["hf://owner/name"]
    assert taken["commit"] == manifest(workdir, "tokenizer")["revisions"]["hf://owner/name"]["commit"]
    assert taken["commit"] == commits["owner/name"]
    assert taken["files"]["model.safetensors"] == digest(files["model.safetensors"])
    assert {"README.md", "pytorch_model.bin"}.isdisjoint(taken["files"])
    assert "revisions" not in manifest(workdir, "tokens/expert")


def test_no_token_is_kept(ran):
    for path in ran[0].rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.proof
def test_another_readme_changes_nothing_and_other_weights_are_refused(place, ran, files, finished):
    hub, do, workdir = place
    repository, made = hub.repositories["owner/name"], manifest(workdir, "training")
    repository.commit({**files, "README.md": b"Another."})
    assert do("train")[0] == 0
    assert manifest(workdir, "training") == made
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    repository.commit({**files, "model.safetensors": bytes(weights)})
    status, said = do("train")
    assert status == 1
    assert "init: " in said
    assert "(owner/name)" in said
    assert "Use another workdir" in said
    pinned = f"--config.student.init=hf://owner/name@{ran[1]['owner/name']}"
    assert do("train", pinned)[0] == 0
    assert manifest(workdir, "training") == made
    repository.commit(files)


def test_weights_of_another_tokenizer_are_not_trained_on_the_tokens_of_the_first(place, ran, files, tmp_path):
    hub, do, workdir = place
    copy = shutil.copytree(
        workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("training", "evaluation")
    )
    tokenizer = json.loads(files["tokenizer.json"])
    first, second, *rest = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [second, first, *rest]
    repository = hub.repositories["owner/name"]
    repository.commit({**files, "tokenizer.json": json.dumps(tokenizer).encode()})
    status, said = do("train", workdir=copy)
    repository.commit(files)
    assert status == 1
    assert "hf://owner/name has another tokenizer now than when" in said
    assert f"name its revision (@{ran[1]['owner/name']})" in said
    assert not (copy / "training/checkpoints").exists()


def test_a_plan_needs_no_weights(place, repo, overrides, tmp_path):
    hub = place[0]
    before = len(hub.asked)
    options = [f"--config={repo}/configs/mini.py:runlocal", *overrides, *STUDENT]
    command = ["orca_jax.experiments.plan", *options, "--topology=h100-8", "--analytic"]
    done = hub.run(command, tmp_path, module=True, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "estimated, not compiled" in done.stdout
    assert [line for line in hub.asked[before:] if "/resolve/" in line and "config.json" in line]
    assert not [line for line in hub.asked[before:] if "safetensors" in line]


def test_what_is_no_run_makes_no_repository(place, tmp_path):
    hub, do, _ = place
    status, said = do("convert", "push", f"--model={tmp_path}", "--to=owner/nothing")
    assert status == 1
    assert "training has no manifest.json: it is unfinished or not an artifact" in said
    assert "owner/nothing" not in hub.repositories


@pytest.fixture(scope="module")
def pushed(place, ran):
    hub, do, workdir = place
    status, said = do("convert", "push", f"--model={workdir}", "--to=owner/tuned", "--dtype=bfloat16")
    assert status == 0, said
    assert f"uploaded to {hub.address}/owner/tuned/commit/" in said
    return hub.repositories["owner/tuned"]


def test_a_pushed_student_is_one_private_commit_that_serves(place, pushed, ran):
    _, do, workdir = place
    assert pushed.private
    assert len(pushed.log) == 2
    files = pushed.revisions["main"][1]
    expected = {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"}
    assert expected | {"tokenizer_config.json", "chat_template.jinja"} <= set(files)
    assert {"manifest.json", ".started.json"}.isdisjoint(files)
    status, said = do("convert", "import", "--model=owner/tuned", f"--out={workdir.parent / 'back'}")
    assert status == 0, said
    assert manifest(workdir.parent, "back")["revisions"]["hf://owner/tuned"]["commit"] == pushed.log[-1]


def test_the_card_says_of_what_the_student_was_made(pushed, ran):
    workdir, commits = ran
    card = pushed.revisions["main"][1]["README.md"].decode()
    header, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert "base_model: owner/name" in header
    assert "datasets:\n- owner/rows" in header
    assert "library_name: transformers" in header
    assert text.startswith("\n# tuned\n")
    link = "[datasets/owner/rows](https://huggingface.co/datasets/owner/rows)"
    assert f"{link} at `{commits['datasets/owner/rows'][:12]}`" in text
    assert "as its page says" in text
    assert "procedural oracle of orca_jax" in text
    assert f"[owner/name](https://huggingface.co/owner/name) at `{commits['owner/name'][:12]}`" in text
    for line in (workdir / "table.md").read_text().splitlines()[1:]:
        assert line in text  # a heading of the table is in one of a level more
    assert "### Puzzles" in text
    assert 'AutoTokenizer.from_pretrained("owner/tuned")' in text
    assert "How many legs do three cats and a bird have?" in text.partition("A prompt in full")[2]
    assert str(workdir) not in card


@pytest.mark.parity
def test_the_code_on_the_card_runs(place, pushed, tmp_path):
    hub, card = place[0], pushed.revisions["main"][1]["README.md"].decode()
    code = card.partition("```python\n")[2].partition("```")[0]
    done = hub.run(code.replace("=512", "=3"), tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    prompt = card.partition("A prompt in full:\n\n```\n")[2].rpartition("\n```")[0]
    assert prompt.strip().splitlines()[-1] in done.stdout
    assert "How many legs do three cats and a bird have?" in done.stdout


def test_the_terms_of_every_kind_of_teacher_are_said(finished, mini):
    config = mini()
    kinds = {
        "api": dict(
            kind="api", api={"endpoints": [{"model": "gpt-4", "base_url": "https://api.openai.com/v1"}]}
        ),
        "file": dict(kind="file", path="/home/me/rows.jsonl"),
        "student": dict(kind="student", path="hf://owner/name@v1"),
        "targets": dict(kind="targets"),
    }
    values = artifacts.plain(config)
    made = {"inputs": {"file": "0123456789abcdef", "student": "fedcba9876543210"}}
    values["flan"] = [{"sources": {"cot": "cot/*.tsv", "t0": "t0.jsonl"}}]
    told = {}
    for name, teacher in kinds.items():
        given = load({**values, "teachers": [{"name": name, **teacher}], "curriculum": []})
        told[name] = model_card.described(given, given.teachers[0], made)
    assert told["api"] == ("`gpt-4`, asked at api.openai.com", "its provider's, on the use of its outputs")
    assert told["file"][0] == "`rows.jsonl`, sha256 0123456789ab"
    assert "not known to the run" in told["file"][1]
    assert told["student"][0] == "[owner/name](https://huggingface.co/owner/name)"
    assert told["targets"][1] == "google-research/FLAN, Apache-2.0; bigscience/P3, Apache-2.0"


def test_a_card_needs_a_run(finished, tmp_path):
    shutil.copytree(
        finished / "training", tmp_path / "training", ignore=shutil.ignore_patterns("checkpoints")
    )
    with pytest.raises(artifacts.ArtifactError, match="of which the model card is made"):
        model_card.write(tmp_path, tmp_path, "owner/name")
