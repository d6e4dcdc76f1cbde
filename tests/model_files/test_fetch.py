"""Fetching under faults: every schedule ends in the exact model, or in one clear line.

FETCH_SCHEDULES and FETCH_KILLS in the environment set how many are tried.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import OPENAI, ROOT
from fault_server import KINDS, Servers

from model_files import download, fetch, sources
from model_files.directory import holds_model, load_model, save_model
from model_files.parameters import flatten
from model_files.released import SIZES
from model_files.safetensors import BF16, widen, write_safetensors
from utils import load_encoder_hparams_and_params

SCHEDULES = int(os.environ.get("FETCH_SCHEDULES", 40))
KILLS = int(os.environ.get("FETCH_KILLS", 5))


@pytest.fixture
def servers():
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Files of a repository as the hub has them: bare names, mask buffers, data at an odd byte."""
    vocabulary, hparams, params = load_model(OPENAI)
    directory = tmp_path_factory.mktemp("hub")
    save_model(directory, hparams, params, vocabulary)
    tensors = flatten(params)
    for i in range(hparams["n_layer"]):
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    files["model.safetensors"] = unaligned(tensors)
    return files, params


def unaligned(tensors):
    header, data = {}, b""
    for name, x in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": x.shape,
            "data_offsets": (len(data), len(data) + x.nbytes),
        }
        data += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4 + 3)
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def place(servers, model, monkeypatch, tmp_path):
    """The sizes on both servers, with pinned hashes, and little patience."""
    files, _ = model
    repo = SIZES["124M"][0]
    openai = {path.name: path.read_bytes() for path in OPENAI.iterdir()}
    servers.files = {
        **{f"{repo}/{name}": data for name, data in files.items()},
        **{f"owner/name/{name}": data for name, data in files.items()},
        **{f"124M/{name}": data for name, data in openai.items()},
    }
    pins = {
        f"124M/{name}": hashlib.sha256(data).hexdigest()
        for name, data in {**files, **openai}.items()
        if name != "config.json" and "ckpt" not in name
    }
    monkeypatch.setattr(sources, "SHA256", pins)
    for name, value in {"WAIT": 0.001, "SILENCE": 0.3, "CHUNK": 1 << 10}.items():
        monkeypatch.setattr(download, name, value)
    monkeypatch.setattr(fetch, "LOCK_WAIT", 0.01)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and no test cuts the power
    monkeypatch.setenv("HF_ENDPOINT", servers.hub)
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "models"


def load(name, models_dir):
    return load_encoder_hparams_and_params(name, models_dir)


