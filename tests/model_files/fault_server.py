"""A hub, its content host and OpenAI's store on 127.0.0.1, with the faults that networks have.

What they answer follows the real ones: the hub names commit, size and SHA-256 and redirects large
files to another host; the store sends Content-MD5 of a whole file, and of a range another header.
"""

import base64
import hashlib
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to this network</body></html>\n" * 30
KINDS = (
    "break",
    "reset",
    "slow",
    "stall",
    "429",
    "429 after",
    "503",
    "503 after",
    "404",
    "page",
    "page as file",
    "length",
    "linked",
    "bytes",
    "no ranges",
    "changed",
    "date",
)


class Servers:
    """hub and store: base addresses; files: {"repo/file" or "size/file": bytes}.

    faults: one of KINDS, or None, with a number from 0 to 1 that says where, for each next
    request; log: (path, first byte asked for, bytes sent, headers) of each request.
    """

    def __init__(self, commit="c" * 40):
        self.commit, self.files, self.faults, self.log = commit, {}, [], []
        self.stall, self.pace, self.lock = 1.0, 0.0, threading.Lock()
        self.servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler(self, role))
            for role in ("hub", "content", "store")
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


def handler(state, role):
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def log_message(self, *args):
            pass

        def do_GET(self):
            path = self.path.strip("/")
            first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(first[1]) if first else 0
            key = re.sub(r"/resolve/[^/]+/", "/", path)
            data = state.files.get(key)
            large = key.endswith(".safetensors")
            with state.lock:
                # The hub's redirect and the answer it leads to share one fault.
                if role == "content":
                    fault, where = state.redirected
                else:
                    fault, where = state.faults.pop(0) if state.faults else (None, 0)
                    fault = fault or ""
                    state.redirected = fault, where
                entry = [path, first, 0, dict(self.headers)]
                state.log.append(entry)
            if fault == "changed" and data is not None and not key.endswith("merges.txt"):
                data = data + b" " if key.endswith("json") else data[:-1] + bytes([data[-1] ^ 1])
                state.files[key] = data
                state.commit = hashlib.sha1(state.commit.encode()).hexdigest()
            if data is None or fault == "404":
                return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found")
            if fault[:3] in ("429", "503"):
                return self.answer(int(fault[:3]), {"Retry-After": "0"} if "after" in fault else {})
            if fault == "date":
                return self.answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
            if fault == "page":
                return self.answer(200, {"Content-Type": "text/html"}, PAGE)
            sha256 = hashlib.sha256(data).hexdigest()
            headers = {"Accept-Ranges": "bytes", "ETag": f'"{role}-{sha256[:20]}"'}
            if role == "hub":
                headers["X-Repo-Commit"] = state.commit
                git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                headers["ETag"] = f'"{git}"'
                if large:
                    headers["ETag"] = headers["X-Linked-Etag"] = f'"{sha256}"'
                    headers["X-Linked-Size"] = str(len(data) + (fault == "linked"))
                    headers["Location"] = f"{state.content}/{path}"
                    return self.answer(302, headers)
            if role == "store":
                md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
                headers["x-ms-blob-content-md5" if first else "Content-MD5"] = md5
            if fault == "page as file":
                return self.answer(200, headers, PAGE)
            if fault == "bytes":
                at = int(where * (len(data) - 1))
                data = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            status = 200
            if first and fault != "no ranges":
                if first >= len(data):
                    return self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
                status, body = 206, data[first:]
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            else:
                body = data
            length = len(body) + (7 if fault == "length" else 0)
            cut = int(where * len(body)) if fault in ("break", "reset", "stall") else len(body)
            self.answer(
                status,
                {**headers, "Content-Length": str(length)},
                body[:cut],
                entry,
                state.pace if len(body) > 4096 else 0.0002 if fault == "slow" else 0,
            )
            if fault == "reset":  # closing with this option set sends RST
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            if fault == "stall":
                time.sleep(state.stall)

        def answer(self, status, headers, body=b"", entry=None, pause=0.0):
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                pieces = 64 if pause else 1
                for i in range(pieces):
                    piece = body[i * len(body) // pieces : (i + 1) * len(body) // pieces]
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if entry:
                        entry[2] += len(piece)
                    time.sleep(pause)
            except OSError:  # the client has gone
                pass

    return Handler
