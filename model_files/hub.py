"""Download models from the Hugging Face hub or OpenAI's store, and texts from any address.

One request lists a repository: its commit, and the size and hash of each file. The files go into
NAME/incomplete, where a later run can resume them. They are verified there, and then installed, the
weights last. HF_HOME, HF_ENDPOINT and others mean the same as in Hugging Face's own tools.
"""

import binascii
import json
import math
import os
import re
import time
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from model_files import BUNDLE, CONFIG, SHA256, SIZES
from model_files import files as disk
from model_files.directory import (
    WEIGHTS_FILES,
    check_free,
    holds_model,
    install,
    other_kind,
    read_config,
    read_weight_map,
)
from model_files.files import hugging_face_path
from model_files.vocabulary import FILES, holds_vocabulary, read_vocabulary

HUB = "https://huggingface.co"
STORE = "https://openaipublic.blob.core.windows.net/gpt-2/models"
REASONS = {  # {exception of requests: the message about it, where HOST stands for the server}
    "ConnectionError": "could not reach HOST",
    "ConnectTimeout": "could not reach HOST",
    "ReadTimeout": "HOST does not answer",
    "ChunkedEncodingError": "the connection to HOST broke",
    "ProxyError": "could not reach HOST through the proxy; check HTTPS_PROXY and NO_PROXY",
    "SSLError": "HOST has an unknown certificate; set REQUESTS_CA_BUNDLE to a file that has it",
    "MissingSchema": "the address of HOST must begin with https://; correct HF_ENDPOINT",
}
AGAIN = "check the connection and run the same command again"
TOKEN = f"check the name; a private or gated repository needs HF_TOKEN ({HUB}/settings/tokens)"
NO_LIST = "the server has no such list; unset HF_ENDPOINT, or set it to a mirror with the hub's API"
ATTEMPTS = 5  # A download is given up after this number of failures in a row without progress.
PAUSE = 1.0  # seconds before the second attempt; every further pause is twice as long
MAX_PAUSE = 310.0  # seconds; if a server asks for a longer pause, the download is given up
TIMEOUT = 10, 30  # seconds to wait for a connection, and for the next bytes
CHUNK = 1 << 17  # bytes that are read at once


class Failure(OSError):
    """A failed attempt. wait: seconds before the next one, infinite if that would fail, too."""

    def __init__(self, reason, wait=0.0):
        super().__init__(disk.printable(reason)[:500])
        self.wait = wait


