"""The command line as a process: what it prints where, how it ends, what it says when it fails."""

import json
import math
import os
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, random_params

import gpt2
import gpt2_pico
from encoder import learn_bpe
from utils import load_encoder_hparams_and_params, save_model

HPARAMS = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_ctx": 32,
    "n_vocab": 260,
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 0,
}
TEXT = "low lower lowest, slow slower slowest"


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    params = random_params(7, **HPARAMS)
    save_model(path / "tiny", HPARAMS, params, learn_bpe([TEXT], 260))
    return path


@pytest.fixture(scope="module")
def tiny(models_dir):
    return load_encoder_hparams_and_params("tiny", str(models_dir))


def command(models_dir, *args, script="gpt2.py", model="tiny"):
    models = ["--models_dir", str(models_dir), "--model_size", model]
    return [sys.executable, str(ROOT / script), *args, *models]


def run(models_dir, *args, stdin=b"", **options):
    return subprocess.run(
        command(models_dir, *args, **options), input=stdin, capture_output=True, timeout=60
    )


def expected(tiny, prompt, n, **sampling):
    encoder, hparams, params = tiny
    ids = gpt2.generate(encoder.encode(prompt), params, hparams["n_head"], n, eos=0, **sampling)
    return encoder.decode(list(ids)).encode()


def test_stdout_is_the_continuation_and_nothing_else(models_dir, tiny):
    done = run(models_dir, "low", "--n_tokens_to_generate", "12", "--verbose")
    assert (done.returncode, done.stdout) == (0, expected(tiny, "low", 12) + b"\n")
    none = run(models_dir, "low", "--n_tokens_to_generate", "0")
    assert (none.returncode, none.stdout, none.stderr) == (0, b"\n", b"")
    ids = tiny[0].encode("low")
    assert f"prompt ids     {ids}".encode() in done.stderr
    assert done.stderr.count(b"/s\n") == 2  # the speeds of prompt and generation
    quiet = run(models_dir, "low", "--n_tokens_to_generate", "12")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


def test_pico_prints_the_same(models_dir):
    args = "low and slow", "--n_tokens_to_generate", "25"
    slow, fast = run(models_dir, *args, script="gpt2_pico.py"), run(models_dir, *args)
    assert slow.returncode == 0 and slow.stdout == fast.stdout


@pytest.mark.parametrize("args", [(), ("-",)])
def test_prompt_from_a_pipe_loses_one_line_break(args, models_dir, tiny):
    done = run(models_dir, *args, "--n_tokens_to_generate", "5", stdin=b"slow\n\n")
    assert done.stdout == expected(tiny, "slow\n", 5) + b"\n"


def test_sampling_is_repeated_by_its_seed(models_dir, tiny):
    args = "low", "--temperature", "1.5", "--top_k", "50", "--top_p", "0.95", "--seed"
    first = run(models_dir, *args, "3").stdout
    assert first == run(models_dir, *args, "3").stdout != run(models_dir, *args, "4").stdout
    assert first == expected(tiny, "low", 40, temperature=1.5, top_k=50, top_p=0.95, seed=3) + b"\n"
    assert (
        run(models_dir, "low", "--seed", "3").stdout
        == expected(tiny, "low", 40, temperature=1.0, seed=3) + b"\n"
    )


def test_the_likeliest_token_always_stays(models_dir, tiny):
    for odd in (
        ["--temperature", "1", "--top_p", "0"],
        ["--temperature", "1e-320"],
        ["--temperature", "0", "--seed", "0"],
        ["--top_k", "1"],
    ):
        done = run(models_dir, "low", "--n_tokens_to_generate", "12", *odd)
        assert (done.stdout, done.stderr) == (expected(tiny, "low", 12) + b"\n", b"")


