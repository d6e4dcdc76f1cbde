"""Download models from the Hugging Face hub or OpenAI's store, and texts from any address.

One request lists a repository: its commit, and the size and hash of each file. The wanted files of
that commit arrive in NAME/incomplete, each as FILE.HASH.part until its size and hash are right; the
next run resumes what an interrupted one left. Then they are installed, the weights last. HF_HOME,
HF_ENDPOINT and other variables mean what they mean to Hugging Face's own tools.
"""

import binascii
import json
import math
import os
import re
import stat
import time
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from model_files import BUNDLE, CONFIG, SHA256, SIZES
from model_files import files as disk
from model_files.directory import check_free, holds_model, install, read_config, read_weight_map
from model_files.vocabulary import FILES, holds_vocabulary, read_vocabulary

HUB = "https://huggingface.co"
STORE = "https://openaipublic.blob.core.windows.net/gpt-2/models"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_KINDS = {  # a part of a file's name: what a repository has instead of a model
    "adapter_config.json": "it has an adapter of another model: merge the two with peft",
    ".gguf": "it has GGUF files for llama.cpp: look for the model that they were made from",
    "pytorch_model.bin": "it has a pickle, which can run any code: look for model.safetensors",
    "": "it does not have the files of a model",
}
HINTS = {  # by exceptions of requests
    "ProxyError": "the proxy cannot be used: see HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
    "SSLError": "its certificate is not known: REQUESTS_CA_BUNDLE can name a file that has it",
}
TOKEN = f"check the name; a private or gated repository needs HF_TOKEN ({HUB}/settings/tokens)"
NO_LIST = (
    "it does not list files as the Hugging Face hub does: unset HF_ENDPOINT, set it to a mirror "
    "with the hub's API such as https://hf-mirror.com, or put the files into models_dir yourself"
)
ATTEMPTS = 5  # without progress, before a download is given up
PAUSE, MAX_PAUSE = 1.0, 310.0  # seconds before the second attempt; at most, if the server asks
TIMEOUT = 10, 30  # seconds to connect; without a byte
CHUNK = 1 << 17  # bytes


class Failure(OSError):
    """An attempt failed. wait: seconds before the next one; infinite if it cannot help."""

    def __init__(self, reason, wait=0.0):
        super().__init__(disk.printable(reason)[:500])
        self.wait = wait


def hugging_face_path(variable, name):
    """Return the path in a variable; by default, that of a name in Hugging Face's directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    path = os.environ.get(variable) or f"{home}/{name}"
    return Path(os.path.expandvars(os.path.expanduser(path)))


def read_token():
    """Return the token in HF_TOKEN or in the file that a login leaves; "" if there is none."""
    token = os.environ.get("HF_TOKEN", "").strip()
    path = hugging_face_path("HF_TOKEN_PATH", "token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch("[!-~]*", token):
        raise Failure(f"HF_TOKEN or {path} holds characters that no token has", math.inf)
    return token


def close_redirect(answer, **options):
    """Drop the body of a redirect, which requests would read even if it never ends."""
    if answer.is_redirect:
        answer.close()


class Server:
    """Where files come from. It gets the token, or else the user and password in its address; a
    server that it redirects to gets neither. token: None unless it is a hub."""

    def __init__(self, address, token=None):
        import requests  # takes longer than loading a small model
        from requests.exceptions import BaseHTTPError, RequestException

        self.errors = BaseHTTPError, RequestException, ValueError, TypeError
        self.base = disk.without_user(address)
        self.shown = self.base.partition("?")[0]
        self.login = re.match("[^/]*//([^/?#:]*):?([^/?#]*)@", address)
        self.token = token
        self.session = requests.Session()
        self.session.hooks["response"] = close_redirect
        self.session.auth = self.session.rebuild_auth = self.authorize

    def authorize(self, request, response=None):
        """Add the credentials, also after a redirect, where requests would take ~/.netrc's."""
        request.headers.pop("Authorization", None)
        if not self.session.should_strip_auth(self.base, request.url):
            if self.token:
                request.headers["Authorization"] = f"Bearer {self.token}"
            elif self.login:
                request.prepare_auth(tuple(map(unquote_to_bytes, self.login.groups())))
        return request

    def ask(self, path, **extra):
        """Return the answer to a request with extra headers; Failure if it is refused."""
        extra["Accept-Encoding"] = "identity"
        answer = self.session.get(self.base + path, headers=extra, stream=True, timeout=TIMEOUT)
        status = answer.status_code
        headers = answer.headers
        if status in (200, 206):
            if "html" in headers.get("Content-Type", ""):
                raise Failure("a web page came instead: does this network require a login?")
            if headers.get("Content-Encoding", "identity") != "identity":
                raise Failure("it comes compressed: download it yourself, and unpack it")
            return answer
        answer.close()
        code = headers.get("X-Error-Code", "")
        if self.session.should_strip_auth(self.base, answer.url):
            raise Failure(f"{status} after a redirect")  # to a signed address that has expired
        if status == 401 and self.token and code != "GatedRepo":
            disk.say("your token is not valid (any more): continuing without it")
            self.token = ""
            return self.ask(path, **extra)
        reason = f"{status} {code} {headers.get('X-Error-Message') or answer.reason or ''}"
        reason = " ".join(reason.split())
        if status in (408, 416, 425, 429) or status >= 500:
            wait = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
            wait = wait or re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", ""))
            raise Failure(reason, float(wait[1]) if wait else 0.0)
        if self.token is not None and (status == 401 or code in ("RepoNotFound", "GatedRepo")):
            reason += f"; {TOKEN}"
        elif path.startswith("/api/") and status == 404 and not code:
            reason = NO_LIST
        raise Failure(reason, math.inf)

    def retry(self, what, attempt, *arguments, progress=lambda: 0):
        """Call attempt until it succeeds; return its result. Failures count anew after progress."""
        failures = 0
        furthest = progress()
        while True:
            try:
                return attempt(*arguments)
            except Failure as error:
                failure = error
            except self.errors as error:  # whose text may hold a password or a signed address
                kind = type(error).__name__
                reason = HINTS.get(kind, f"cannot be reached, or the connection broke ({kind})")
                failure = Failure(reason)
            failures = 1 if progress() > furthest else failures + 1
            furthest = max(furthest, progress())
            pause = max(failure.wait, PAUSE * 2 ** (failures - 1))
            line = f"{self.shown}: {what}: {failure}"
            if failures == ATTEMPTS or pause > MAX_PAUSE:
                raise Failure(line, math.inf)
            disk.say(f"{line}; retrying in {pause:.0f} s")
            time.sleep(pause)