def read_token():
    """Return the token in HF_TOKEN, or in the file that `hf auth login` writes, or else ""."""
    token = os.environ.get("HF_TOKEN", "").strip()
    path = hugging_face_path("HF_TOKEN_PATH", "token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch("[!-~]*", token):
        raise Failure(f"the token in HF_TOKEN or {path} has odd characters or spaces; correct it")
    return token


class Server:
    """A server that has files. It is sent the token, or else the user and password in its address.
    A server that it redirects to is sent neither. token: None unless the server is a hub."""

    def __init__(self, address, token=None):
        import requests  # Importing it takes longer than loading a small model.
        from requests.exceptions import BaseHTTPError, RequestException

        self.errors = BaseHTTPError, RequestException, ValueError, TypeError
        self.base = disk.without_user(address)
        self.shown = re.split("[?#]", self.base)[0]  # This may be printed.
        self.host = re.sub("^[^/]*://|/.*", "", self.shown)
        self.login = re.match("[^/]*//([^/?#:]*):?([^/?#]*)@", address)
        self.token = token
        self.session = requests.Session()
        self.session.hooks["response"] = self.close_redirect
        self.session.auth = self.session.rebuild_auth = self.authorize

    def close_redirect(self, answer, **options):
        """Close a redirect before requests reads its body, which may never end."""
        if answer.is_redirect:
            answer.close()

    def authorize(self, request, response=None):
        """Add our credentials to a request. After a redirect, requests would use ~/.netrc's."""
        request.headers.pop("Authorization", None)
        if not self.session.should_strip_auth(self.base, request.url):
            if self.token:
                request.headers["Authorization"] = f"Bearer {self.token}"
            elif self.login:
                request.prepare_auth(tuple(map(unquote_to_bytes, self.login.groups())))
        return request

    def ask(self, path, **extra):
        """Return the answer to a request with extra headers. Failure if the server refuses it."""
        extra["Accept-Encoding"] = "identity"
        answer = self.session.get(self.base + path, headers=extra, stream=True, timeout=TIMEOUT)
        status, headers = answer.status_code, answer.headers
        if status in (200, 206):
            if "html" in headers.get("Content-Type", ""):
                raise Failure(f"{self.host} sent a web page; does this network require a login?")
            if headers.get("Content-Encoding", "identity") != "identity":
                raise Failure(f"{self.host} sends it compressed; download and unpack it yourself")
            return answer
        answer.close()
        code = headers.get("X-Error-Code", "")
        if self.session.should_strip_auth(self.base, answer.url):  # A signed address has expired.
            raise Failure(f"{self.host} redirected to a server that answered {status}")
        if status == 401 and self.token and code != "GatedRepo":
            disk.say(f"{self.host} does not accept your token; continuing without it")
            self.token = ""
            return self.ask(path, **extra)
        reason = f"{status} {code} {headers.get('X-Error-Message') or answer.reason or ''}"
        reason = f"{self.host} answered {' '.join(reason.split()).rstrip('.')}"
        if status in (408, 416, 425, 429) or status >= 500:
            wait = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
            wait = wait or re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", ""))
            raise Failure(reason, float(wait[1]) if wait else 0.0)
        if self.token is not None and (status == 401 or code in ("RepoNotFound", "GatedRepo")):
            reason += f"; {TOKEN}"
        elif path.startswith("/api/") and status == 404 and not code:
            reason = NO_LIST
        raise Failure(reason, math.inf)

    def retry(self, name, attempt, *arguments, progress=lambda: 0):
        """Return the result of attempt. Repeat it until it succeeds or makes no more progress."""
        failures = 0
        furthest = progress()
        while True:
            try:
                return attempt(*arguments)
            except Failure as error:
                reason, wait = f"{name}: {error}", error.wait
            except self.errors as error:  # Its text may hold a password or a signed address.
                kind = type(error).__name__
                reason = REASONS.get(kind, f"{name}: HOST or its answer is not valid ({kind})")
                reason, wait = reason.replace("HOST", self.host), 0.0
            failures = 1 if progress() > furthest else failures + 1
            furthest = max(furthest, progress())
            pause = max(wait, PAUSE * 2 ** (failures - 1))
            if failures == ATTEMPTS or pause > MAX_PAUSE:
                raise Failure(reason if wait == math.inf or ";" in reason else f"{reason}; {AGAIN}")
            disk.say(f"{reason.partition(';')[0]}; retrying in {pause:.0f} s")
            time.sleep(pause)


def receive(server, path, file, name, size=None, digest=""):
    """Write a file of a server to the end of an open one, and verify it. A text has no digest: it
    is resumed only while the server sends the same tag, and otherwise downloaded from its start."""
    name = name if digest else server.shown
    tag = None

    def fetch_rest():
        nonlocal size, tag
        start = file.tell()
        can_resume = 0 < start < (size or 0) and (digest or tag)
        extra = {"Range": f"bytes={start}-", "If-Range": tag} if can_resume else {}
        with server.ask(path, **extra) as answer:
            headers = answer.headers
            is_part = answer.status_code == 206
            length = headers.get("Content-Length", "")
            match = re.match(rf"bytes {start}-\d+/(\d+)", headers.get("Content-Range", ""))
            is_same = match and match[1] == str(size) and tag in (None, headers.get("ETag"))
            if is_part and not (can_resume and is_same):
                raise Failure(f"{server.host} sent the wrong part of the file")
            if digest and not is_part and length not in ("", str(size)):
                raise Failure(f"{server.host} sent {length} bytes instead of {size}")
            if not digest and not is_part:
                if not answer.raw.chunked and not length.isdecimal():
                    raise Failure("its length is unknown; download it yourself", math.inf)
                size = None if answer.raw.chunked else int(length)
                tag = headers.get("ETag") if headers.get("ETag", "").startswith('"') else None
                file.seek(0)
                file.truncate()
                length = "unknown size" if size is None else f"{size / 1e6:.1f} MB"
                disk.say(f"downloading {server.shown} ({length})")
            skip = 0 if is_part else file.tell()  # These bytes come again.
            with disk.progress_bar(name, file.tell(), size) as bar:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk[skip:])
                    bar.update(len(chunk[skip:]))
                    skip = max(0, skip - len(chunk))
                    if file.tell() >= (size or math.inf):
                        break

    def attempt():
        if file.tell() < (size or math.inf):
            fetch_rest()
        if file.tell() < (size or 0):
            raise Failure(f"the connection to {server.host} broke")
        file.flush()
        if digest and disk.digest_of(Path(file.name), digest) != digest:
            file.seek(0)
            file.truncate()
            raise Failure("the downloaded bytes have the wrong hash")

    server.retry(name, attempt, progress=file.tell)