def test_ends_at_end_of_text(models_dir, tiny, tmp_path):
    encoder, hparams, params = tiny
    ids = list(gpt2.generate(encoder.encode("low"), params, hparams["n_head"], 20))
    stop = next(i for n, i in enumerate(ids) if n > 2 and i not in ids[:n])
    until_stop = encoder.decode(ids[: ids.index(stop)]).encode() + b"\n"
    save_model(tmp_path / "ends", {**hparams, "eos_token_id": stop}, params, encoder)
    ends = [tmp_path, "low", "--n_tokens_to_generate", "20"]
    assert run(*ends, model="ends").stdout == until_stop  # what config.json says goes first
    path = tmp_path / "ends" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["eos_token_id"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert run(*ends, model="ends").stdout != until_stop
    path = tmp_path / "ends" / "vocab.json"  # the same ids, but `stop` is <|endoftext|> now
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    spelled = next(token for token, i in vocabulary.items() if i == stop)
    vocabulary |= {spelled: 0, "<|endoftext|>": stop}
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    assert run(*ends, model="ends").stdout == until_stop


def test_long_texts_say_so_once(models_dir, tiny):
    done = run(models_dir, "x" * 50, "--n_tokens_to_generate", "40")
    assert done.returncode == 0
    assert b"the prompt has 50 tokens; the model sees the last 32" in done.stderr
    assert done.stderr.count(b"the window slides") == 1
    encoder, hparams, params = tiny
    ids = gpt2_pico.generate(encoder.encode("x" * 50)[-32:], params, 2, 40, eos=0)
    assert done.stdout == encoder.decode(list(ids)).encode() + b"\n"


def test_empty_prompt_starts_from_end_of_text(models_dir, tiny):
    encoder, hparams, params = tiny
    ids = list(gpt2.generate([0], params, hparams["n_head"], 40, eos=0))
    assert run(models_dir, "").stdout == encoder.decode(ids).encode() + b"\n"


def test_perplexity_is_that_of_the_uncached_model(models_dir, tiny, tmp_path):
    encoder, hparams, params = tiny
    text = "slow low lower, éà lowest\n" * 5
    (tmp_path / "text").write_bytes(text.encode())
    done = run(models_dir, "--perplexity", str(tmp_path / "text"), "--stride", "8")
    ids, n, nats, last = encoder.encode(text), 0, 0.0, 1
    for start in range(0, len(ids), 8):
        stop = min(start + 32, len(ids))
        logits = gpt2_pico.gpt2(ids[start:stop], **params, n_head=2).astype(np.float64)
        for t in range(max(last, start + 1), stop):
            row = logits[t - 1 - start]
            nats += math.log(np.exp(row - row[ids[t]]).sum())
            n += 1
        last = stop
        if stop == len(ids):
            break
    n_bytes = len(text.encode()) - len(encoder.decode_bytes(ids[:1]))
    assert n == len(ids) - 1
    assert done.stdout.decode().split("\n") == [
        f"tokens          {n}",
        f"nats per token  {nats / n:.4f}",
        f"perplexity      {math.exp(nats / n):.2f}",
        f"bits per byte   {nats / math.log(2) / n_bytes:.4f}",
        "",
    ]


@pytest.mark.parametrize(
    "args, words",
    [
        (["x", "--n_tokens_to_generate", "-1"], ["n_tokens_to_generate", "-1"]),
        (["x", "--temperature", "warm"], ["temperature", "warm"]),
        (["x", "--temperature", "nan"], ["temperature", "nan"]),
        (["x", "--temperature", "inf"], ["temperature", "inf is not finite"]),
        (["x", "--top_p", "1.5"], ["top_p", "1.5"]),
        (["x", "--top_k", "0"], ["top_k"]),
        (["x", "--n_tokens", "many"], ["many"]),
        (["x", "--model_size", "999M"], ["999M", "124M, 355M, 774M, 1558M", "tiny"]),
        (["x", "--perplexity", "file"], ["perplexity"]),
    ],
)
def test_wrong_usage_is_2(args, words, models_dir):
    done = subprocess.run(
        [sys.executable, str(ROOT / "gpt2.py"), "--models_dir", str(models_dir), *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("gpt2.py: error: ") and all(word in last for word in words)


def test_what_goes_wrong_is_1_and_one_line(models_dir, tiny, tmp_path):
    def fails(*args, stdin=b"", model="tiny", models=models_dir):
        done = run(models, *args, stdin=stdin, model=model)
        lines = done.stderr.decode().split("\n")
        assert (done.returncode, done.stdout, len(lines)) == (1, b"", 2), done
        assert lines[0].startswith("gpt2.py: error: ")
        return lines[0]

    assert "nowhere" in fails("x", model=str(tmp_path / "nowhere"))
    assert "standard input" in fails("-", stdin=b"\xff\xfe")
    assert "missing.txt" in fails("--perplexity", "missing.txt")
    (tmp_path / "bytes").write_bytes(b"\xff" * 9)
    assert "bytes" in fails("--perplexity", str(tmp_path / "bytes"))
    (tmp_path / "one").write_bytes(b"x")
    assert "one" in fails("--perplexity", str(tmp_path / "one"))
    save_model(tmp_path / "cut", tiny[1], tiny[2], tiny[0])
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in fails("x", model="cut", models=tmp_path)
    assert "No such file" in fails("--perplexity", "")
    damaged = {**tiny[2], "ln_f": {**tiny[2]["ln_f"], "b": np.full(16, np.nan, np.float32)}}
    save_model(tmp_path / "nan", tiny[1], damaged, tiny[0])
    (tmp_path / "text").write_text(TEXT)
    for args in ["x"], ["x", "--seed", "1"], ["--perplexity", str(tmp_path / "text")]:
        assert "not finite" in fails(*args, model="nan", models=tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="POSIX can close a stream before the start")
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_closed_stream_leads_nowhere(stream, models_dir, tiny):
    done = subprocess.run(
        command(models_dir, "low", "--n_tokens_to_generate", "12"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: os.close(stream),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (expected(tiny, "low", 12) + b"\n" if stream != 1 else b"")


def test_the_short_way_fails_in_one_line(models_dir, tiny, tmp_path):
    save_model(tmp_path / "odd", {**tiny[1], "eos_token_id": None}, tiny[2], tiny[0])
    vocabulary = tmp_path / "odd" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace("<|endoftext|>", "<|other|>"))
    for script in "gpt2_pico.py", "gpt2.py":
        done = run(tmp_path, "", script=script, model="odd")
        assert done.returncode == 1 and done.stdout == b""
        assert done.stderr.decode().startswith(f"{script}: error: an empty prompt")
        assert done.stderr.count(b"\n") == 1


def test_closed_pipe_ends_quietly(models_dir):
    process = subprocess.Popen(
        command(models_dir, "low", "--n_tokens_to_generate", "100000", "--temperature", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 0
    assert b"rror" not in said and b"Traceback" not in said


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupt_is_130(models_dir):
    process = subprocess.Popen(
        command(models_dir, "low", "--n_tokens_to_generate", "100000", "--temperature", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1)  # streaming: the first text comes long before the last
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("leave", [b"quit\n", b"\x04"])
def test_loop_on_a_terminal(leave, models_dir, tiny):
    import pty

    terminal, end = pty.openpty()
    process = subprocess.Popen(
        command(models_dir, "--n_tokens_to_generate", "6"),
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=end,
    )
    os.close(end)

    def wait_for(text):
        seen, until = b"", time.monotonic() + 30
        while text not in seen and time.monotonic() < until:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 1000)
        assert text in seen

    for prompt in "low", "slow":
        wait_for(b">> ")
        os.write(terminal, prompt.encode() + b"\n")
        line = expected(tiny, prompt, 6) + b"\n"
        assert process.stdout.read(len(line)) == line
    wait_for(b">> ")
    os.write(terminal, leave)
    assert process.wait(30) == 0
    assert process.stdout.read() == b""
    os.close(terminal)


def test_help_names_every_option(models_dir):
    done = run(models_dir, "--help")
    assert done.returncode == 0
    for option in (
        "n_tokens_to_generate",
        "model_size",
        "models_dir",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "perplexity",
        "stride",
        "verbose",
    ):
        assert f"--{option}".encode() in done.stdout
