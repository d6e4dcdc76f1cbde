"""Fetching under faults: every schedule ends in the exact model, or in one clear line.

FETCH_SCHEDULES and FETCH_KILLS in the environment set how many are tried.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import OPENAI, ROOT, check_fetched, unaligned
from faults import KINDS

import utils
from model_files import download, fetch, sources, transport
from model_files.directory import holds_model, load_model, save_model
from model_files.parameters import flatten
from model_files.released import SIZES
from model_files.safetensors import BF16, widen, write_safetensors
from utils import load_encoder_hparams_and_params as load

SCHEDULES = int(os.environ.get("FETCH_SCHEDULES", 25))
SEED = int(os.environ.get("FETCH_SEED", 7))
BPE = "124M/encoder.json"
EXTRA = {
    "generation_config.json": b'{"eos_token_id": 255}',
    "special_tokens_map.json": b'{"eos_token": "<|endoftext|>"}',
}
KILLS = int(os.environ.get("FETCH_KILLS", 3))


@pytest.mark.parametrize("name", ["124M", "owner/name", "owner/name@v1"])
def test_fetches_once(name, place, model, servers, capfd):
    _, _, params = load(name, place)
    check_fetched(params, model, place / name.replace("/", "--"))
    requests = len(servers.log)
    # Four files, each by a redirect; a size is known to need no more, the hub is asked for others'.
    assert requests == 2 * 4 + (5 if name != "124M" else 0)
    revision = {"124M": SIZES["124M"][1], "owner/name": "main", "owner/name@v1": "v1"}[name]
    asked = [re.search("/resolve/([^/]+)/(.*)", path) for path, *_ in servers.log]
    commits = [found[1] for found in asked if found]
    assert commits == [revision] + [servers.commit] * (len(commits) - 1)
    extra = [found[2] for found in asked if found and f"owner/name/{found[2]}" not in servers.files]
    assert extra == [] if name == "124M" else sorted(extra) == sorted(sources.EXTRA)
    load(name, place)
    assert len(servers.log) == requests
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 2  # a pipe: one line at the start, one at the end


def test_store_is_the_second_source(place, model, servers, capfd):
    servers.faults = [("503", 0)] * download.TRIES
    check_fetched(load("124M", place)[2], model, place / "124M")
    assert f"no luck at {servers.hub}: config.json: 503" in capfd.readouterr().err
    shutil.rmtree(place)
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    check_fetched(load("124M", place)[2], model, place / "124M")


def test_unknown_names_reach_no_server(place, servers):
    for name in ("125M", "gpt2", "124m"):
        with pytest.raises(ValueError, match="known sizes are 124M, 355M, 774M, 1558M"):
            load(name, place)
    for name in ("../124M", "a/../b", "a/b/c", "~", "..", "C:x", "/nosuch", "owner/name@../x", ""):
        with pytest.raises((ValueError, FileNotFoundError, OSError)) as error:
            load(name, place / "x")
        assert "\n" not in str(error.value)
    assert servers.log == [] and not place.exists()


def test_added_tokens_come_along(place, model, servers):
    added = {"<|user|>": 257}
    servers.files["owner/name/added_tokens.json"] = json.dumps(added).encode()
    config = json.loads(model[0]["config.json"]) | {"vocab_size": 258}
    servers.files["owner/name/config.json"] = json.dumps(config).encode()
    tensors = flatten(model[1])
    tensors["wte.weight"] = np.concatenate([tensors["wte.weight"], tensors["wte.weight"][:1]])
    servers.files["owner/name/model.safetensors"] = unaligned(tensors)
    encoder, _, _ = load("owner/name", place)
    assert encoder.encode("<|user|>") == [257]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_shards_and_tokenizer_json(dtype, place, model, servers, monkeypatch):
    """A fine-tune as transformers 5 saves a large one; it is widened once, when it is installed."""
    files, params = model
    tensors = list(flatten(params).items())
    kind = {"F32": np.float32, "F16": np.float16, "BF16": BF16}[dtype]
    for name in ("vocab.json", "merges.txt", "model.safetensors"):
        del servers.files[f"owner/name/{name}"]
    vocabulary = json.loads(files["vocab.json"])
    added = [{"id": vocabulary.pop("Ġt"), "content": "<|endoftext|>", "special": True}]
    servers.files["owner/name/tokenizer.json"] = json.dumps(
        {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": added}
    ).encode()
    weight_map, path = {}, place.parent / "shard"
    for i, part in enumerate((tensors[::2], tensors[1::2])):
        part = {f"transformer.{name}": narrow(x, kind) for name, x in part}
        write_safetensors(path, part)
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        servers.files[f"owner/name/{shard}"] = path.read_bytes()
        weight_map |= dict.fromkeys(part, shard)
    servers.files["owner/name/model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": weight_map}
    ).encode()
    stored, write_weights = set(), fetch.write_weights
    monkeypatch.setattr(
        fetch,
        "write_weights",
        lambda path, tensors: (
            stored.update(x.dtype for x in tensors.values()),
            write_weights(path, tensors),
        ),
    )
    encoder, hparams, found = load("owner/name", place)
    assert stored == {np.dtype(kind)}  # all at once would be twice the memory
    assert [encoder.eot] == hparams["eos_token_ids"] == [256]
    for name, x in flatten(found).items():
        assert np.array_equal(x, widen(narrow(dict(tensors)[name], kind))), name
        assert x.flags.aligned and not x.flags.owndata


def narrow(x, dtype):
    if dtype != BF16:
        return x.astype(dtype)
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16).view(BF16)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_read_only_directory(place, servers):
    load("124M", place)
    for path in (place / "124M", place):
        path.chmod(0o555)
    load("124M", place)
    with pytest.raises(OSError, match="ermission"):
        load("owner/name", place)
    for path in (place, place / "124M"):
        path.chmod(0o755)


def test_a_model_that_is_there_is_only_read(place, model, servers):
    """Nothing at all is opened for writing, so a read-only directory will do."""
    load("124M", place)
    before = {path: path.stat().st_mtime_ns for path in [place / "124M", *place.rglob("*")]}
    load("124M", place)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_openai_directory_is_used_as_it_is(place, servers):
    shutil.copytree(OPENAI, place / "124M")
    load("124M", place)
    assert not servers.log and len(list((place / "124M").iterdir())) == 6


def test_nothing_of_a_run_that_was_killed_gets_into_the_model(place, model, servers):
    directory = place / "owner--name"
    (directory / "incomplete").mkdir(parents=True)
    for left in "tokenizer.json.tmp", "added_tokens.json", "vocab.json", "fetch.lock":
        (directory / left).write_bytes(b'{"from": "another commit"}')
    check_fetched(load("owner/name", place)[2], model, directory)
    assert (directory / "vocab.json").read_bytes() == model[0]["vocab.json"]


def test_it_is_no_model_before_all_of_it_is_there(place, model, servers, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(fetch, "write_config", full)
        with pytest.raises(OSError, match="No space left"):
            load("124M", place)
    assert not holds_model(place / "124M")
    check_fetched(load("124M", place)[2], model, place / "124M")


def test_two_at_once(place, model, servers):
    servers.pace = 0.005
    threads = [threading.Thread(target=load, args=("owner/name", place)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert len(servers.log) == 13  # one of them fetched, the others waited


@pytest.fixture
def expected(servers, model, tmp_path):
    """-> function: what of a fetched model is not exactly that of one commit."""

    def wrong(name, directory):
        files = model[0]
        if name != "124M":
            commit = json.loads((directory / "source.json").read_bytes())["commit"]
            assert commit in {*servers.history, servers.commit, *servers.revisions}
            at = servers.history.get(commit, servers.files)
            files = {key[11:]: data for key, data in at.items() if key.startswith("owner/name/")}
        copy = tmp_path / "expected"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file, data in files.items():
            (copy / file).write_bytes(data)
        _, hparams, params = load_model(copy)
        _, found_hparams, found = load_model(directory)
        params, found = flatten(params), flatten(found)
        carried = {path.name for path in copy.iterdir()} - {"config.json", "model.safetensors"}
        if name == "124M" and (directory / "vocab.json").read_bytes() == servers.files[BPE]:
            carried = set()  # OpenAI's own, whose vocabulary is spelled otherwise
        there = {path.name for path in directory.iterdir()} - {"source.json"}
        return [
            *(n for n, x in params.items() if not np.array_equal(x, found[n])),
            *(n for n in carried if (copy / n).read_bytes() != (directory / n).read_bytes()),
            *(there - carried - {"config.json", "model.safetensors"} if carried else ()),
            *(["hparams"] if hparams != found_hparams else ()),
        ]

    return wrong


def test_fault_schedules(place, servers, expected, monkeypatch):
    """Each random schedule ends in the exact model or in one line, after which a quiet run ends."""
    rng = random.Random(SEED)
    servers.stall, outcomes = transport.SILENCE + 0.1, {"whole": 0, "error": 0}
    for name, data in EXTRA.items():
        servers.files[f"owner/name/{name}"] = data
    genuine, commit, said = dict(servers.files), servers.commit, {}
    for i in range(SCHEDULES):
        name = rng.choice(["124M", "owner/name", "owner/name@v1"])
        directory, servers.plain = place / name.replace("/", "--"), rng.random() < 0.15
        kinds = [kind for kind in KINDS if kind != "stall" or rng.random() < 0.1]
        if servers.plain:  # there, these are the mirror's own words
            kinds = [kind for kind in kinds if kind not in ("404 bare", "bytes")]
        kinds = rng.sample(kinds, rng.choice([1, 3, len(kinds)]))
        often = rng.choice([0.2, 0.5, 0.9])
        servers.faults = [
            (rng.choice(kinds) if rng.random() < often else "", rng.random())
            for _ in range(rng.choice([10, 60]))
        ]
        monkeypatch.setenv("HF_TOKEN", "hf_stale" if rng.random() < 0.2 else "")
        schedule = f"schedule {i}: {name} {servers.plain} {servers.faults}"
        try:
            load(name, place)
            outcomes["whole"] += 1
        except (OSError, ValueError) as error:
            outcomes["error"] += 1
            line = str(error)
            assert name in line and line.isprintable() and "Signature" not in line, schedule
            assert not holds_model(directory), schedule
            said[re.sub("[0-9]+", "0", line)[-120:]] = line
            servers.faults = []
            load(name, place)
        wrong = expected(name, directory)
        assert not wrong, f"{wrong} in {schedule}"
        servers.files, servers.commit, servers.history = dict(genuine), commit, {}
        shutil.rmtree(place)
    print(f"{SCHEDULES} schedules: {outcomes}", *said.values(), sep="\n")
    assert min(outcomes.values()) > 0


CLIENT = """
import sys
sys.path.insert(0, {root!r})
import os, signal, utils
from model_files import download
download.WAIT, download.CHUNK, os.fsync = 0.01, 1 << 14, lambda file: None
signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # as the commands do
utils.load_encoder_hparams_and_params("owner/name", {place!r})
"""


@pytest.fixture
def start(place, servers, tmp_path):
    """-> function that starts a process which fetches a model of 2 MB; that takes a moment."""
    vocabulary, hparams, params = load_model(OPENAI)
    params["wte"] = np.arange(8 * 60000, dtype=np.float32).reshape(-1, 8)
    save_model(tmp_path / "large", {**hparams, "n_vocab": 60000}, params, vocabulary)
    for path in (tmp_path / "large").iterdir():
        servers.files[f"owner/name/{path.name}"] = path.read_bytes()
    servers.pace = 0.004
    client = [sys.executable, "-c", CLIENT.format(root=str(ROOT), place=str(place))]

    def start():
        process = subprocess.Popen(client, stderr=subprocess.DEVNULL)
        while not servers.log and process.poll() is None:
            time.sleep(0.005)
        return process

    start.params = params
    return start


def test_kill_at_any_moment(start, place, servers):
    """kill -9 or Ctrl-C while fetching or converting: the next run finishes and fetches little."""
    random.seed(1)
    size, directory = len(servers.files["owner/name/model.safetensors"]), place / "owner--name"
    killed, went_on = 0, 0
    for i in range(KILLS):
        process = start()
        time.sleep(random.uniform(0, 2 * 64 * servers.pace))
        killed += process.poll() is None
        process.send_signal(signal.SIGINT) if i % 2 and os.name != "nt" else process.kill()
        process.wait()
        there = [
            path.stat().st_size
            for path in directory.rglob("model.safetensors*")
            if path.suffix in (".part", ".safetensors")
        ]
        servers.log.clear()
        check_fetched(load("owner/name", place)[2], (None, start.params), directory)
        # What was on the disk is not fetched again, but for one byte that shows it is the same.
        first = [first for path, first, _, _ in servers.log if "safetensors" in path]
        assert not first if size in there else first[-1] >= sum(there) - 1
        went_on += sum(there) > 0
        servers.log.clear()
        shutil.rmtree(directory)
    print(f"{killed} of {KILLS} killed, {went_on} of them with weights on the disk")
    assert killed


def test_four_at_once_of_which_the_first_is_killed(start, place, servers):
    """The others have waited for it; one of them goes on, and the last two only read."""
    processes = [start()]
    while not list(place.rglob("model.safetensors.*.part")):
        time.sleep(0.005)
    processes += [start() for _ in range(3)]
    processes[0].kill()
    assert [process.wait(60) for process in processes[1:]] == [0, 0, 0]
    check_fetched(load("owner/name", place)[2], (None, start.params), place / "owner--name")
    sent = sum(sent for path, _, sent, _ in servers.log if path.startswith("content/"))
    size = len(servers.files["owner/name/model.safetensors"])
    assert sent < 1.5 * size  # what the first one was being sent when it was killed comes twice


def test_only_the_vocabulary_is_fetched_where_no_more_is_asked_for(place, servers):
    for name in "owner/name", "124M":
        encoder = utils.load_encoder(name, place)
        assert encoder.encode(" t") and not any("safetensors" in entry[0] for entry in servers.log)
        asked = len(servers.log)
        assert utils.load_encoder(name, place).vocabulary.ids == encoder.vocabulary.ids
        assert len(servers.log) == asked  # from what is kept
    load("owner/name", place)  # the whole model can still come
    with pytest.raises(OSError, match="^owner/none could not be fetched"):
        utils.load_encoder("owner/none", place)
    assert not (place / "owner--none").exists()


def test_the_vocabulary_of_a_released_size_comes_from_the_store_where_the_hub_fails(place, servers):
    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    assert utils.load_encoder("124M", place).n_vocab
    assert not any("ckpt" in entry[0] for entry in servers.log)