def download(server, path, target, size, digest):
    """Download a file of a model, or the rest of it. It gets its name when it is complete."""
    if target.exists() and disk.digest_of(target, digest) == digest:
        return
    part = target.with_name(f"{target.name}.{digest[:16]}.part")
    try:
        with open(part, "ab") as file:
            receive(server, path, file, target.name, size, digest)
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def download_all(server, stage, files, name=""):
    """Announce and download {file: (path, size, digest)}, if there is room for it and the model."""
    total = sum(size for _, size, _ in files.values())
    disk.check_space(stage, 2 * total - sum(path.stat().st_size for path in stage.iterdir()))
    if name:
        disk.say(f"downloading {name} ({total / 1e6:.0f} MB) from {server.host} to {stage.parent}")
    for file, (path, size, digest) in files.items():
        if file.startswith(("model", "pytorch_model")):  # The weights come after the small files.
            check_free(stage, stage.parent)
        download(server, path, stage / file, size, digest)


def list_files(server, name, repo, revision):
    """Return the commit that a revision names, and {name: (path, size, digest)} of its files."""
    path = f"/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    with server.ask(path) as answer:
        listing = disk.read_json("the list of files", answer.raw.read(disk.MAX_JSON))
    files = {}
    try:
        commit = re.fullmatch("[0-9a-f]{40}", listing["sha"])[0]
        for entry in listing["siblings"]:
            file = str(entry["rfilename"])
            digest = entry["lfs"]["sha256"] if entry.get("lfs") else entry["blobId"]
            digest = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest)[0]
            digest = SHA256.get(f"{name}/{file}", digest)
            files[file] = f"/{repo}/resolve/{commit}/{file}", int(entry["size"]), digest
    except (KeyError, OverflowError, TypeError):
        raise Failure(NO_LIST) from None
    return commit, files


def from_hub(name, repo, revision, stage, only_vocabulary):
    """Download a model from the hub, the weights last. ValueError if it is not a GPT-2."""
    server = Server(os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB, read_token())
    commit, files = server.retry("list of files", list_files, server, name, repo, revision)
    parts = {f"{file}.{digest[:16]}.part" for file, (_, _, digest) in files.items()}
    for path in stage.iterdir():
        if path.name not in parts | files.keys():  # It belongs to another commit.
            disk.remove(path)

    def get(*names, title=""):
        for file in names:
            if file not in files:
                raise ValueError(f"{repo} has no {file}: {other_kind(files)}")
        download_all(server, stage, {file: files[file] for file in names}, title)

    names = []
    if name in SIZES:
        (stage / "config.json").write_text(json.dumps(CONFIG[name]))
    else:
        get("config.json")
        read_config(stage / "config.json")  # Another architecture may have gigabytes of weights.
        names = [file for file in ("generation_config.json", *FILES) if file in files]
    if "tokenizer.json" not in names:
        names += ["vocab.json", "merges.txt"]
    get(*names, title=f"the vocabulary of {name}" if only_vocabulary else "")
    (stage / "source.json").write_text(json.dumps({"repository": repo, "commit": commit}))
    read_vocabulary(stage)
    if only_vocabulary:
        return
    weights = next((file for file in WEIGHTS_FILES if file in files), WEIGHTS_FILES[0])
    if weights.endswith(".json"):
        get(weights)
        get(*sorted(set(read_weight_map(stage / weights).values())), title=name)
    else:
        get(weights, title=name)