def receive(server, path, file, name, size=None, digest=""):
    """Write a file of a server to the end of an open one, and verify it. A text has no digest: it
    is resumed only while the server gives it the same tag, and otherwise fetched whole."""
    from tqdm import tqdm

    tag = None

    def fetch_rest():
        nonlocal size, tag
        have = file.tell()
        can_resume = 0 < have < (size or 0) and (digest or tag)
        extra = {"Range": f"bytes={have}-", "If-Range": tag} if can_resume else {}
        with server.ask(path, **extra) as answer:
            headers = answer.headers
            is_part = answer.status_code == 206
            length = headers.get("Content-Length", "")
            place = re.match(rf"bytes {have}-\d+/(\d+)", headers.get("Content-Range", ""))
            is_same = place and place[1] == str(size) and tag in (None, headers.get("ETag"))
            if is_part and not (can_resume and is_same):
                raise Failure("this is not the part of the file that was asked for")
            if digest and not is_part and length not in ("", str(size)):
                raise Failure(f"{length} bytes come instead of {size}")
            if not digest and not is_part:
                is_chunked = answer.raw.chunked
                if not is_chunked and not length.isdecimal():
                    raise Failure("it comes without its length: download it yourself", math.inf)
                size = None if is_chunked else int(length)
                tag = headers.get("ETag") if headers.get("ETag", "").startswith('"') else None
                file.seek(0)
                file.truncate()
            skip = 0 if is_part else file.tell()  # bytes that we have, and that come again
            options = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
            with tqdm(total=size, initial=file.tell(), desc=name, **options) as bar:
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
            raise Failure("the connection broke")
        file.flush()
        if digest and disk.digest_of(Path(file.name), digest) != digest:
            file.seek(0)
            file.truncate()
            raise Failure("the bytes do not have the hash of this file")

    server.retry(name, attempt, progress=file.tell)


def download(server, path, target, size, digest):
    """Download a file of a model: resume its part, and give it its name when it is whole."""
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


def download_all(server, stage, files):
    """Download {name: (path, size, digest)}, if there is room for them and for the model."""
    needed = sum(2 * size for _, size, _ in files.values())
    disk.check_space(stage, needed - sum(path.stat().st_size for path in stage.iterdir()))
    for name, (path, size, digest) in files.items():
        if name.startswith("model"):  # the weights, after the small files
            check_free(stage, stage.parent)
        download(server, path, stage / name, size, digest)


