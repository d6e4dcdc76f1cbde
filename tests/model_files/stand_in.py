"""Stand-ins for the hub, the host of its large files, and OpenAI's store, with a network's faults.

They listen on 127.0.0.1. The hub answers as the real one does; tests/hub_client.py checks that with
Hugging Face's own client. It lists a repository with sizes and hashes. It sends a small file after
a redirect to a relative address, and a large one after a redirect to a signed address of another
host, which expires. It refuses with X-Error-Code and X-Error-Message. The store sends Content-MD5
with a complete file.
"""

import base64
import gzip
import hashlib
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to this network</body></html>\n" * 30
PORTAL = b'{"code": 511, "message": "log in to this network", "url": "http://10.0.0.1/login"}'
HOSTILE = "Nope\x1b[2J\x1b]0;owned\x07"  # As a reason phrase, this would clear the screen.
ANSWERS = {  # {fault: the answer instead of the file: status, headers, body}
    "429": (429, {"RateLimit": '"resolvers";r=0;t=0'}, b""),
    "503": (503, {}, b""),
    "503 after": (503, {"Retry-After": "0"}, b""),
    "503 date": (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled. {0} {x}"}, b""),
    "404 bare": (404, {}, b"Not Found"),
    "403 bare": (403, {"Content-Type": "text/html"}, PAGE),
    "page": (200, {"Content-Type": "text/html"}, PAGE),
    "portal": (200, {"Content-Type": "application/json"}, PORTAL),
}
KINDS = (  # the names of all faults
    *(*ANSWERS, "hostile", "cut headers", "circle", "gone", "expired", "changed"),
    *("break", "reset", "slow", "stall", "length", "bytes", "portal as file"),
    *("no ranges", "other range", "416", "chunked", "gzip", "no length", "cut", "cut chunked"),
    "half",  # half of the file, sent as a part although the client has not asked for a part
)


class Servers:
    """The three servers. All attributes may be changed while they run:

    hub, content, store   their base addresses
    files       {"owner/name/file" or "size/file": bytes}
    commit      the commit of all repositories
    history     {earlier commit: its files}, for the fault "changed"
    revisions   the other names of the commit
    gated, private   names of repositories
    renamed     {old name of a repository: new name}
    tokens      {token: repositories that it may read}
    plain       True for a mirror without the hub's API
    faults      [(one of KINDS or "", where in the file, from 0 to 1)], one for each next request
    at          {file or "list": faults of requests for it}
    pace        seconds before each next 64th of a file
    log         [path, first byte asked for, bytes sent, headers of the request] of each request
    """

    def reset(self, commit="c" * 40):
        self.commit, self.files, self.history = commit, {}, {}
        self.faults, self.at, self.log, self.links = [], {}, [], {}
        self.revisions, self.gated, self.private = {"main", "v1", "refs/pr/1"}, set(), set()
        self.renamed, self.tokens, self.plain = {}, {}, False
        self.pace = 0.0

    def __init__(self):
        self.lock = threading.Lock()
        self.reset()
        roles = [type(role.__name__, (role,), {"servers": self}) for role in (Hub, Content, Store)]
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), role) for role in roles]
        self.hub, self.content, self.store = (
            f"http://127.0.0.1:{server.server_port}" for server in self.servers
        )
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def next_fault(self, name):
        with self.lock:
            faults = self.at.get(name) or self.faults
            return faults.pop(0) if faults else ("", 0)

    def behind(self, query):
        """Return the fault, its place, and the data of a signed address. An expired address stays
        expired; any other fault happens once."""
        link = query.get("link", [""])[0]
        with self.lock:
            fault, where, data = self.links.get(link, ("expired", 0, b""))
            if fault not in ("expired", "gone"):
                self.links[link] = "", 0, data
        return fault, where, data


