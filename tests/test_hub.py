"""Repositories of the hub by reference: the real client against a small hub on loopback."""

import json
from pathlib import Path

import pytest

from orca_jax import hub as module
from tests.hub import SIGNATURE, TOKEN, digest, running

WEIGHTS = bytes(range(256)) * 400
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"model": 1}', "README.md": b"A model."}
MODEL = {**SMALL, "model.safetensors": WEIGHTS}
OTHERS = {
    "pytorch_model.bin": b"pickle",
    "model.onnx": b"onnx",
    "m.gguf": b"gguf",
    "sub/model.safetensors": b"x",
}
CALL = """
import json, logging, os, pathlib
from orca_jax import cli, hub, storage
cli.set_up_logging()
def call():
    found = {call}
    folder = pathlib.Path(found)
    files = {{str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}}
    print(json.dumps([found, files, hub.revisions({named!r})]))
cli.checked(call)
"""


@pytest.fixture
def hub():
    with running() as made:
        yield made


@pytest.fixture
def call(hub, tmp_path):
    """`call("hub.model", reference)`: its path, the files there and what goes into a manifest; or the error.

    Each is a process of its own, whose cache is kept from one to the next.
    """

    def run(function, named, **environment):
        code = CALL.format(call=f"{function}({named!r})", named=named)
        done = hub.run(code, tmp_path, **environment)
        assert TOKEN not in done.stdout + done.stderr
        assert SIGNATURE not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode:
            assert done.stderr.count("error: ") == 1
            return done.stderr[done.stderr.rindex("error: ") :].strip()
        return json.loads(done.stdout)

    return run


def asked(hub, what):
    return [line for line in hub.asked if what in line]


def test_only_what_is_needed_of_a_model_is_fetched(hub, call):
    commit = hub.add("owner/name", {**MODEL, **OTHERS})
    folder, files, revisions = call("hub.model", "hf://owner/name")
    assert files == {name: len(MODEL[name]) for name in MODEL if name != "README.md"}
    assert folder.endswith(f"/snapshots/{commit}")
    sha256 = {name: digest(MODEL[name]) for name in files}
    assert revisions == {"hf://owner/name": {"commit": commit, "files": sha256}}


def test_shards_are_those_that_the_index_names(hub, call):
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
    shards = {"model-1-of-2.safetensors": b"1", "model-2-of-2.safetensors": b"2"}
    files = {**SMALL, **shards, "model.safetensors.index.json": index.encode()}
    hub.add("owner/name", {**files, "consolidated.safetensors": WEIGHTS})
    assert set(call("hub.model", "hf://owner/name")[1]) == set(files) - {"README.md"}


def test_a_tokenizer_comes_without_the_weights(hub, call):
    hub.add("owner/name", {**MODEL, "tokenizer.model": b"pieces"})
    files = call("hub.tokenizer", "hf://owner/name")[1]
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer.model"}
    assert call("hub.tokenizer", "hf://owner/name/tokenizer.model")[0].endswith("/tokenizer.model")


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, call):
    first = hub.add("owner/name", MODEL)
    hub.repositories["owner/name"].revisions["v1"] = first, MODEL
    second = hub.repositories["owner/name"].commit({**MODEL, "config.json": b'{"a": 1}'})
    for revision, commit in (("", second), ("@v1", first), (f"@{first}", first), ("@main", second)):
        named = f"hf://owner/name{revision}"
        folder, _, revisions = call("hub.model", named)
        assert folder.endswith(commit)
        assert revisions[named]["commit"] == commit


def test_files_folders_and_patterns_of_a_data_set(hub, call):
    hub.add(
        "datasets/owner/rows", {"d/a.parquet": b"1", "d/b.parquet": b"22", "d/c.csv": b"3", "e/d.csv": b"4"}
    )
    top = "hf://datasets/owner/rows"
    path, _, revisions = call("storage.local", f"{top}/d/a.parquet")
    assert Path(path).read_bytes() == b"1"
    assert revisions[f"{top}/d/a.parquet"]["files"] == {"d/a.parquet": digest(b"1")}
    assert asked(hub, "b.parquet") == []
    assert call("storage.local", f"{top}@main/d/*.parquet")[0].endswith("/d/*.parquet")
    assert asked(hub, "b.parquet")
    assert asked(hub, ".csv") == []
    assert set(call("storage.local", f"{top}/d")[1]) == {"a.parquet", "b.parquet", "c.csv"}