def list_files(server, name, repo, revision):
    """Return the commit that a revision names, and {name: (path, size, digest)} of its files."""
    path = f"/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    with server.ask(path) as answer:
        listing = disk.read_json("list", answer.raw.read(disk.MAX_JSON))
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
    """Download a model from the hub, its weights last; ValueError if it is not a GPT-2."""
    server = Server(os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB, read_token())
    commit, files = server.retry("list of files", list_files, server, name, repo, revision)
    parts = {f"{file}.{digest[:16]}.part" for file, (_, _, digest) in files.items()}
    for path in stage.iterdir():
        if path.name not in parts | files.keys():  # it is of another commit
            disk.remove(path)

    def get(*names):
        for file in names:
            if file not in files:
                kinds = [kind for part, kind in OTHER_KINDS.items() if part in " ".join(files)]
                raise ValueError(f"{repo} has no {file}: {kinds[0]}")
        download_all(server, stage, {file: files[file] for file in names})

    if name in SIZES:
        (stage / "config.json").write_text(json.dumps(CONFIG[name]))
    else:
        get("config.json")
        read_config(stage / "config.json")  # before gigabytes of another architecture
        get(*[file for file in ("generation_config.json", *FILES) if file in files])
    if name in SIZES or "tokenizer.json" not in files:
        get("vocab.json", "merges.txt")
    (stage / "source.json").write_text(json.dumps({"repository": repo, "commit": commit}))
    read_vocabulary(stage)
    if only_vocabulary:
        return
    weights = [WEIGHTS]
    if WEIGHTS not in files and INDEX in files:
        get(INDEX)
        weights = set(read_weight_map(stage / INDEX).values())
    get(*sorted(weights))


def from_store(name, repo, revision, stage, only_vocabulary):
    """Download a released size from OpenAI. Its Content-MD5 verifies what has no SHA-256 here."""
    server = Server(os.environ.get("GPT2_OPENAI_URL", "").strip().rstrip("/") or STORE)
    names = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    if not only_vocabulary:
        names |= {"model.ckpt.index": "model.ckpt.index", BUNDLE: BUNDLE}
    files = {}
    for theirs, file in names.items():
        path = f"/{name}/{theirs}"
        with server.retry(theirs, server.ask, path) as answer:
            size = answer.headers.get("Content-Length", "")
            md5 = re.fullmatch("[A-Za-z0-9+/]{22}==", answer.headers.get("Content-MD5", ""))
        if not re.fullmatch("[0-9]{1,15}", size) or not (md5 or f"{name}/{file}" in SHA256):
            raise Failure(f"{server.shown}{path} comes without its length or Content-MD5")
        md5 = binascii.a2b_base64(md5[0]).hex() if md5 else ""
        files[file] = path, int(size), SHA256.get(f"{name}/{file}", md5)
    (stage / "source.json").write_text(json.dumps({"repository": STORE, "commit": name}))
    (stage / "hparams.json").write_text(json.dumps(CONFIG[name]))
    download_all(server, stage, files)


def fetch(name, repo, revision, directory, only_vocabulary=False):
    """Put a model, or only its vocabulary, into a directory; OSError says in one line why not."""
    for variable in "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE":
        if os.environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError(f"{name} is not here, and {variable} forbids downloading it")
    is_here = holds_vocabulary if only_vocabulary else holds_model
    stage = directory / "incomplete"
    sources = [from_hub, from_store] if name in SIZES else [from_hub]
    reasons = []
    with disk.lock(directory):
        for source in sources:
            if is_here(directory):  # another process has downloaded it
                return
            disk.say("; ".join([*reasons, f"downloading {name} to {directory}"]))
            stage.mkdir(exist_ok=True)
            for path in stage.iterdir():
                if not stat.S_ISREG(path.lstat().st_mode):  # a pipe could make us wait for ever
                    disk.remove(path)
            try:
                source(name, repo, revision, stage, only_vocabulary)
                install(stage, directory, only_vocabulary)
                if not only_vocabulary or not any(stage.glob("model*")):  # weights may be resumed
                    disk.remove(stage)
                return
            except FileExistsError:  # a file of the user is where one would be installed
                raise
            except ValueError as error:  # it is not a GPT-2
                disk.remove(stage)
                reasons.append(str(error).replace(f"{stage}{os.sep}", ""))
            except OSError as error:
                reasons.append(str(error))
    kept = f"; what has arrived is kept in {stage}" if stage.exists() else ""
    raise OSError(disk.printable(f"{name} could not be downloaded: {'; '.join(reasons)}{kept}"))