def git_sha1(data):
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    servers, compresses = None, False

    def log_message(self, *args):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        self.path_, self.query = unquote(url.path).strip("/"), parse_qs(url.query)
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.first = int(first[1]) if first else None
        self.entry = [self.path_, self.first or 0, 0, dict(self.headers)]
        with self.servers.lock:
            self.servers.log.append(self.entry)
        try:
            self.reply()
        except OSError:  # The client has closed the connection.
            pass
        self.close_connection = True

    do_HEAD = do_GET

    def answer(self, status, headers=None, body=b"", reason=None, pause=0.0, is_whole=True):
        self.send_response(status, reason)
        headers = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        chunked, pieces = headers.get("Transfer-Encoding") == "chunked", 64 if pause else 1
        for i in range(pieces):
            piece = body[i * len(body) // pieces : (i + 1) * len(body) // pieces]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece)
            self.wfile.flush()
            self.entry[2] += len(piece)
            time.sleep(pause)
        if chunked and is_whole:
            self.wfile.write(b"0\r\n\r\n")

    def refuse(self, fault):
        """Send the answer of a fault that has its own. Return whether it has one."""
        if fault in ANSWERS:
            self.answer(*ANSWERS[fault])
        elif fault == "hostile":
            self.answer(500, reason=HOSTILE)
        elif fault == "cut headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Powered-By: hub")
        elif fault == "circle":
            self.answer(307, {"Location": self.path})
        return fault in (*ANSWERS, "hostile", "cut headers", "circle")

    def send_file(self, data, headers, fault="", where=0.0):
        """Send a file or the requested part of it, with a fault."""
        if fault == "portal as file":
            return self.answer(200, headers, PORTAL)
        if fault == "bytes":
            at = int(where * (len(data) - 1))
            data = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        if fault == "416" or (self.first or 0) >= max(len(data), 1) and fault != "no ranges":
            return self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
        status, body = 200, data
        if self.first is not None and fault != "no ranges":
            first = self.first + (fault == "other range")
            status, body = 206, data[first:]
            headers = headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        elif fault == "half":
            status, body = 206, data[: len(data) // 2]
            headers = headers | {"Content-Range": f"bytes 0-{len(body) - 1}/{len(data)}"}
        headers = headers | {"Content-Length": str(len(body) + (7 if fault == "length" else 0))}
        accepts = self.headers.get("Accept-Encoding", "")
        if fault == "gzip" or self.compresses and len(data) > 200 and "gzip" in accepts:
            body = gzip.compress(body)
            headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
        if fault in ("chunked", "cut chunked"):
            headers["Transfer-Encoding"] = "chunked"
        if "Transfer-Encoding" in headers or fault in ("no length", "cut"):
            headers["Content-Length"] = None
        is_cut = fault in ("break", "reset", "stall", "cut", "cut chunked")
        cut = int(where * len(body)) if is_cut else len(body)
        pause = self.servers.pace if len(body) > 4096 else 0.0002 if fault == "slow" else 0
        self.answer(status, headers, body[:cut], pause=pause, is_whole=cut == len(body))
        if fault == "reset":  # With this option, closing the connection sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault == "stall":
            time.sleep(1.2)


class Hub(Handler):
    compresses = True

    def error(self, status, code, message, **headers):
        code = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.answer(status, code | {"X-Error-Message": message} | headers, body)

    def may_read(self, repo, revision="main", is_list=False):
        """Return whether the client may read a revision. If not, send the refusal."""
        servers, token = self.servers, self.headers.get("Authorization", "").removeprefix("Bearer ")
        is_known = repo in servers.tokens.get(token, ())
        is_there = any(key.startswith(f"{repo}/") for key in servers.files)
        if token and token not in servers.tokens:
            self.error(401, None, "Invalid credentials in Authorization header")
        elif not is_there or (repo in servers.private and not is_known):
            if token:
                self.error(404, "RepoNotFound", "Repository not found")
            else:
                self.error(401, "RepoNotFound", "Invalid username or password.")
        elif repo in servers.gated and not is_known and not is_list:
            says = f"Access to model {repo} is restricted. You must have access to it."
            self.error(403 if token else 401, "GatedRepo", says)
        elif revision not in servers.revisions and not re.fullmatch("[0-9a-f]{40}", revision):
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def reply(self):
        api = re.fullmatch("api/models/([^/]+/[^/]+)(?:/([^/]*)/?(.*))?", self.path_)
        small = re.fullmatch("api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self.path_)
        file = re.fullmatch("([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", self.path_)
        if small:
            return self.small_file(*small.groups())
        if self.servers.plain or not (api or file):
            return self.answer(404, body=b"Not Found")
        repo, *rest = (api or file).groups("")
        if new := self.servers.renamed.get(repo):
            return self.answer(307, {"Location": self.path.replace(repo, new, 1)})
        fault, where = self.servers.next_fault("list" if api else rest[1])
        if not self.refuse(fault):
            (self.api if api else self.file)(repo, *rest, fault, where)

    def file(self, repo, revision, name, fault, where):
        if not self.may_read(repo, revision):
            return
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
        servers.links[link] = fault, where, data
        if not name.endswith(".safetensors"):
            location = f"/api/resolve-cache/models/{repo}/{commit['X-Repo-Commit']}/{quote(name)}"
            location += f"?{quote(self.path, safe='')}=&etag=%22{git_sha1(data)}%22&link={link}"
            return self.answer(307, commit | {"Location": location}, b"See other")
        location = f"{servers.content}/xet-bridge-us/{quote(key)}?X-Amz-Credential=AKIA&Expires=1"
        headers = commit | {
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
            "Location": f"{location}&Signature={'s' * 600}&link={link}",
        }
        self.answer(302, headers, b"Found")

    def small_file(self, repo, commit, name):
        if self.may_read(repo):
            fault, where, data = self.servers.behind(self.query)
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            self.send_file(data, {**headers, "ETag": f'"{git_sha1(data)}"'}, fault, where)

    def api(self, repo, what, revision, fault, where):
        """Send the list of a repository's files, or the tree of a revision."""
        if not self.may_read(repo, revision or "main", is_list=True):
            return
        servers, prefix = self.servers, f"{repo}/"
        commit = revision if revision in servers.history else servers.commit
        files = servers.history.get(revision, servers.files)
        files = {key[len(prefix) :]: data for key, data in files.items() if key.startswith(prefix)}
        listing = {
            "_id": "1",
            "id": repo,
            "sha": commit,
            "private": repo in servers.private,
            "gated": "manual" if repo in servers.gated else False,
            "siblings": [self.sibling(*item) for item in sorted(files.items())],
        }
        if what == "tree":
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
                for name, data in sorted(files.items())
            ]
        headers, body = {"Content-Type": "application/json"}, json.dumps(listing).encode()
        # A client cannot notice a flipped bit in the list. In reality, TLS does that.
        self.send_file(body, headers, "" if fault == "bytes" else fault, where)

    def sibling(self, name, data):
        """Return the entry of a file in the list."""
        if self.query.get("blobs") != ["true"]:
            return {"rfilename": name}
        entry = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return entry


class Content(Handler):
    """The host of large files, with signed addresses."""

    def reply(self):
        fault, where, data = self.servers.behind(self.query)
        if fault == "expired":
            return self.answer(403, body=b"<?xml version='1.0'?><Error>Request has expired</Error>")
        if fault == "gone":  # The headers look like the hub's.
            return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"NoSuchKey")
        etag = hashlib.sha256(b"xet" + data).hexdigest()  # This is not the hash of the file.
        self.send_file(data, {"Accept-Ranges": "bytes", "ETag": f'"{etag}"'}, fault, where)


class Store(Handler):
    """OpenAI's store, or any other server of files. tag: the format of its ETags, or None.

    The fault "mixed" sends the rest of one version to a client that has the start of another.
    """

    tag = '"0x{}"'

    def reply(self):
        fault, where = self.servers.next_fault(self.path_.rsplit("/", 1)[-1])
        data = self.servers.files.get(self.path_)
        if data is None:
            return self.answer(404, {"x-ms-error-code": "BlobNotFound"}, b"Not Found")
        if self.refuse(fault):
            return
        tag = self.tag.format(hashlib.sha1(data).hexdigest()[:15]) if self.tag else None
        if self.headers.get("If-Range", tag) != tag and fault != "mixed":
            self.first = None
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        if self.first is None:
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(data).digest()).decode()
        self.send_file(data, headers, fault, where)