def from_store(name, repo, revision, stage, only_vocabulary):
    """Download a released size from OpenAI. A file without a SHA-256 here needs a Content-MD5."""
    server = Server(os.environ.get("GPT2_OPENAI_URL", "").strip().rstrip("/") or STORE)
    names = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    if not only_vocabulary:
        names |= {"model.ckpt.index": "model.ckpt.index", BUNDLE: BUNDLE}
    files = {}
    for remote, file in names.items():
        path = f"/{name}/{remote}"
        with server.retry(remote, server.ask, path) as answer:
            size = answer.headers.get("Content-Length", "")
            md5 = re.fullmatch("[A-Za-z0-9+/]{22}==", answer.headers.get("Content-MD5", ""))
        if not re.fullmatch("[0-9]{1,15}", size) or not (md5 or f"{name}/{file}" in SHA256):
            raise Failure(f"{remote}: {server.host} did not send its length and Content-MD5")
        md5 = binascii.a2b_base64(md5[0]).hex() if md5 else ""
        files[file] = path, int(size), SHA256.get(f"{name}/{file}", md5)
    (stage / "source.json").write_text(json.dumps({"repository": STORE, "commit": name}))
    (stage / "hparams.json").write_text(json.dumps(CONFIG[name]))
    download_all(server, stage, files, f"the vocabulary of {name}" if only_vocabulary else name)


def fetch(name, repo, revision, directory, only_vocabulary=False):
    """Download a model, or only its vocabulary, to a directory. OSError (one line) if it fails."""
    for variable in "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE":
        if os.environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError(f"{name} is not on this disk, and {variable} forbids downloads; unset it")
    is_here = holds_vocabulary if only_vocabulary else holds_model
    stage = directory / "incomplete"
    sources = [from_hub, from_store] if name in SIZES else [from_hub]
    reasons = []
    with disk.lock(directory):
        for source in sources:
            if is_here(directory):  # Another process has downloaded it.
                return
            if reasons:
                reasons = [reasons[0].partition(";")[0]]  # What to do comes after the last reason.
                disk.say(f"{reasons[0]}; trying OpenAI's server")
            stage.mkdir(exist_ok=True)
            for path in stage.iterdir():
                if path.is_symlink() or not path.is_file():  # To open a pipe could take forever.
                    disk.remove(path)
            try:
                source(name, repo, revision, stage, only_vocabulary)
                install(stage, directory, only_vocabulary)
                if not only_vocabulary or not any(stage.glob("*model*")):  # Keep parts of weights.
                    disk.remove(stage)
                return
            except FileExistsError:  # It would replace a file of the user.
                raise
            except ValueError as error:  # It is not a GPT-2.
                disk.remove(stage)
                reasons.append(str(error).replace(f"{stage}{os.sep}", ""))
            except OSError as error:
                reasons.append(str(error))
    if stage.exists():
        reasons.append(f"the next run resumes with the files in {stage}")
    elif reasons[-1].endswith(AGAIN):
        reasons[-1] += ", or use --model_size shakespeare, which needs no download"
    raise OSError(disk.printable(f"{name} could not be downloaded: {'; '.join(reasons)}"))
