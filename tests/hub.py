"""A small hub on loopback, which the real client is pointed at by HF_ENDPOINT."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, SIGNATURE = "hf_0123456789abcdefghijklmnopqrstuv", "X-Amz-Signature=0123456789abcdef"
LARGE = (".safetensors", ".parquet", ".bin")


@dataclasses.dataclass
class Repository:
    """`revisions` maps branches, tags and commits to the files there, `log` lists the commits."""

    private: bool = False
    gated: bool = False
    revisions: dict = dataclasses.field(default_factory=dict)
    log: list = dataclasses.field(default_factory=list)

    def commit(self, files):
        """A new commit of these files, which `main` is from now on."""
        made = hashlib.sha1(repr([sorted(files.items()), len(self.log)]).encode()).hexdigest()
        self.revisions[made] = self.revisions["main"] = made, files
        self.log.append(made)
        return made


class Hub(ThreadingHTTPServer):
    """What it is asked is in `asked`.

    Attributes:
      hang: a pattern of requests that get no answer.
      failing: a pattern of requests that are answered with `status`.
      ranges: the bytes at which transfers began.
      leaked: tokens that came to the CDN.
      torn: of a file's name, how often its transfer still ends after the first half.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.blobs, self.asked, self.torn = {}, {}, [], {}
        self.hang, self.failing, self.status, self.ended = "", "", 500, threading.Event()
        self.ranges, self.leaked = [], []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}"  # another host, which gets no token

    def add(self, name, files, **how):
        """A repository, `owner/name` or `datasets/owner/name`, of {path: bytes}; returns its commit."""
        self.repositories[name] = Repository(**how)
        return self.repositories[name].commit(files)

    def environment(self, folder, **more):
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1,localhost",
            **more,
        }

    def run(self, code, folder, module=False, **more):
        """Runs code, or a module with its arguments, as a user of this hub with a cache in `folder`."""
        command = ["-m", *code] if module else ["-c", code]
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env=self.environment(folder, **more),
            timeout=300,
        )


class Refusal(Exception):
    """The status of an answer, and the hub's code and message for it."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, address = self.server, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(f"{self.command} {self.path}")
        if hub.hang and re.search(hub.hang, self.path):
            hub.ended.wait(60)
        try:
            if hub.failing and re.search(hub.failing, self.path):
                raise Refusal(self.server.status, "", "")
            self.answer(unquote(address.path), parse_qs(address.query))
        except Refusal as refusal:
            status, code, message = refusal.args
            self.send(b"", status, {"X-Error-Code": code, "X-Error-Message": message})

    do_HEAD = do_POST = do_PUT = do_GET

    def send(self, content, status=200, headers=()):
        with contextlib.suppress(ConnectionError):  # who hung may have gone
            self._send(content, status, headers)

    def _send(self, content, status, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def say(self, value, status=200):
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def answer(self, path, query):
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, path):
                return method(self, *found.groups())
        raise Refusal(404, "", "")

    def allowed(self, name, content=True):
        """The repository, if the token may read it, or write where nothing is read."""
        token, found = self.headers.get("Authorization"), self.server.repositories.get(name)
        if token and token != f"Bearer {TOKEN}":
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if found is None or (found.private and not token):
            raise Refusal(401, "RepoNotFound", "Repository not found")
        if content and found.gated and not token:
            raise Refusal(403, "GatedRepo", "Access to this repository is restricted")
        return found

    def at(self, repository, revision):
        if revision not in repository.revisions:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.revisions[revision]

    def info(self, kind, name, revision):
        name = f"datasets/{name}" if kind == "datasets" else name
        repository = self.allowed(name, content=False)
        sha, files = self.at(repository, revision or "main")
        siblings = [{"rfilename": file} for file in files]
        self.say({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, kind, name, revision):
        _, files = self.at(self.allowed(f"datasets/{name}" if kind == "datasets" else name), revision)
        self.say(
            [
                {"type": "file", "path": file, "size": len(content), "oid": digest(content)}
                for file, content in files.items()
            ]
        )

    def resolve(self, name, revision, file):
        commit, files = self.at(self.allowed(name), revision)
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = files[file]
        self.server.blobs[digest(content)] = content
        headers["ETag"] = f'"{digest(content)}"'
        if not file.endswith(LARGE):
            return self.send(content, headers=headers)
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": len(content)}
        to = f"{self.server.cdn}/cdn/{digest(content)}/{file}?{SIGNATURE}"
        self.send(b"", 302, {**headers, **linked, "Location": to})

    def cdn(self, blob, file):
        self.server.leaked += self.headers.get_all("Authorization", [])
        content, begin = self.server.blobs[blob], 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            begin = int(found[1])
        self.server.ranges.append(begin)
        if not self.server.torn.get(file):
            return self.send(content[begin:], 206 if begin else 200)
        self.server.torn[file] -= 1
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", len(content) - begin)
        self.end_headers()
        self.wfile.write(content[begin : (begin + len(content)) // 2])
        self.close_connection = True

    def create(self):
        given = json.loads(self.body)
        name = f"{given['organization']}/{given['name']}"
        if name in self.server.repositories:
            return self.say({"url": f"{self.server.address}/{name}"}, 409)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "", "Invalid username or password.")
        self.server.add(name, {".gitattributes": b""}, private=given["visibility"] == "private")
        self.say({"url": f"{self.server.address}/{name}"})

    def preupload(self, name, revision):
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        self.say(
            {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
        )

    def batch(self, name):
        objects = json.loads(self.body)["objects"]
        action = {"actions": {"upload": {"href": f"{self.server.address}/lfs/"}}}
        for one in objects:
            one |= json.loads(json.dumps(action).replace("/lfs/", f"/lfs/{one['oid']}"))
        self.say({"objects": objects})

    def store(self, blob):
        assert digest(self.body) == blob
        self.server.blobs[blob] = self.body
        self.send(b"")

    def take(self, name, revision):
        repository = self.allowed(name)
        files = dict(self.at(repository, revision)[1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files)
        self.say({"commitUrl": f"{self.server.address}/{name}/commit/{made}", "commitOid": made})


NAME = r"([^/]+/[^/]+)"
ROUTES = (
    ("/api/repos/create", Answer.create),
    ("/api/validate-yaml", lambda self: self.say({"errors": [], "warnings": []})),
    (rf"/api/(models|datasets)/{NAME}(?:/revision/(.+))?", Answer.info),
    (rf"/api/(models|datasets)/{NAME}/tree/([^/]+)", Answer.tree),
    (rf"/api/models/{NAME}/preupload/(.+)", Answer.preupload),
    (rf"/api/models/{NAME}/commit/(.+)", Answer.take),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Answer.batch),
    ("/lfs/(.+)", Answer.store),
    ("/cdn/([^/]+)/(.+)", Answer.cdn),
    (r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", Answer.resolve),
)


def digest(content):
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def running():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.ended.set()
            hub.shutdown()
