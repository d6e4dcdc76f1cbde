"""A hub, its content host and OpenAI's store on 127.0.0.1, with the faults that networks have.

The hub answers as the real one does (tests/hub_client.py puts Hugging Face's own client before it):
a small file by a 307 to a relative address, a large one by a 302 to a signed address of another
host, which expires and whose ETag is none of the file's hashes; refusals by X-Error-Code and
X-Error-Message; RateLimit on every answer. The store sends Content-MD5 of a whole file, and of a
range another header.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, quote

from faults import Handler


class Servers:
    """hub, content and store: base addresses; files: {"owner/name/file" or "size/file": bytes}.

    commit: what main is at; history: {commit: files} of what it was at before a file changed.
    revisions: what a repository has beside its commit; gated, private: repositories; renamed:
    {old: new}; tokens: {token: repositories that it may read}. plain: a mirror, which only has
    files. faults: one of KINDS, or None, with a number from 0 to 1 that says where, for each next
    request of a file; at: {file: the same for this one}; log: [path, first byte asked for, bytes
    sent, headers] of each request.
    """

    def __init__(self, commit="c" * 40):
        self.commit, self.files, self.history = commit, {}, {}
        self.faults, self.at, self.log = [], {}, []
        self.revisions, self.gated, self.private = {"main", "v1", "refs/pr/1"}, set(), set()
        self.renamed, self.tokens, self.plain, self.links = {}, {}, False, {}
        self.stall, self.pace, self.lock = 1.0, 0.0, threading.Lock()
        self.servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler)
            for handler in (
                handler_of(self, Hub),
                handler_of(self, Content),
                handler_of(self, Store),
            )
        ]
        self.hub, self.content, self.store = (
            f"http://127.0.0.1:{server.server_port}" for server in self.servers
        )
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def next_fault(self, path):
        with self.lock:
            faults = self.at.get(path.rsplit("/", 1)[-1]) or self.faults
            return faults.pop(0) if faults else (None, 0)

    def behind(self, query):
        """-> fault, where, key, data of the address that a redirect gave; but for an address that
        has expired, the fault comes once."""
        link = query.get("link", [""])[0]
        with self.lock:
            fault, where, *file = self.links.get(link, ("expired", 0, "", b""))
            if fault not in ("expired", "gone"):
                self.links[link] = "", 0, *file
        return fault, where, *file

    def names(self, repo):
        return sorted(k[len(repo) + 1 :] for k in self.files if k.startswith(f"{repo}/"))


def handler_of(servers, role):
    return type(role.__name__, (role,), {"servers": servers})


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name):
    return name.endswith(".safetensors")


class Hub(Handler):
    compresses = True

    def answer(self, status, headers=None, body=b"", **options):
        # On every answer; a limit that is reached says so.
        limit = {} if self.servers.plain else {"RateLimit": '"resolvers";r=2999;t=300'}
        super().answer(status, limit | (headers or {}), body, **options)

    def error(self, status, code, message, **headers):
        code = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.answer(status, code | {"X-Error-Message": message} | headers, body)

    def may_read(self, repo):
        """-> whether it may; where it may not, this has been answered."""
        servers, token = self.servers, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in servers.tokens:
            self.error(401, None, "Invalid credentials in Authorization header")
        elif repo in servers.private and repo not in servers.tokens.get(token, ()):
            self.no_repo(token)
        elif repo in servers.gated and repo not in servers.tokens.get(token, ()):
            says = f"Access to model {repo} is restricted"
            if not token:
                says += ". You must have access to it and be authenticated to access it."
            self.error(403 if token else 401, "GatedRepo", says)
        elif not servers.names(repo):
            self.no_repo(token)
        else:
            return True
        return False

    def no_repo(self, token):
        if token:
            return self.error(404, "RepoNotFound", "Repository not found")
        self.error(401, "RepoNotFound", "Invalid username or password.")

    def reply(self):
        if self.servers.plain:
            return self.plain_file()
        if found := re.fullmatch("api/models/([^/]+/[^/]+)(?:/(.*))?", self.path_):
            return self.api(*found.groups(""))
        if found := re.fullmatch("api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self.path_):
            return self.small_file(*found.groups())
        if self.path_ == "api/whoami-v2":
            return self.whoami()
        found = re.fullmatch("([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", self.path_)
        if not found:
            return self.answer(404, body=b"Not Found")
        repo, revision, name = found.groups()
        if new := self.servers.renamed.get(repo):
            return self.answer(307, {"Location": self.path.replace(repo, new, 1)})
        fault, where = self.servers.next_fault(self.path_)
        if fault and self.refuse(fault):
            return
        if self.may_read(repo) and self.has_revision(repo, revision):
            self.file(repo, revision, name, fault or "", where)

    def has_revision(self, repo, revision):
        if revision in self.servers.revisions or re.fullmatch("[0-9a-f]{40}", revision):
            return True
        self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def plain_file(self):
        """A mirror that knows no hub, only files: no hash, no commit, no ranges."""
        data = self.servers.files.get(re.sub("/resolve/(refs/[^/]+/[^/]+|[^/]+)/", "/", self.path_))
        fault, where = self.servers.next_fault(self.path_)
        if data is None:
            return self.answer(404, body=b"Not Found")
        if not fault or not self.refuse(fault):
            self.send_file(data, {"Last-Modified": "Sat"}, fault or "", where)

    def file(self, repo, revision, name, fault, where):
        key, servers = f"{repo}/{name}", self.servers
        if fault == "changed" and key in servers.files and not name.endswith("merges.txt"):
            servers.history[servers.commit], data = dict(servers.files), servers.files[key]
            data = data + b" " if name.endswith("json") else data[:-1] + bytes([data[-1] ^ 1])
            servers.files[key] = data
            servers.commit = hashlib.sha1(servers.commit.encode()).hexdigest()
        commit = {"X-Repo-Commit": revision if revision in servers.history else servers.commit}
        data = servers.history.get(revision, servers.files).get(key)
        if data is None:
            return self.error(404, "EntryNotFound", "Entry not found", **commit)
        link = f"{len(servers.links):x}"
        servers.links[link] = fault, where, key, data
        if fault.startswith("stripped") and not is_large(name):
            return self.send_file(data, {}, fault, where)
        if not is_large(name):
            etag = git_sha1(data)
            place = f"/api/resolve-cache/models/{repo}/{commit['X-Repo-Commit']}/{quote(name)}"
            place += f"?{quote(self.path, safe='')}=&etag=%22{etag}%22&link={link}"
            return self.answer(
                307, {**commit, "Location": place, "X-Linked-Etag": f'"{etag}"'}, b"See other"
            )
        size = len(data) + (fault == "linked")
        headers = {
            **commit,
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(size),
            "Accept-Ranges": "bytes",
            "Location": f"{self.servers.content}/xet-bridge-us/{hashlib.md5(data).hexdigest()}"
            f"?X-Amz-Credential=AKIA&Expires=1&Signature={'s' * 600}&link={link}",
        }
        if fault.startswith("stripped"):
            headers = {"Location": headers["Location"]}
        self.answer(302, headers, b"Found")

    def small_file(self, repo, commit, name):
        if not self.may_read(repo):
            return
        fault, where, _, data = self.servers.behind(self.query)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self.send_file(data, {**headers, "ETag": f'"{git_sha1(data)}"'}, fault, where)

    def api(self, repo, rest):
        if not self.may_read(repo):
            return
        what, _, revision = rest.partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if what in ("revision", "tree", "paths-info", "commits"):
            if not self.has_revision(repo, revision):
                return
        names = self.servers.names(repo)
        entries = [self.tree_entry(name, self.servers.files[f"{repo}/{name}"]) for name in names]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.servers.commit}
        commit = {"id": self.servers.commit, "title": "first", "message": "", "authors": []}
        commit["date"] = "2024-02-19T10:57:45.000Z"
        if what == "paths-info":
            asked = json.loads(body)["paths"] if body[:1] == "{" else parse_qs(body)["paths"]
            entries = [entry for entry in entries if entry["path"] in asked]
        found = {
            "tree": entries,
            "paths-info": entries,
            "refs": {"tags": [], "branches": [main], "converts": []},
            "commits": [commit],
        }.get(what) or {
            "_id": "1",
            "id": repo,
            "sha": self.servers.commit,
            "private": repo in self.servers.private,
            "gated": "manual" if repo in self.servers.gated else False,
            "siblings": [{"rfilename": name} for name in names],
        }
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def tree_entry(self, name, data):
        entry = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": name}
        if is_large(name):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
        return entry

    def whoami(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.servers.tokens:
            return self.error(401, None, "Invalid username or password.")
        body = json.dumps({"type": "user", "name": "somebody", "auth": {}, "orgs": []})
        self.answer(200, {"Content-Type": "application/json"}, body.encode())


class Content(Handler):
    """What lies behind the signed addresses."""

    def reply(self):
        fault, where, key, data = self.servers.behind(self.query)
        if fault == "expired":
            return self.answer(403, body=b"<?xml version='1.0'?><Error>Request has expired</Error>")
        if fault == "gone":  # it even speaks as the hub does, which it is not
            return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"NoSuchKey")
        self.entry[0] = f"content/{key}"
        etag = hashlib.sha256(b"xet" + data).hexdigest()  # of the right length, but another hash
        self.send_file(data, {"Accept-Ranges": "bytes", "ETag": f'"{etag}"'}, fault, where)


class Store(Handler):
    """OpenAI's own: names of sizes in place of repositories."""

    def reply(self):
        data = self.servers.files.get(self.path_)
        fault, where = self.servers.next_fault(self.path_)
        if data is None:
            return self.answer(404, {"x-ms-error-code": "BlobNotFound"}, b"Not Found")
        if fault and self.refuse(fault):
            return
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        headers = {"ETag": f'"0x{hashlib.sha1(data).hexdigest()[:15]}"', "Accept-Ranges": "bytes"}
        headers["x-ms-blob-content-md5" if self.first else "Content-MD5"] = md5
        self.send_file(data, headers, fault or "", where)
