"""The two sources of a model: the Hugging Face hub; OpenAI's own store, for the released sizes."""

import contextlib
import itertools
import json
import os
import re
from urllib.parse import quote

import requests

from model_files.directory import read_config, read_weight_map
from model_files.download import Bare, Foreign, announce, download
from model_files.files import read_json, write_atomic
from model_files.hub_cache import hub_token, snapshot
from model_files.released import BUNDLE, SHA256, SIZES, check_config
from model_files.tensor_bundle import read_tensor_bundle
from model_files.transport import FINAL, HUB, Fault, Refused, address, ask

STORE = "https://openaipublic.blob.core.windows.net/gpt-2/models"
TEXT = ("vocab.json", "merges.txt")  # a released size needs no more beside config and weights
EXTRA = (  # what another repository may have; tokenizer.json has the say where there is one
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LOG_IN = "set HF_TOKEN to a token from {hub}/settings/tokens, or log in with: hf auth login"
STALE = "the token of {source} is not valid (any more): renew it, or do without it"
NO_REVISION = "no revision {revision}: what there is stands at {hub}/{repo}/tree/main"
REFUSALS = {  # (the hub's X-Error-Code, whether it knows who asks): what helps
    ("RepoNotFound", False): "no such repository, or a private one: check the name; if it is "
    "private, " + LOG_IN,
    ("RepoNotFound", True): "no such repository, or a private one that the owner of the token of "
    "{source} may not read: check the name, and whose token it is",
    ("GatedRepo", False): "it is gated: ask for access at {hub}/{repo}, then " + LOG_IN,
    ("GatedRepo", True): "it is gated, and the owner of the token of {source} has no access yet: "
    "ask for it at {hub}/{repo}",
    ("RevisionNotFound", False): NO_REVISION,
    ("RevisionNotFound", True): NO_REVISION,
}
ADAPTER = "{repo} is an adapter (LoRA) of another model: merge the two first, with peft"
GGUF = "{repo} has GGUF files, which are llama.cpp's: look for the model that they were made from"
PICKLES = "{repo} has no model.safetensors; pickles are not opened"
NO_MODEL = "{repo} has no config.json: it is no model, or an adapter or GGUF files of one"


class Hub:
    """One repository at one commit. plain: a mirror that has its files, and no more to say; None
    until that is known. stale: the hub knows no such token."""

    def __init__(self, base, name, repo, revision, stage):
        self.base, self.basic = address(base)
        self.name, self.repo, self.revision, self.stage = name, repo, revision, stage
        self.commit, self.plain = revision, False if self.base == HUB else None
        self.stale = False
        self.token, self.source = hub_token()

    def authorization(self):
        return f"Bearer {self.token}" if self.token and not self.stale else self.basic

    def get(self, file):
        """Fetch one file -> the commit that the hub names. Refused("EntryNotFound"): there is none;
        any other refusal is a Fault that says what helps."""
        url = f"{self.base}/{self.repo}/resolve/{quote(self.commit, safe='')}/{file}"
        pin, copies = SHA256.get(f"{self.name}/{file}"), self.copies(file)
        try:
            named = download(url, self.stage / file, pin, self.authorization(), self.plain, copies)
        except Refused as refused:
            if refused.code == "EntryNotFound":
                raise
            gated = refused.code == "GatedRepo"
            if refused.status == 401 and self.token and not self.stale and not gated:
                self.stale = True  # the hub knows no such token: what is public needs none
                announce(f"{self.words(STALE)}; going on without")
                return self.get(file)
            raise Fault(self.explain(refused), tries=FINAL) from None
        except Foreign:
            if self.plain:  # who knows which of them it is that contradict each other
                (self.stage / "source.json").unlink(missing_ok=True)
            raise
        (self.stage / f"{file}.old").unlink(missing_ok=True)
        if self.plain and named and file != "config.json":
            os.remove(self.stage / "source.json")  # the commit has to be found out anew
            raise Fault(f"{file}: it answers now as a hub, now as a plain mirror")
        return named

    def copies(self, file):
        """-> files that may be this one: of an attempt before, in Hugging Face's cache."""
        return [self.stage / f"{file}.old", snapshot(self.repo, self.revision) / file]

    def has(self, file):
        """Fetch a file if there is one -> whether there is."""
        try:
            self.get(file)
        except Refused:
            return False
        return True

    def words(self, line):
        return line.format(repo=self.repo, revision=self.revision, source=self.source, hub=HUB)

    def explain(self, refused):
        """-> one line: what the hub has refused, and what helps."""
        code = refused.code or ("RepoNotFound" if refused.status == 401 else "")
        line = REFUSALS.get((code, bool(self.token) and not self.stale))
        line = self.words(line) if line else str(refused)
        return f"{line}; {self.words(STALE)}" if self.stale else line

    def resolve(self):
        """A branch is resolved once: source.json keeps the commit, for this run and the next."""
        source, asked = self.stage / "source.json", [self.repo, self.revision]
        with contextlib.suppress(FileNotFoundError, ValueError):
            known = read_json(source)
            at = known.get("at")  # the files of a commit are the same everywhere
            if known.get("asked") == asked and isinstance(known.get("commit"), str):
                if (self.stage / "config.json").exists() and at in ("", self.base):
                    self.commit, self.plain = known["commit"], bool(at)
                    return
        set_aside(self.stage)
        commit = self.first()
        self.commit = commit if re.fullmatch("[0-9a-f]{40}", commit) else self.revision
        at = self.base if self.plain else ""
        with write_atomic(source) as file:
            file.write(json.dumps({"asked": asked, "commit": self.commit, "at": at}).encode())

    def first(self):
        """Fetch config.json -> the commit. A server that names none, twice, is a plain mirror;
        the hub is none."""
        try:
            commit = self.get("config.json")
        except Refused:
            raise ValueError(self.what_is_there("config.json")) from None
        except Bare:
            if self.plain is False:
                raise
            self.plain = True
            commit = self.get("config.json")
        self.plain = False if commit else self.plain
        return commit

    def what_is_there(self, missing):
        """-> one line: what the repository has in place of a model that can be used here."""
        names = set()
        odd = ValueError, KeyError, TypeError, RecursionError
        with contextlib.suppress(Fault, requests.RequestException, *odd):
            url = f"{self.base}/api/models/{self.repo}/revision/{quote(self.commit, safe='')}"
            with ask(url, {}, self.authorization()) as answers:
                data = b"".join(itertools.islice(answers[-1].iter_content(1 << 16), 64))
            names = {str(file["rfilename"]) for file in json.loads(data)["siblings"]}
        if "adapter_config.json" in names:
            return self.words(ADAPTER)
        if any(name.endswith(".gguf") for name in names):
            return self.words(GGUF)
        return self.words(PICKLES if missing == WEIGHTS else NO_MODEL)


def set_aside(stage):
    """What has been fetched is of another commit, or of no use: what is large is kept as a copy
    that may turn out to be the same, the rest goes."""
    for path in stage.iterdir():
        if path.suffix == ".safetensors":
            os.replace(path, f"{path}.old")
        elif path.suffix not in (".part", ".old"):
            path.unlink()


def from_hub(base, name, repo, revision, stage, only_vocabulary):
    """Put config, vocabulary and weights of one commit of a repository into stage."""
    hub = Hub(base, name, repo, revision, stage)
    hub.resolve()
    check_config(name, stage / "config.json")
    read_config(stage / "config.json")  # before gigabytes of another architecture are fetched
    if name not in SIZES:
        for file in EXTRA:
            hub.has(file)
    if not all(map(hub.has, TEXT)) and not (stage / "tokenizer.json").exists():
        raise ValueError(f"{repo} has neither {' with '.join(TEXT)} nor tokenizer.json")
    if not only_vocabulary and not hub.has(WEIGHTS):
        if not hub.has(INDEX):
            raise ValueError(hub.what_is_there(WEIGHTS))
        for file in sorted(set(read_weight_map(stage / INDEX).values())):
            if not hub.has(file):
                raise ValueError(f"{repo} has no {file}, which its {INDEX} names")


def from_store(base, name, repo, revision, stage, only_vocabulary):
    """Put OpenAI's own files into stage, verified by the index where no hash is published."""
    base, basic = address(base)
    vocabulary, rest = ("encoder.json", "vocab.bpe"), ("hparams.json", "model.ckpt.index", BUNDLE)
    for file in vocabulary if only_vocabulary else (*vocabulary, *rest):
        pin = SHA256.get(f"{name}/{file}")
        download(f"{base}/{name}/{file}", stage / file, pin, basic, plain=True)
    if not only_vocabulary:
        read_tensor_bundle(stage / "model.ckpt", verify=f"{name}/{BUNDLE}" not in SHA256)
