"""A local stand-in of the Hugging Face Hub's API, for datasets: what the real client asks of it.

Written from what huggingface_hub sends and expects. It keeps repositories with their commits in
memory, asks for a token, stores large files by the protocol of Git LFS (batch, upload, verify), and
refuses a commit whose parent is no longer the newest. Xet, which the Hub prefers where the client
has it, is not spoken: clients need HF_HUB_DISABLE_XET=1.

Faults are planted by `fault`: an answer, a connection dropped in the middle, or something that
happens on the Hub at that moment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, TOKEN, READ_TOKEN = "me", "hf_aGoodTokenOfMine", "hf_aTokenThatMayOnlyRead"
SIGNATURE = "X-Signature=whoHasThisMayWrite"


@dataclass(frozen=True)
class Blob:
    """A file's content; large ones are stored by SHA-256, others by git's SHA-1."""

    data: bytes
    is_large: bool

    @property
    def hash(self) -> str:
        if self.is_large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """How the Hub lists it."""
        git = hashlib.sha1(self.hash.encode()).hexdigest() if self.is_large else self.hash
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": git}
        if self.is_large:
            entry["lfs"] = {"oid": self.hash, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """A dataset: its commits, the newest last, each with all of its files."""

    private: bool
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    def commit(self, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1][1]

    def at(self, revision: str) -> dict[str, Blob] | None:
        if revision in ("main", ""):
            return self.files
        return dict(self.commits).get(revision)

    def write(self, path: str, data: bytes | str) -> None:
        """Commit one file, as its owner does in the browser."""
        content = data.encode() if isinstance(data, str) else data
        self.commit(self.files | {path: Blob(content, path.endswith(".parquet"))})


@dataclass
class Fault:
    """What happens to requests that match, `times` times after the first `skip`."""

    method: str
    path: re.Pattern[str]
    times: int
    skip: int
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    drop: bool = False
    happens: Callable[[], None] | None = None


class HubStandIn:
    """The Hub, at `url` while `running()`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.verified: set[str] = set()
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.url = ""

    def forget(self) -> None:
        """Be as new."""
        self.repositories, self.objects, self.verified = {}, {}, set()
        self.requests, self.faults = [], []

    def add(self, name: str, *, private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private)
        repository.commit({".gitattributes": Blob(b"*.parquet filter=lfs\n", False)})
        return repository

    def fault(self, method: str, path: str, *, times: int = 1, skip: int = 0, **what: Any) -> None:
        self.faults.append(Fault(method, re.compile(path), times, skip, **what))

    def asked(self, method: str, path: str) -> list[str]:
        """Requests so far, as `METHOD path`."""
        return [each for each in self.requests if re.match(f"{method} .*{path}", each)]

    @contextmanager
    def running(self) -> Iterator[HubStandIn]:
        hub = self

        class Handler(_Handler):
            stand_in = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Answer(Exception):
    def __init__(self, status: int, value: Any = None, /, **headers: str) -> None:
        self.status, self.value = status, value
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: HubStandIn

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.stand_in.requests.append(f"{self.command} {path}")
        fault = self._fault(path)
        if fault and fault.drop:
            self.close_connection = True
            self.rfile.read(1)
            return
        body = self._body()
        try:
            if fault and fault.happens:
                fault.happens()
            elif fault:
                raise _Answer(fault.status, {"error": fault.message}, **fault.headers)
            self._dispatch(path, body)
        except _Answer as answer:
            self._send(answer)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _fault(self, path: str) -> Fault | None:
        for fault in self.stand_in.faults:
            if fault.method == self.command and fault.path.search(path):
                if fault.skip:
                    fault.skip -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: _Answer) -> None:
        data = (
            answer.value if isinstance(answer.value, bytes) else json.dumps(answer.value).encode()
        )
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not isinstance(answer.value, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- What is asked ---------------------------------------------------------------------------

    def _dispatch(self, path: str, body: bytes) -> None:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                answer(self, body, **match.groupdict())
        raise _Answer(404, {"error": f"the stand-in has no {self.command} {path}"})

    def _user(self, *, writes: bool) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            message = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": f"{message}: {token}"}, X_Error_Message=message)
        if writes and token == READ_TOKEN:
            raise _Answer(403, {"error": "this token may only read"})

    def _repository(self, name: str) -> Repository:
        repository = self.stand_in.repositories.get(name)
        if repository is None:
            raise _Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repository

    def _files(self, name: str, revision: str) -> dict[str, Blob]:
        files = self._repository(name).at(revision)
        if files is None:
            raise _Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return files

    def whoami(self, _: bytes) -> None:
        self._user(writes=False)
        raise _Answer(200, {"type": "user", "name": OWNER, "orgs": []})

    def create(self, body: bytes) -> None:
        self._user(writes=True)
        asked = json.loads(body)
        owner = asked.get("organization") or OWNER
        name = f"{owner}/{asked['name']}"
        if asked["type"] != "dataset":
            raise _Answer(400, {"error": "the stand-in has datasets only"})
        if owner != OWNER:
            raise _Answer(403, {"error": f"you have no rights in the namespace {owner}"})
        if asked["name"].startswith("reserved"):
            raise _Answer(400, {"error": "this name is reserved"})
        if name in self.stand_in.repositories:
            raise _Answer(409, {"error": "You already created this dataset repo"})
        self.stand_in.add(name, private=asked.get("visibility") == "private")
        raise _Answer(200, {"url": f"{self.stand_in.url}/datasets/{name}"})

    def info(self, _: bytes, name: str, revision: str | None = None) -> None:
        if self.headers.get("Authorization"):
            self._user(writes=False)
        repository = self._repository(name)
        files = self._files(name, revision or "main")
        sha = revision if revision not in (None, "main") else repository.head
        siblings = [{"rfilename": path} for path in files]
        raise _Answer(
            200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}
        )

    def validate(self, body: bytes) -> None:
        front = re.match(r"---\r?\n(.*?)\r?\n---", json.loads(body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(front[1]) if front else {}
        except yaml.YAMLError as error:
            raise _Answer(400, {"errors": [{"message": str(error)}]}) from None
        if data.get("license") == "no-such-license":
            raise _Answer(400, {"errors": [{"message": '"license" must be one of [...]'}]})
        warnings = [] if "license" in data else [{"message": "no license is given"}]
        raise _Answer(200, {"errors": [], "warnings": warnings})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self._user(writes=True)
        there = self._files(name, revision)
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(".parquet") else "regular",
                "shouldIgnore": False,
                "oid": there[each["path"]].hash if each["path"] in there else None,
            }
            for each in json.loads(body)["files"]
        ]
        raise _Answer(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self._user(writes=True)
        self._repository(name)
        objects = []
        for each in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.stand_in.verified:
                url = self.stand_in.url
                answer["actions"] = {
                    "upload": {"href": f"{url}/storage/{each['oid']}?{SIGNATURE}"},
                    "verify": {"href": f"{url}/datasets/{name}.git/info/lfs/verify"},
                }
            objects.append(answer)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert SIGNATURE in self.path
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Answer(400, {"error": "the content has another hash"})
        self.stand_in.objects[oid] = body
        raise _Answer(200, {})

    def verify(self, body: bytes, name: str) -> None:
        self._user(writes=True)
        asked = json.loads(body)
        if len(self.stand_in.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Answer(404, {"error": "not uploaded"})
        self.stand_in.verified.add(asked["oid"])
        raise _Answer(200, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self._user(writes=True)
        repository = self._repository(name)
        header, *changes = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", repository.head) != repository.head:
            raise _Answer(412, {"error": "A commit has happened since. Please refresh."})
        files = dict(repository.files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif change["key"] == "lfsFile":
                assert value["oid"] in self.stand_in.verified
                files[value["path"]] = Blob(self.stand_in.objects[value["oid"]], True)
            else:
                assert change["key"] == "deletedFile"
                del files[value["path"]]
        url = f"{self.stand_in.url}/datasets/{name}"
        if "create_pr" in self.query:
            commit = {"commitUrl": f"{url}/commit/0", "commitOid": "f" * 40}
            raise _Answer(200, commit | {"pullRequestUrl": f"{url}/discussions/1"})
        oid = repository.commit(files)
        raise _Answer(200, {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid})

    def tree(self, _: bytes, name: str, revision: str, path: str | None = None) -> None:
        files = self._files(name, revision)
        inside = f"{path}/" if path else ""
        found = [blob.entry(each) for each, blob in files.items() if each.startswith(inside)]
        folders = {each["path"][len(inside) :].partition("/")[0] for each in found}
        folders = {each for each in folders if inside + each not in files}
        if path and not found:
            raise _Answer(404, {"error": "no such path"}, X_Error_Code="EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            found = [each for each in found if "/" not in each["path"][len(inside) :]]
        found += [{"type": "directory", "path": inside + f, "oid": "0" * 40} for f in folders]
        raise _Answer(200, found)

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        files = self._files(name, revision)
        paths = parse_qs(body.decode()).get("paths", [])
        found = [files[path].entry(path) for path in paths if path in files]
        folders = [p for p in paths if any(each.startswith(f"{p}/") for each in files)]
        found += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        raise _Answer(200, found)

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        files = self._files(name, revision)
        commit = self._repository(name).head if revision == "main" else revision
        if path not in files:
            raise _Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        blob = files[path]
        raise _Answer(200, blob.data, ETag=f'"{blob.hash}"', X_Repo_Commit=commit)


_DATASET = r"/api/datasets/(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", _DATASET, _Handler.info),
    ("GET", rf"{_DATASET}/revision/(?P<revision>.+)", _Handler.info),
    ("POST", rf"{_DATASET}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"{_DATASET}/commit/(?P<revision>.+)", _Handler.commit),
    ("GET", rf"{_DATASET}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _Handler.tree),
    ("POST", rf"{_DATASET}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("POST", r"/datasets/(?P<name>.+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", r"/datasets/(?P<name>.+)\.git/info/lfs/verify", _Handler.verify),
    ("PUT", r"/storage/(?P<oid>\w+)", _Handler.store),
    (
        "GET",
        r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]
