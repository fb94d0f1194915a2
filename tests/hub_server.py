"""A Hub on localhost: the endpoints that huggingface_hub speaks when it creates, pushes, lists and downloads a model.

Storage is in memory. Every request is written down, and ``hub.fault`` may spoil any of them. Every state that a branch
has been in is kept, so that a test can ask whether it ever pointed to a part of a model.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_PlantedTokenOfATest123"
LARGE = re.compile(r".*\.(safetensors|spm|bin)$")
"""Names that this Hub keeps as large files, as .gitattributes of the real one says."""


@dataclass(frozen=True)
class Stored:
    """A file in a commit."""

    content: bytes
    is_large: bool

    @property
    def git_sha1(self) -> str:
        """Of the blob: of a large file that is its pointer."""
        content = self.content
        if self.is_large:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Repository:
    """Branches, pull requests, commits."""

    private: bool
    heads: dict[str, str] = field(default_factory=dict)
    """Branch or ``refs/pr/N`` -> commit."""
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)
    """Every (branch, commit) in the order in which branches moved."""
    requests: list[str] = field(default_factory=list)
    """Titles of pull requests."""

    def move(self, branch: str, files: dict[str, Stored]) -> str:
        text = repr((len(self.states), branch, sorted((path, file.sha256) for path, file in files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit], self.heads[branch] = files, commit
        self.states.append((branch, commit))
        return commit

    def files(self, revision: str = "main") -> dict[str, Stored]:
        return self.commits[self.heads.get(revision, revision)]


@dataclass
class Hub:
    """Everything that the server knows; ``fault(number, method, path)`` names what goes wrong with a request.

    ``drop``: the connection ends before anything is done; ``lost``: it is done, and the connection ends before the
    answer; ``cut``: done, and half of the answer is sent; a number: that status, nothing done.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    """sha256 of large files that were taken in whole."""
    fault: Callable[[int, str, str], str | int | None] = lambda *_: None
    said: str = "no"
    """What the server writes into its refusals."""
    retry_after: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository that is there already."""
        repository = self.repositories[repo_id] = Repository(private)
        start = {".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)}
        repository.move("main", start)
        if files:
            stored = {path: Stored(content, bool(LARGE.fullmatch(path))) for path, content in files.items()}
            repository.move("main", start | stored)
        return repository


class Refused(Exception):
    """Status, headers."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        with hub.lock:
            number = len(hub.seen)
            hub.seen.append((self.command, path))
            fault = hub.fault(number, self.command, path)
        if fault == "drop":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if isinstance(fault, int):
            headers = {"Retry-After": hub.retry_after} if hub.retry_after else {}
            self._send(fault, {"error": hub.said}, headers)
            return
        try:
            with hub.lock:
                status, answer, headers = self._route(path, body)
        except Refused as refusal:
            status, answer, headers = refusal.args[0], {"error": hub.said}, refusal.args[1]
        if fault == "lost":
            self.close_connection = True
            return
        self._send(status, answer, headers, half=fault == "cut")

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, answer: object, headers: dict[str, str], half: bool = False) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True

    # ---- endpoints -------------------------------------------------------------------------------------------

    def _route(self, path: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        query = parse_qs(urlsplit(self.path).query)
        routes = (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/(refs/pr/\d+|[^/]+)(/.*)?", self._tree),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/discussions", self._discussions),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/large/(\w+)", self._large),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, endpoint in routes:
            if match := re.fullmatch(pattern, path):
                return endpoint(*match.groups(), body=body, query=query)
        raise Refused(404, {})

    def _must_be_known(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, {"X-Error-Message": self.hub.said})

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Refused(404, {"X-Error-Code": "RepoNotFound"})
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        commit = repository.heads.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _whoami(self, **_: object) -> tuple:
        self._must_be_known()
        return 200, {"type": "user", "name": "me", "orgs": []}, {}

    def _create(self, body: bytes, **_: object) -> tuple:
        self._must_be_known()
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if repo_id in self.hub.repositories else 200
        if status == 200:
            self.hub.add(repo_id, {}, asked.get("visibility") == "private")
        return status, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}, {}

    def _validate(self, body: bytes, **_: object) -> tuple:
        content = json.loads(body)["content"]
        if not re.match(r"---\n.*?\n---\n", content, re.DOTALL):
            return 400, {"errors": [{"message": "no metadata"}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def _info(self, repo_id: str, revision: str = "main", **_: object) -> tuple:
        repository = self._repository(repo_id)
        commit = self._revision(repository, revision)
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return 200, {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}, {}

    def _tree(self, repo_id: str, revision: str, folder: str | None = None, **_: object) -> tuple:
        repository = self._repository(repo_id)
        files = repository.commits[self._revision(repository, revision)]
        inside = (folder or "").strip("/")
        listed = []
        for path, file in sorted(files.items()):
            if inside and not path.startswith(inside + "/"):
                continue
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_sha1}
            if file.is_large:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
            listed.append(entry)
        if inside and not listed:
            raise Refused(404, {"X-Error-Code": "EntryNotFound"})
        folders = {path.split("/")[0] for path in files if "/" in path and not inside}
        listed += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
        return 200, listed, {}

    def _branch(self, repo_id: str, branch: str, **_: object) -> tuple:
        self._must_be_known()
        repository = self._repository(repo_id)
        if branch in repository.heads:
            return 409, {"error": "exists"}, {}
        repository.heads[branch] = repository.heads["main"]
        repository.states.append((branch, repository.heads["main"]))
        return 200, {}, {}

    def _preupload(self, repo_id: str, revision: str, body: bytes, **_: object) -> tuple:
        self._must_be_known()
        repository = self._repository(repo_id)
        there = repository.commits[self._revision(repository, revision)]
        answer = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            known = there.get(path)
            mode = "lfs" if LARGE.fullmatch(path) else "regular"
            facts = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if known is not None:
                facts["oid"] = known.sha256 if known.is_large else known.git_sha1
            answer.append(facts)
        return 200, {"files": answer}, {}

    def _batch(self, repo_id: str, body: bytes, **_: object) -> tuple:
        self._must_be_known()
        self._repository(repo_id)
        objects = []
        for asked in json.loads(body)["objects"]:
            facts = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                facts["actions"] = {"upload": {"href": f"{self.hub.url}/large/{asked['oid']}"}}
            objects.append(facts)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _large(self, oid: str, body: bytes, **_: object) -> tuple:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, {})
        self.hub.large[oid] = body
        self.hub.uploads.append(oid)
        return 200, {}, {}

    def _commit(self, repo_id: str, branch: str, body: bytes, query: dict[str, list[str]], **_: object) -> tuple:
        self._must_be_known()
        repository = self._repository(repo_id)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.heads[branch]):
            raise Refused(412, {})
        files = dict(repository.files(branch))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refused(400, {})
                files[value["path"]] = Stored(self.hub.large[value["oid"]], True)
            else:
                del files[value["path"]]
        answer = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/x"}
        if "create_pr" in query:
            repository.requests.append(header["summary"])
            branch = f"refs/pr/{len(repository.requests)}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{len(repository.requests)}"
        return 200, answer | {"commitOid": repository.move(branch, files)}, {}

    def _discussions(self, repo_id: str, **_: object) -> tuple:
        listed = [
            {
                "title": title,
                "num": number,
                "author": {"name": "me"},
                "createdAt": "2025-01-01T00:00:00.000Z",
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": repo_id, "type": "model"},
            }
            for number, title in enumerate(self._repository(repo_id).requests, 1)
        ]
        return 200, {"discussions": listed, "count": len(listed), "start": 0}, {}

    def _resolve(self, repo_id: str, revision: str, path: str, **_: object) -> tuple:
        repository = self._repository(repo_id)
        commit = self._revision(repository, revision)
        file = repository.commits[commit].get(path)
        if file is None:
            raise Refused(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        tag = file.sha256 if file.is_large else file.git_sha1
        return 200, file.content, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}


@contextmanager
def running_hub():
    """A fresh, empty Hub, for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfOneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
