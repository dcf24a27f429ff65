"""What the stand-in of the hub keeps, and what it answers to each request of `huggingface_hub`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/models/{REPOSITORY}"


@dataclass(frozen=True)
class Commit:
    """A snapshot: path → (True if it is in LFS, the bytes or LFS's SHA-256)."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, tuple[bool, bytes]]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, tuple[bool, bytes]]) -> Commit:
        parent = self.branches.get(branch)
        oid = hashlib.sha1(repr((parent, title, sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]


class Refusal(Exception):
    """An answer that is an error: its number, the hub's word for it, and a text."""

    def __init__(self, status: int, code: str = "", text: str = "refused") -> None:
        super().__init__(text)
        self.status, self.code = status, code


Answer = tuple[int, bytes, dict[str, str]]


def said(value: Any, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


def create(handler: Any) -> Answer:
    handler.require_writer()
    asked = handler.json()
    name = f"{asked['organization']}/{asked['name']}"
    if name in handler.server.repositories:
        return said({"error": "You already created this model repo", "url": f"{handler.server.url}/{name}"}, 409)
    made = Repository(private=asked.get("visibility") == "private")
    made.commit("main", "initial commit", {".gitattributes": (False, b"*.safetensors filter=lfs\n")})
    handler.server.repositories[name] = made
    return said({"url": f"{handler.server.url}/{name}"})


def validate(handler: Any) -> Answer:
    """As the hub: the card's head must be YAML."""
    head = re.match(r"---\n(.*?)\n---\n", handler.json()["content"], re.DOTALL)
    try:
        value = yaml.safe_load(head.group(1)) if head else None
    except yaml.YAMLError as error:
        return said({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warnings = [] if isinstance(value, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
    return said({"errors": [], "warnings": warnings})


def info(handler: Any, name: str, revision: str = "main") -> Answer:
    commit = handler.repository(name).at(revision)
    return said({"id": name, "sha": commit.oid, "siblings": [{"rfilename": path} for path in commit.files]})


def commits(handler: Any, name: str, revision: str) -> Answer:
    """The newest first, three to a page."""
    made = handler.repository(name)
    found, commit = [], made.at(revision)
    while True:
        date = "2026-01-01T00:00:00.000Z"
        found.append({"id": commit.oid, "authors": [], "date": date, "title": commit.title, "message": ""})
        if commit.parent is None:
            break
        commit = made.commits[commit.parent]
    start = int((re.search(r"[?&]from=(\d+)", handler.path) or [0, 0])[1])
    status, body, headers = said(found[start : start + 3])
    if start + 3 < len(found):
        headers["Link"] = f'<{handler.server.url}{handler.route}?from={start + 3}>; rel="next"'
    return status, body, headers


def preupload(handler: Any, name: str, revision: str) -> Answer:
    handler.require_writer()
    there = handler.repository(name).at(revision).files
    asked = [file["path"] for file in handler.json()["files"]]
    return said({"files": [_mode(path, there.get(path)) for path in asked]})


def _mode(path: str, there: tuple[bool, bytes] | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
        "shouldIgnore": False,
    }
    if there is not None:
        lfs, data = there
        value["oid"] = data.decode() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return value


def batch(handler: Any, name: str) -> Answer:
    handler.require_writer()
    handler.repository(name)
    objects = []
    for asked in handler.json()["objects"]:
        href = f"{handler.server.url}/lfs/{asked['oid']}"
        if asked["oid"] not in handler.server.objects:
            asked = asked | {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
        objects.append(asked)
    return said({"transfer": "basic", "objects": objects})


def store(handler: Any, oid: str) -> Answer:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        raise Refusal(400, text="these are other bytes")
    handler.server.objects[oid] = handler.body
    return 200, b"", {}


def verify(handler: Any, oid: str) -> Answer:
    handler.require_writer()
    if len(handler.server.objects.get(oid, b"")) != handler.json()["size"]:
        raise Refusal(404, text="not uploaded")
    return said({})


def stored(handler: Any, oid: str) -> Answer:
    """Where files of LFS really are: nobody is asked for a token there."""
    return 200, handler.server.objects[oid], {}


def commit(handler: Any, name: str, revision: str) -> Answer:
    handler.require_writer()
    made, lines = handler.repository(name), [json.loads(line) for line in handler.body.splitlines()]
    files, header = dict(made.at(revision).files), lines[0]["value"]
    if header.get("parentCommit") not in (None, made.branches[revision]):
        raise Refusal(412, text="A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        key, value = line["key"], line["value"]
        if key == "deletedFile":
            del files[value["path"]]
        elif key == "lfsFile":
            if value["oid"] not in handler.server.objects:
                raise Refusal(400, text="LFS pointer points to a file that does not exist")
            files[value["path"]] = (True, value["oid"].encode())
        else:
            files[value["path"]] = (False, base64.b64decode(value["content"]))
    oid = made.commit(revision, header["summary"], files).oid
    return said({"commitUrl": f"{handler.server.url}/{name}/commit/{oid}", "commitOid": oid})


def branch(handler: Any, name: str, revision: str) -> Answer:
    handler.require_writer()
    made = handler.repository(name)
    if revision in made.branches:
        raise Refusal(409, text="Reference already exists")
    made.branches[revision] = made.at(handler.json()["startingPoint"]).oid
    return said({})


def resolve(handler: Any, name: str, revision: str, path: str) -> Answer:
    found = handler.repository(name).at(revision)
    if path not in found.files:
        raise Refusal(404, "EntryNotFound", "Entry not found")
    lfs, data = found.files[path]
    if not lfs:
        return 200, data, {"X-Repo-Commit": found.oid, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
    oid = data.decode()
    headers = {"X-Linked-Size": str(len(handler.server.objects[oid])), "X-Linked-ETag": f'"{oid}"'}
    # another origin, as the hub's files are: the client must not send its token there
    elsewhere = handler.server.url.replace("127.0.0.1", "localhost")
    return 302, b"", headers | {"X-Repo-Commit": found.oid, "Location": f"{elsewhere}/lfs/{oid}"}


REVISION, OID = r"(?P<revision>[^/]+)", r"(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate),
    (rf"GET {API}", info),
    (rf"GET {API}/revision/{REVISION}", info),
    (rf"GET {API}/commits/{REVISION}", commits),
    (rf"POST {API}/preupload/{REVISION}", preupload),
    (rf"POST {API}/commit/{REVISION}", commit),
    (rf"POST {API}/branch/{REVISION}", branch),
    (rf"POST /{REPOSITORY}\.git/info/lfs/objects/batch", batch),
    (rf"PUT /lfs/{OID}", store),
    (rf"POST /lfs/{OID}/verify", verify),
    (rf"GET /lfs/{OID}", stored),
    (rf"GET /{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)", resolve),
]