def check(params, model, directory):
    """The parameters are exact and mapped, and nothing else is left in the directory."""
    expected, found = flatten(model[1]), flatten(params)
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        assert np.array_equal(x, found[name]), name
        assert found[name].flags.aligned and not found[name].flags.owndata, name
    left = {path.name for path in directory.iterdir()}
    whole = {"config.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert left - {"source.json"} == whole


@pytest.mark.parametrize("name", ["124M", "owner/name", "owner/name@v1"])
def test_fetches_once(name, place, model, servers, capfd):
    _, _, params = load(name, place)
    check(params, model, place / name.replace("/", "--"))
    requests = len(servers.log)
    assert requests == 5 + (name != "124M")  # four files, one by a redirect, and one not there
    revision = {"124M": SIZES["124M"][1], "owner/name": "main", "owner/name@v1": "v1"}[name]
    commits = [re.search("/resolve/([^/]+)/", path)[1] for path, *_ in servers.log]
    assert commits == [revision] + [servers.commit] * (requests - 1)
    load(name, place)
    assert len(servers.log) == requests
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 2  # a pipe: one line at the start, one at the end


def test_store_is_the_second_source(place, model, servers, capfd):
    servers.faults = [("503", 0)] * download.TRIES
    check(load("124M", place)[2], model, place / "124M")
    assert f"no luck at {servers.hub}: config.json: 503" in capfd.readouterr().err
    shutil.rmtree(place)
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    check(load("124M", place)[2], model, place / "124M")


def test_resumes_where_it_broke_off(place, model, servers):
    servers.faults = [(None, 0)] * 4 + [("break", 0.5), ("break", 0.5)]
    check(load("owner/name", place)[2], model, place / "owner--name")
    sent = [sent for path, _, sent, _ in servers.log if "safetensors" in path]
    size = len(model[0]["model.safetensors"])
    assert size <= sum(sent) < size + 3 * download.CHUNK
    assert len([n for n in sent if n]) == 3


def test_as_long_as_it_gets_further_it_goes_on(place, model, servers):
    servers.faults = [(None, 0)] * 4 + [("break", 0.2)] * 2 * download.TRIES
    check(load("owner/name", place)[2], model, place / "owner--name")
    starts = [start for path, start, *_ in servers.log if "safetensors" in path]
    assert servers.faults == [] and starts == sorted(starts) and len(starts) > 2 * download.TRIES


def test_what_is_whole_but_for_its_name_is_not_fetched_again(place, model, servers, monkeypatch):
    replace, size = os.replace, len(model[0]["model.safetensors"])

    def killed(source, target):
        if str(target).endswith("model.safetensors"):
            raise OSError("killed")
        replace(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            load("owner/name", place)
    servers.log.clear()
    check(load("owner/name", place)[2], model, place / "owner--name")
    sent = [tuple(entry[1:3]) for entry in servers.log if "safetensors" in entry[0] and entry[2]]
    assert sent == [(size - 1, 1)]  # one byte shows that it is the same file


def test_resumes_in_another_run(place, model, servers, monkeypatch):
    servers.faults = [(None, 0)] * 4 + [("break", 0.9)] + [("reset", 0)] * download.TRIES
    with pytest.raises(OSError, match="0.0 MB are kept in .* goes on from there") as error:
        load("owner/name", place)
    assert "\n" not in str(error.value)
    servers.faults, servers.log[:] = [], []
    servers.commit, commit = "e" * 40, servers.commit  # what main has come to in between
    check(load("owner/name", place)[2], model, place / "owner--name")
    assert all(f"/resolve/{commit}/" in path for path, *_ in servers.log)
    weights = [start for path, start, *_ in servers.log if "safetensors" in path]
    assert len(weights) == 2 and weights[0] > 0.8 * len(model[0]["model.safetensors"])


def test_changed_file_starts_over(place, model, servers):
    weights = "owner/name/model.safetensors"
    genuine, servers.files[weights] = servers.files[weights], bytes(20000)
    servers.faults = [(None, 0)] * 4 + [("break", 0.9)] + [("503", 0)] * download.TRIES
    with pytest.raises(OSError):
        load("owner/name", place)
    servers.files[weights], servers.faults = genuine, []
    check(load("owner/name", place)[2], model, place / "owner--name")


def test_retry_after_is_honoured(place, servers, monkeypatch):
    waits = []
    monkeypatch.setattr(
        download,
        "time",
        SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic),
    )
    monkeypatch.setattr(download, "WAIT", 1.0)
    monkeypatch.setattr(download.random, "uniform", lambda a, b: b)
    servers.faults = [("503", 0)] * 4 + [(None, 0)] * 99
    load("owner/name", place)
    assert waits == [1, 2, 4, 8]
    assert download.retry_after("17") == 17
    assert 50 < download.retry_after(download.email.utils.formatdate(time.time() + 60)) < 61
    for text in ("Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-1", ""):
        assert download.retry_after(text) == 0


def test_too_long_a_wait_is_an_error(place, servers, monkeypatch):
    monkeypatch.setattr(download, "retry_after", lambda text: 3600.0)
    servers.faults = [("429 after", 0)]
    with pytest.raises(OSError, match="429 .*3600 s"):
        load("owner/name", place)
    assert len(servers.log) == 1


def test_a_size_that_the_hub_did_not_promise_is_refused_at_once(place, model, servers, capfd):
    servers.faults = [(None, 0)] * 4 + [("linked", 0)]
    check(load("owner/name", place)[2], model, place / "owner--name")
    size = len(model[0]["model.safetensors"])
    assert f"{size} bytes come instead of {size + 1}; 0.0 MB are there" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["page", "page as file"])
def test_a_web_page_is_never_a_file(kind, place, servers):
    servers.faults = [(None, 0)] * 3 + [(kind, 0)] * 40
    with pytest.raises(OSError, match="a web page comes instead") as error:
        load("124M", place)
    assert 'python gpt2.py "ROMEO:" --model_size shakespeare' in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(b"<html" in path.read_bytes() for path in place.rglob("*") if path.is_file())


def test_wrong_bytes_are_thrown_away(place, model, servers):
    servers.faults = [(None, 0)] * 4 + [("bytes", 0.7)] * 2
    with pytest.raises(OSError, match="model.safetensors: wrong bytes, thrown away"):
        load("owner/name", place)
    assert not list(place.rglob("model.safetensors*"))
    check(load("owner/name", place)[2], model, place / "owner--name")


