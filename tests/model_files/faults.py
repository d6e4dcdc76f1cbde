"""What the three hosts of the stand-in share: ranges, and the faults that networks have."""

import gzip
import re
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to this network</body></html>\n" * 30
PORTAL = b'{"code": 511, "message": "log in to this network", "url": "http://10.0.0.1/login"}'
HOSTILE = "Nope\x1b[2J\x1b]0;owned\x07"  # a reason phrase that would clear the screen
DISABLED = 'Access to this resource is disabled. {"error": {0}, {repo.x}'
KINDS = (  # the body
    *("break", "reset", "slow", "stall", "length", "bytes", "page as file", "portal as file"),
    # the headers
    *("linked", "changed", "no ranges", "other range", "416", "chunked", "gzip", "no length"),
    *("stripped", "stripped cut", "stripped empty", "headless", "cut headers"),
    # the whole answer
    *(
        "429",
        "429 after",
        "429 limit",
        "503",
        "503 after",
        "date",
        "hostile",
        "disabled",
        "404 bare",
        "403 bare",
    ),
    *("page", "portal", "gone", "expired", "circle"),
)
HUB_HEADERS = "X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "ETag", "Accept-Ranges"


class Handler(BaseHTTPRequestHandler):
    """What the three hosts share: ranges, and answers with or without a fault."""

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
        except OSError:  # the client has gone
            pass
        self.close_connection = True

    do_HEAD = do_POST = do_GET

    def answer(self, status, headers=None, body=b"", reason=None, pause=0.0, whole=True):
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
        if chunked and whole:
            self.wfile.write(b"0\r\n\r\n")

    def refuse(self, fault):
        """-> whether the fault is an answer of its own, which has then been given."""
        if fault[:3] in ("429", "503"):
            limit = {"RateLimit": '"resolvers";r=0;t=0'} if "limit" in fault else {}
            after = {"Retry-After": "0"} if "after" in fault else {}
            self.answer(int(fault[:3]), limit | after)
        elif fault == "date":
            self.answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        elif fault == "hostile":
            self.answer(500, reason=HOSTILE)
        elif fault == "disabled":
            self.answer(403, {"X-Error-Message": DISABLED})
        elif fault == "404 bare":
            self.answer(404, body=b"Not Found")
        elif fault == "403 bare":
            self.answer(403, {"Content-Type": "text/html"}, PAGE)
        elif fault == "page":
            self.answer(200, {"Content-Type": "text/html"}, PAGE)
        elif fault == "portal":
            self.answer(200, {"Content-Type": "application/json"}, PORTAL)
        elif fault == "stripped empty":
            self.answer(200)
        elif fault in ("headless", "cut headers"):
            half = b"Content-Type: text/plain\r\nX-Powered-By: hub" * (fault == "cut headers")
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + half)
        elif fault == "circle":
            self.answer(307, {"Location": self.path})
        else:
            return False
        return True

    def send_file(self, data, headers, fault="", where=0.0):
        """200 or 206 with the file, or what the fault makes of it."""
        if fault in ("page as file", "portal as file"):
            body = PAGE if "page" in fault else PORTAL
            return self.answer(200, {**headers, "Content-Length": str(len(body))}, body)
        if fault == "bytes":
            at = int(where * (len(data) - 1))
            data = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        if fault == "416" or (self.first or 0) >= max(len(data), 1) and fault != "no ranges":
            return self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
        status, body = 200, data
        if self.first is not None and fault != "no ranges" and not self.servers.plain:
            status, body = 206, data[self.first :]
            shift = 1 if fault == "other range" else 0
            headers = {
                **headers,
                "Content-Range": f"bytes {self.first + shift}-{len(data) - 1 + shift}/{len(data)}",
            }
        if fault.startswith("stripped"):
            headers = {name: x for name, x in headers.items() if name not in HUB_HEADERS}
        headers = {**headers, "Content-Length": str(len(body) + (7 if fault == "length" else 0))}
        accepts = self.headers.get("Accept-Encoding", "")
        if fault == "gzip" or self.compresses and len(data) > 200 and "gzip" in accepts:
            headers |= {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
            body = gzip.compress(body)
        if fault == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        if "Transfer-Encoding" in headers or fault in ("no length", "stripped cut"):
            headers["Content-Length"] = None
        cut = len(body)
        if fault in ("break", "reset", "stall"):
            cut = int(where * cut)
        if fault == "stripped cut":  # nothing shows where it ends; best at the end of a line
            cut = body.rfind(b"\n", 0, int(where * cut)) + 1
        pause = self.servers.pace if len(body) > 4096 else 0.0002 if fault == "slow" else 0
        self.answer(status, headers, body[:cut], pause=pause, whole=cut == len(body))
        if fault == "reset":  # closing with this option set sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault == "stall":
            time.sleep(self.servers.stall)
