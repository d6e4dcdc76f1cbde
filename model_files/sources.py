"""The two sources of a model: the Hugging Face hub; OpenAI's own store, for the released sizes."""

import contextlib
import json
import os
import re

from model_files.directory import read_config, read_weight_map
from model_files.download import Missing, download
from model_files.files import read_json, write_atomic
from model_files.released import BUNDLE, SHA256, SIZES
from model_files.tensor_bundle import read_tensor_bundle


def hub_token():
    return os.environ.get("HF_TOKEN", "").strip()


def from_hub(base, name, repo, revision, stage):
    """Put config, vocabulary and weights of one commit of a repository into stage.

    A branch is resolved once: source.json keeps the commit, for this run and the ones that go on.
    """

    def get(file):
        return download(
            f"{base}/{repo}/resolve/{commit}/{file}",
            stage / file,
            SHA256.get(f"{name}/{file}"),
            hub_token(),
        )

    commit, source = revision, stage / "source.json"
    known = read_json(source) if source.exists() else {}
    if known.get("asked") == [repo, revision] and isinstance(known.get("commit"), str):
        commit = known["commit"]
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(stage / "config.json")
        named = get("config.json")
        commit = named if re.fullmatch("[0-9a-f]{40}", named) else revision
        with write_atomic(source) as file:
            file.write(json.dumps({"asked": [repo, revision], "commit": commit}).encode())
    read_config(stage / "config.json")  # before gigabytes of another architecture are fetched
    try:
        get("vocab.json")
        get("merges.txt")
        if name not in SIZES:  # whose files are known
            with contextlib.suppress(Missing):
                get("added_tokens.json")
    except Missing:
        get("tokenizer.json")
    try:
        get("model.safetensors")
    except Missing:
        try:
            get("model.safetensors.index.json")
        except Missing:
            raise ValueError(f"{repo} has no model.safetensors; pickles are not opened") from None
        for file in sorted(set(read_weight_map(stage / "model.safetensors.index.json").values())):
            get(file)


def from_store(base, name, repo, revision, stage):
    """Put OpenAI's own files into stage, verified by the index where no hash is published."""
    for file in ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.index", BUNDLE):
        download(f"{base}/{name}/{file}", stage / file, SHA256.get(f"{name}/{file}"))
    read_tensor_bundle(stage / "model.ckpt", verify=f"{name}/{BUNDLE}" not in SHA256)