def test_a_size_is_what_has_been_released(place, model, servers, capfd):
    """Bytes that the hub itself vouches for are refused where their hash is known, and differs."""
    name = f"{SIZES['124M'][0]}/model.safetensors"
    servers.files[name] = servers.files[name][:-1] + b"!"
    check(load("124M", place)[2], model, place / "124M")
    said = capfd.readouterr().err
    assert f"no luck at {servers.hub}: model.safetensors: wrong bytes, thrown away" in said


@pytest.mark.parametrize("file", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_store_is_checked_by_md5_and_crc(file, place, model, servers, monkeypatch):
    """The store's own MD5 first; where it vouches for damaged bytes, the index's CRC-32C."""
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    at = 3 + ["model.ckpt.index", "model.ckpt.data-00000-of-00001"].index(file)
    servers.faults = [("404", 0)] + [(None, 0)] * at + [("bytes", 0.4)] * 2
    with pytest.raises(OSError, match=f"{file}: wrong bytes.*md5"):
        load("124M", place)
    data = servers.files[f"124M/{file}"]
    servers.files[f"124M/{file}"] = data[:700] + bytes([data[700] ^ 4]) + data[701:]
    with pytest.raises(OSError, match="CRC-32C"):
        load("124M", place)


def test_the_store_vouches_for_the_whole_of_what_comes_in_parts(place, servers):
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    servers.faults = [("404", 0)] + [(None, 0)] * 4 + [("break", 0.5)] + [("bytes", 0.9)] * 2
    with pytest.raises(OSError, match="data-00000-of-00001: wrong bytes.*md5"):
        load("124M", place)


def test_not_there_or_not_understood(place, model, servers):
    with pytest.raises(OSError, match="404 .*owner/nosuch/resolve/main/config.json"):
        load("owner/nosuch", place)
    assert not list(place.glob("*nosuch"))
    del servers.files["owner/name/model.safetensors"]
    with pytest.raises(ValueError, match="has no model.safetensors; pickles are not opened"):
        load("owner/name", place)
    config = json.loads(model[0]["config.json"]) | {"model_type": "llama"}
    servers.files["owner/name/config.json"] = json.dumps(config).encode()
    servers.log.clear()
    with pytest.raises(ValueError, match="config.json: model_type is 'llama'"):
        load("owner/name", place)
    assert len(servers.log) == 1  # nothing large is fetched in vain


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


@pytest.mark.parametrize("token", ["hf_\u201cquoted\u201d", "hf_two\nlines", "hf_two words"])
def test_a_token_that_is_none_costs_nothing(token, place, servers, monkeypatch):
    servers.faults = [(None, 0)] * 4 + [("break", 0.5)] * download.TRIES * 2
    with pytest.raises(OSError, match="are kept"):
        load("owner/name", place)
    kept = sorted((place / "owner--name" / "incomplete").iterdir())
    assert kept
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match="^HF_TOKEN holds more") as failed:
        load("owner/name", place)
    assert "hf_" not in str(failed.value)
    assert kept == sorted((place / "owner--name" / "incomplete").iterdir())