def test_a_torn_transfer_is_resumed_where_it_ended(hub, call):
    written = 10 * 2**20  # bytes that the client writes at once
    weights = WEIGHTS * (5 * written // 2 // len(WEIGHTS))
    hub.add("owner/name", {**MODEL, "model.safetensors": weights})
    hub.torn["model.safetensors"] = 1
    _, _, revisions = call("hub.model", "hf://owner/name")
    assert revisions["hf://owner/name"]["files"]["model.safetensors"] == digest(weights)
    assert hub.ranges == [0, written]


def test_what_was_fetched_in_part_is_not_taken_for_whole(hub, call, tmp_path):
    hub.add("owner/name", MODEL)
    hub.hang = "cdn"
    code = CALL.format(call="hub.model('hf://owner/name')", named="")
    stopped = hub.run(f"import signal; signal.alarm(4)\n{code}", tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="60")
    assert stopped.returncode == -14
    hub.hang = ""
    assert "error: hf://owner/name: the hub at" in call("hub.model", "hf://owner/name", HF_HUB_OFFLINE="1")
    assert len(call("hub.model", "hf://owner/name")[1]) == 3


def test_without_a_network_the_cache_serves(hub, call):
    commit = hub.add("owner/name", MODEL)
    hub.add("datasets/owner/rows", {"a.parquet": b"1"})
    names = {"hub.model": "hf://owner/name", "storage.local": "hf://datasets/owner/rows/a.parquet"}
    warm = {function: call(function, named) for function, named in names.items()}
    assert warm["hub.model"][0].endswith(commit)
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        assert {function: call(function, named, **environment) for function, named in names.items()} == warm
        said = call("hub.model", "hf://owner/other", **environment)
        assert "hf://owner/other: the hub at" in said
        assert "the cache has not all of it; see to the network, HF_ENDPOINT and HF_HUB_OFFLINE" in said


def test_a_hub_that_hangs_is_not_waited_for(hub, call):
    hub.add("owner/name", MODEL)
    warm = call("hub.model", "hf://owner/name")
    hub.hang = "."
    assert call("hub.model", "hf://owner/name") == warm
    assert "cannot be reached (ReadTimeout: timed out)" in call("hub.model", "hf://owner/other")


ERRORS = {
    "owner/none": "the hub has no such repository, or shows it to some only; correct the name, or",
    "hf://owner/private": "the hub has no such repository, or shows it to some only",
    "hf://owner/gated": "the repository is gated; accept its terms at {page}/owner/gated, and put a token",
    "hf://owner/name@v9": "the repository has no such revision; see {page}/owner/name",
    "hf://owner/pickled": "neither model.safetensors nor model.safetensors.index.json, but config.json, py",
    "hf://owner": "Repository id must be 'namespace/name'",
    "hf://spaces/owner/name": "is no model's folder; a model is hf://owner/name",
    "hf://datasets/owner/name": "is no model's folder; a model is hf://owner/name",
}


def fill(hub):
    hub.add("owner/name", MODEL)
    hub.add("owner/private", MODEL, private=True)
    hub.add("owner/gated", MODEL, gated=True)
    hub.add("owner/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.add("datasets/owner/rows", {"data/train.parquet": b"1"})


@pytest.mark.parametrize("named", ERRORS)
def test_what_cannot_be_had_is_explained(hub, call, named):
    fill(hub)
    said = call("hub.model", named)
    assert said.startswith(f"error: {named}{'' if named.startswith('hf:') else ' (no folder here)'}")
    assert ERRORS[named].format(page=hub.address) in said


def test_a_token_opens_what_is_private_and_goes_to_the_hub_alone(hub, call):
    fill(hub)
    for name in ("private", "gated"):
        assert len(call("hub.model", f"hf://owner/{name}", HF_TOKEN=TOKEN)[1]) == 3
    said = call("hub.model", "hf://owner/private", HF_TOKEN="hf_thatwasrevoked")
    assert "the hub refuses the token (401); put one that may use the repository into HF_TOKEN" in said
    assert "thatwasrevoked" not in said
    assert hub.leaked == []


def test_a_file_that_is_not_there_is_named_with_those_that_are(hub, call):
    fill(hub)
    said = call("storage.local", "hf://datasets/owner/rows/data/trian.parquet")
    assert "the repository has no data/trian.parquet, but data/train.parquet; correct the name" in said
    for named in ("hf://datasets/owner/rows", "hf://spaces/owner/rows/a.jsonl"):
        said = call("storage.local", named)
        assert said == f"error: {named} is no file; a data set's is hf://datasets/owner/name/FILE"


def test_a_hub_that_fails_is_asked_again_later(hub, call):
    fill(hub)
    hub.failing = "cdn"
    assert "the hub answers 500; run the same command again to go on" in call("hub.model", "hf://owner/name")
    hub.failing = ""
    assert len(call("hub.model", "hf://owner/name")[1]) == 3


FULL = """
import os, shutil
def full(*_, **__):
    raise OSError(28, os.strerror(28))
os.replace = shutil.move = full
"""


def test_a_full_disk_is_no_fault_of_the_hub(hub, tmp_path):
    fill(hub)
    done = hub.run(FULL + CALL.format(call="hub.model('hf://owner/name')", named=""), tmp_path)
    assert done.returncode == 1
    assert "error: [Errno 28] No space left on device\nThe disk is full: free some space" in done.stderr


def test_a_plain_name_is_a_repository_where_no_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/mini", "/owner/name", "./name", "name", "a/b/c", "gs://bucket/name", "~/name", ""):
        assert module.reference(path) == ""
        assert module.model(path) == path
    for path in ("owner/name", "owner/na.me-1", "owner/name@v1"):
        assert module.reference(path) == f"hf://{path}"
    assert module.reference("hf://owner/name@v1") == "hf://owner/name@v1"


def test_settings_hold_no_revision():
    assert (
        module.unpinned("hf://datasets/owner/rows@v1/a@b.parquet") == "hf://datasets/owner/rows/a@b.parquet"
    )
    assert module.unpinned("hf://owner/name@refs/pr/1/a.model") == "hf://owner/name/a.model"
    assert module.unpinned("runs/me@home") == "runs/me@home"


# --- Uploads

PUSH = "hub.create({to!r}, public={public}) or hub.push(pathlib.Path({folder!r}), {to!r}, 'A student')"


@pytest.fixture
def push(hub, call, tmp_path):
    """`push(files)`: uploads them; what came of it."""

    def upload(files, to="owner/made", public=False, **environment):
        folder = tmp_path / f"export{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        what = PUSH.format(folder=str(folder), to=to, public=public)
        code = CALL.format(call=what, named="")
        done = hub.run(code, tmp_path, **{"HF_TOKEN": TOKEN, **environment})
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip() if done.returncode else json.loads(done.stdout)[0]

    return upload


def test_an_upload_is_one_commit_of_a_private_repository(hub, push):
    said = push(MODEL)
    made = hub.repositories["owner/made"]
    assert made.private
    assert len(made.log) == 2  # the hub's own, and ours
    assert made.revisions["main"] == (made.log[1], {".gitattributes": b"", **MODEL})
    assert said == f"{hub.address}/owner/made/commit/{made.log[1]}"
    assert push(MODEL, to="hf://owner/open", public=True)
    assert not hub.repositories["owner/open"].private


def test_another_export_leaves_no_weights_of_the_one_before(hub, push):
    shards = {"model-1-of-1.safetensors": b"1", "model.safetensors.index.json": b"{}"}
    push({**SMALL, **shards})
    push(MODEL)
    files = hub.repositories["owner/made"].revisions["main"][1]
    assert set(files) == {".gitattributes", *MODEL}
    assert len(hub.repositories["owner/made"].log) == 3


def test_a_public_repository_is_not_written_by_mistake(hub, push):
    hub.add("owner/made", {})
    assert "the repository is public; give --public to upload to it" in push(MODEL)
    assert len(hub.repositories["owner/made"].log) == 1
    assert push(MODEL, public=True).endswith(hub.repositories["owner/made"].log[1])


def test_an_upload_that_ends_early_leaves_nothing_visible(hub, push):
    push(SMALL)
    before = hub.repositories["owner/made"].revisions["main"]
    hub.failing = "/commit/"
    assert "owner/made: the hub answers 500; run the same command again to go on" in push(MODEL)
    assert hub.repositories["owner/made"].revisions["main"] == before
    assert digest(WEIGHTS) in hub.blobs  # was there already, and no commit names it
    hub.failing, hub.status = "/lfs/", 403
    assert "owner/made: the hub refuses the token (403)" in push(MODEL)
    assert hub.repositories["owner/made"].revisions["main"] == before
    hub.failing = ""
    push(MODEL)
    assert hub.repositories["owner/made"].revisions["main"][1] == {".gitattributes": b"", **MODEL}


def test_an_upload_needs_a_token(hub, push):
    assert "put one that may use the repository into HF_TOKEN" in push(MODEL, HF_TOKEN="")
    assert "the hub refuses the token (401)" in push(MODEL, HF_TOKEN="hf_thatwasrevoked")
    assert hub.repositories == {}
