"""A small hub on localhost that speaks the upload and download API of the Hugging Face hub.

    with Hub.running() as hub:
        hub.url                              # http://127.0.0.1:…
        hub.files("user/repo")               # {"README.md": b"…", …} of the last commit

It has repositories, branches, commits (NDJSON), large files (LFS batch and PUT) and downloads with
the headers that `huggingface_hub` reads. Only the token `TOKEN` may write, and only for the owner
``user``. It keeps what it was asked in ``requests``.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token"
OWNER = "user"


@dataclass
class Repository:
    """Branches and commits of one repository."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)
    large: set[str] = field(default_factory=set)
    """Names of the files that came through the storage of large files."""

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """State of the hub, and the server that shows it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fails_with: dict[str, int] = {}
        """Status by a part of the address, to answer such requests with an error."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @classmethod
    @contextmanager
    def running(cls) -> "Iterator[Hub]":
        hub = cls()
        thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.server.shutdown()
            hub.server.server_close()
            thread.join()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.branches[revision]]

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Any:
        """Return (status, headers, body) for one request."""
        self.requests.append(f"{method} {path}")
        for part, status in self.fails_with.items():
            if part in path:
                return _error(status, f"{part} fails")
        if path.startswith("/api/repos/create"):
            return self._create(json.loads(body), token)
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path.startswith("/storage/"):
            return self._store(path.removeprefix("/storage/"), body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match[1], json.loads(body), token)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)/(.+))?", path):
            return self._of_models(match[1], match[2], match[3], body, token)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        return _error(404, f"no such address: {path}")

    # -------------------------------------------------------------------------------------- writing

    def _create(self, asked: dict[str, Any], token: str | None) -> Any:
        if refusal := _refusal(asked["organization"], token):
            return refusal
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {}, _json({"error": "exists", "url": f"{self.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repositories[name] = Repository(private=bool(private))
        return 200, {}, _json({"url": f"{self.url}/{name}", "name": name, "id": name})

    def _validate(self, content: str) -> Any:
        import yaml

        data = yaml.safe_load(content.split("---")[1])
        errors = []
        base = data.get("base_model") or []
        for one in [base] if isinstance(base, str) else base:
            # The hub refuses a base model that cannot be a model's id, such as a path.
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", one):
                errors.append({"message": f'"base_model[0]" with value "{one}" is not valid'})
        return 400 if errors else 200, {}, _json({"errors": errors, "warnings": []})

    def _batch(self, name: str, asked: dict[str, Any], token: str | None) -> Any:
        if refusal := _refusal(name.split("/")[0], token):
            return refusal
        objects = [
            one
            | {"actions": {"upload": {"href": f"{self.url}/storage/{one['oid']}", "header": {}}}}
            for one in asked["objects"]
        ]
        return 200, {}, _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            return _error(400, "the content has another hash")
        self.objects[oid] = body
        return 200, {}, b""

    def _of_models(
        self, name: str, verb: str | None, rest: str | None, body: bytes, token: str | None
    ) -> Any:
        if name not in self.repositories:
            return _error(401, "Repository not found", "RepoNotFound")
        repository = self.repositories[name]
        if verb in ("preupload", "commit", "branch") and (
            refusal := _refusal(name.split("/")[0], token)
        ):
            return refusal
        if verb == "branch":
            if unquote(rest or "") in repository.branches:
                return _error(409, "Reference already exists")
            repository.branches[unquote(rest or "")] = repository.branches["main"]
            return 200, {}, b"{}"
        revision = unquote((rest or "main").split("/")[0])
        commit = repository.commit_of(revision)
        if commit is None:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if verb == "preupload":
            return self._preupload(json.loads(body))
        if verb == "commit":
            return self._commit(name, repository, revision, body)
        if verb == "tree":
            return 200, {}, _json([_entry(*one) for one in repository.commits[commit].items()])
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        return 200, {}, _json(about | {"private": repository.private})

    def _preupload(self, asked: dict[str, Any]) -> Any:
        # The hub takes binary files as large ones.
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = [
            {"path": one["path"], "uploadMode": mode(one["path"]), "shouldIgnore": False}
            for one in asked["files"]
        ]
        return 200, {}, _json({"files": files})

    def _commit(self, name: str, repository: Repository, revision: str, body: bytes) -> Any:
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        files = dict(repository.commits[repository.branches[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return _error(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.objects[value["oid"]]
                repository.large.add(value["path"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches[revision] = commit
        url = f"{self.url}/{name}/commit/{commit}"
        return 200, {}, _json({"success": True, "commitOid": commit, "commitUrl": url})

    # -------------------------------------------------------------------------------------- reading

    def _resolve(self, name: str, revision: str, path: str) -> Any:
        if name not in self.repositories:
            return _error(401, "Repository not found", "RepoNotFound")
        repository = self.repositories[name]
        commit = repository.commit_of(revision)
        if commit is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        if path not in repository.commits[commit]:
            return _error(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
        content = repository.commits[commit][path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit}, content


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            path = urlsplit(self.path).path
            status, headers, content = hub.answer(self.command, path, body, token)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._answer)
    return Handler


def _refusal(owner: str | None, token: str | None) -> Any:
    """Return the answer to somebody who may not write; None if they may."""
    if token != TOKEN:
        return _error(401, "Invalid credentials in Authorization header")
    if owner != OWNER:
        return _error(403, f"You don't have the rights to create a model under {owner}")
    return None


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _error(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> Any:
    sent = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
    return status, sent, _json({"error": message})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