def test_no_address_is_an_error_of_one_line(place, servers, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://{'x' * 70}.com")
    with pytest.raises(OSError, match="could not be fetched") as failed:
        load("owner/name", place)
    assert "\n" not in str(failed.value)
    assert not place.exists() or not list(place.iterdir())
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.setattr(fetch, "from_hub", lambda base, *rest: pytest.fail(base))
    with pytest.raises(pytest.fail.Exception, match="https://huggingface.co"):
        load("owner/name", place)


def test_token_goes_to_the_hub_alone(place, servers, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    load("owner/name", place)
    for path, _, _, headers in servers.log:
        content = headers["Host"] == servers.content.removeprefix("http://")
        assert headers.get("Authorization") == (None if content else "Bearer hf_secret"), path


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_shards_and_tokenizer_json(dtype, place, model, servers, monkeypatch):
    """A fine-tune as transformers 5 saves a large one; it is widened once, when it is installed."""
    files, params = model
    tensors = list(flatten(params).items())
    kind = {"F32": np.float32, "F16": np.float16, "BF16": BF16}[dtype]
    for name in ("vocab.json", "merges.txt", "model.safetensors"):
        del servers.files[f"owner/name/{name}"]
    vocabulary = json.loads(files["vocab.json"])
    added = [{"id": vocabulary.pop("<|endoftext|>"), "content": "<|endoftext|>", "special": True}]
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


def test_disk_space_is_checked_first(place, servers, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="GB more are needed, and 0.00 GB are free"):
        load("124M", place)
    assert len(servers.log) == 1 and not list(place.rglob("*.part"))


def test_disk_space_is_checked_again_for_what_is_written(place, model, servers, monkeypatch):
    needs = []
    monkeypatch.setattr(fetch, "check_space", lambda directory, need: needs.append(need))
    load("124M", place)
    assert needs == [sum(x.nbytes for x in flatten(model[1]).values())]


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


def test_two_at_once(place, model, servers):
    servers.pace = 0.005
    threads = [threading.Thread(target=load, args=("owner/name", place)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(load("owner/name", place)[2], model, place / "owner--name")
    assert len(servers.log) == 6  # one of them fetched, the others waited


def test_fault_schedules(place, model, servers):
    """Each random schedule ends in the exact model or in one line, after which a quiet run ends."""
    random.seed(0)
    servers.stall = download.SILENCE + 0.1
    genuine, outcomes = dict(servers.files), {"whole": 0, "error": 0}
    for i in range(SCHEDULES):
        name = random.choice(["124M", "owner/name"])
        kinds = [kind for kind in KINDS if kind != "stall" or random.random() < 0.1]
        often, directory = random.choice([0.2, 0.5, 0.9]), place / name.replace("/", "--")
        servers.faults = [
            (random.choice(kinds) if random.random() < often else None, random.random())
            for _ in range(60)
        ]
        schedule = f"schedule {i}: {name} {servers.faults}"
        try:
            found = load(name, place)[2]
        except (OSError, ValueError) as error:
            outcomes["error"] += 1
            named = name in str(error) or directory.name in str(error)
            assert named and "\n" not in str(error), f"{error} in {schedule}"
            assert not holds_model(directory), schedule
            servers.faults, servers.files = [], dict(genuine)
            found = load(name, place)[2]
        else:
            outcomes["whole"] += 1
        expected, found = flatten(model[1]), flatten(found)
        wrong = [n for n, x in expected.items() if not np.array_equal(x, found[n])]
        # A changed file is a genuine one of another commit where nothing is pinned.
        changed = name != "124M" and servers.files != genuine
        assert changed or not wrong, f"{wrong} in {schedule}"
        servers.files = dict(genuine)
        shutil.rmtree(directory)
    print(f"{SCHEDULES} schedules: {outcomes}")
    assert min(outcomes.values()) > 0


CLIENT = """
import sys
sys.path.insert(0, {root!r})
import os, utils
from model_files import download
download.WAIT, download.CHUNK, os.fsync = 0.01, 1 << 14, lambda file: None
utils.load_encoder_hparams_and_params("owner/name", {place!r})
"""


def test_kill_at_any_moment(place, model, servers, tmp_path):
    """kill -9 while fetching or converting: the next run finishes and fetches little again."""
    random.seed(1)
    vocabulary, hparams, params = load_model(OPENAI)
    params["wte"] = np.arange(8 * 60000, dtype=np.float32).reshape(-1, 8)  # 2 MB: takes a moment
    save_model(tmp_path / "large", {**hparams, "n_vocab": 60000}, params, vocabulary)
    for path in (tmp_path / "large").iterdir():
        servers.files[f"owner/name/{path.name}"] = path.read_bytes()
    size, directory = len(servers.files["owner/name/model.safetensors"]), place / "owner--name"
    client = [sys.executable, "-c", CLIENT.format(root=str(ROOT), place=str(place))]
    servers.pace, killed, went_on = 0.004, 0, 0
    for _ in range(KILLS):
        process = subprocess.Popen(client, stderr=subprocess.DEVNULL)
        while not servers.log and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 2 * 64 * servers.pace))
        killed += process.poll() is None
        process.kill()
        process.wait()
        there = [
            path.stat().st_size
            for path in directory.rglob("model.safetensors*")
            if path.suffix in (".part", ".safetensors")
        ]
        servers.log.clear()
        check(load("owner/name", place)[2], (None, params), directory)
        # What was on the disk is not fetched again, but for one byte that shows it is the same.
        first = [first for path, first, _, _ in servers.log if "safetensors" in path]
        assert not first if size in there else first[-1] >= sum(there) - 1
        went_on += sum(there) > 0
        servers.log.clear()
        shutil.rmtree(directory)
    print(f"{killed} of {KILLS} killed, {went_on} of them with weights on the disk")
    assert killed
