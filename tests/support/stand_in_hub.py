"""A hub on this machine for huggingface_hub's real client: repositories, branches, commits, large files, private ones.

Only what pushing and pulling a ticket asks for. `python stand_in_hub.py` prints its address and serves until its
standard input ends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writes"
LARGE = 20_000
"""Bytes from which on a file is uploaded as a large one."""


class Repo:
    """Commits of a branch are lists of (sha, {path: content}), oldest first."""

    def __init__(self, name: str, private: bool) -> None:
        self.private = private
        self.branches: dict[str, list[tuple[str, dict[str, bytes]]]] = {
            "main": [(hashlib.sha1(name.encode()).hexdigest(), {})]
        }

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit[0] == revision), None)


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, Repo]
    large: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any = b"", code: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: int, name: str) -> None:
        self.answer({"error": name}, code, {"X-Error-Code": name})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            if len(content) < length:
                raise ConnectionAbortedError("the client is gone: half a request is none")
            return content
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name: str) -> Repo | None:
        found = self.repos.get(name)
        return found if found is not None and (not found.private or self.may_write()) else None

    def do_POST(self) -> None:
        content, path = self.body(), self.path.split("?")[0]
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.may_write():
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repos:
                return self.answer({"url": name, "error": "exists"}, 409)
            self.repos[name] = Repo(name, bool(asked.get("private")) or asked.get("visibility") == "private")
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repo = self.repos[found[1]]
            if found[2] in repo.branches:
                return self.answer({"error": "exists"}, 409)
            repo.branches[found[2]] = list(repo.branches["main"])
            return self.answer({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(content)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular"} for f in files
            ]
            return self.answer({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            place = f"http://{self.headers['Host']}/large/"
            actions = [
                {**o, "actions": {"upload": {"href": place + o["oid"], "header": {}}}} for o in objects
            ]
            return self.answer({"transfer": "basic", "objects": actions})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            branch = self.repos[found[1]].branches[found[2]]
            files = dict(branch[-1][1])
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
            sha = hashlib.sha1(content + branch[-1][0].encode()).hexdigest()
            branch.append((sha, files))
            address = f"http://{self.headers['Host']}/{found[1]}/commit/{sha}"
            return self.answer({"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": ""})
        return self.refuse(404, "Unknown")

    def do_PUT(self) -> None:
        content = self.body()
        oid = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, "Damaged")
        self.large[oid] = content
        return self.answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo = self.repo(found[1])
            commit = repo.at(found[2] or "main") if repo else None
            if repo is None or commit is None:
                return self.refuse(404, "RevisionNotFound" if repo else "RepoNotFound")
            files = [{"rfilename": name} for name in commit[1]]
            return self.answer({"id": found[1], "sha": commit[0], "private": repo.private, "siblings": files})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.repo(found[1])
            commit = repo.at(found[2]) if repo else None
            if repo is None or commit is None or found[3] not in commit[1]:
                missing = (
                    "RepoNotFound"
                    if repo is None
                    else "RevisionNotFound"
                    if commit is None
                    else "EntryNotFound"
                )
                return self.refuse(404, missing)
            content = commit[1][found[3]]
            tag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self.answer(content, 200, {"X-Repo-Commit": commit[0], "ETag": f'"{tag}"'})
        return self.refuse(404, "Unknown")


def start() -> tuple[ThreadingHTTPServer, str]:
    """A server in a thread of its own, with no repository, and its address."""
    handler = type("OwnHub", (Hub,), {"repos": {}, "large": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    print(start()[1], flush=True)
    sys.stdin.read()
