"""GPT-2 as it is used: the formula of gpt2_pico.py with a key/value cache, and the command line.

Shapes: n tokens enter, after n_past that the cache holds already; e = n_embd numbers a token,
h = n_head heads of d = e / h numbers each. Everything is float32.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import argparse
import functools
import math
import os
import re
import sys
import time

import numpy as np

ROWS = 64  # queries that attention takes at a time: the scores of a piece stay in cache
NGRAM, FIRST_DRAFT, MAX_DRAFT = 3, 7, 31  # tokens: to look up, to guess; docs/speed.md says why
FUTURE = np.triu(np.full((ROWS, ROWS), -np.inf, np.float32), 1)  # what a query must not see


def in_pieces(function):
    """The same function of arrays [N, m], run on groups of rows that fit the processor's cache.

    NumPy makes a pass over the array for each operation; from memory, a pass costs more than the
    arithmetic. Positional arguments are cut, keywords are not.
    """

    @functools.wraps(function)
    def pieces(x, *others, **keywords):
        rows = max(1, 2**16 // x.shape[-1])
        if len(x) <= rows:
            return function(x, *others, **keywords)
        y = np.empty_like(x)
        for i in range(0, len(x), rows):
            cut = (a[i : i + rows] for a in (x, *others))
            y[i : i + rows] = function(*cut, **keywords)
        return y

    return pieces


def normal_cdf(x):  # [..., 4e] -> [..., 4e]
    """0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks and Gimpel 2016, section 2."""
    p = x * x
    p *= 0.044715 * math.sqrt(2 / math.pi)
    p += math.sqrt(2 / math.pi)
    p *= x
    np.tanh(p, out=p)
    p += 1
    p *= 0.5
    return p


@in_pieces
def gelu(x):  # [..., 4e] -> [..., 4e]
    """x times the share of a normal distribution that lies below x, nearly."""
    y = normal_cdf(x)
    y *= x
    return y


def softmax(x):  # [..., n] -> [..., n], each row sums to 1
    x = np.exp(x - x.max(-1, keepdims=True))
    x /= x.sum(-1, keepdims=True)
    return x


@in_pieces
def layer_norm(x, g, b, eps):  # [..., e] -> [..., e]
    x = x - np.add.reduce(x, -1, keepdims=True) / x.shape[-1]
    x /= np.sqrt(np.add.reduce(x * x, -1, keepdims=True) / x.shape[-1] + eps)
    x *= g
    x += b
    return x


def linear(x, w, b):  # [..., in] @ [in, out] -> [..., out]
    x = x @ w
    x += b
    return x


def attention_weights(q, k):  # [..., m, d], [..., n, d] -> [..., m, n]
    """softmax(q k^T) before its division: exp(q k^T - maximum), 0 for what a query must not see."""
    m = q.shape[-2]
    weights = q @ k.swapaxes(-1, -2)
    weights[..., -m:] += FUTURE[:m, :m]
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    return weights


def attention(q, k, v):  # [..., n, d], [..., n_past + n, d] twice -> [..., n, d]
    """softmax(q k^T / sqrt(d)) v, where the last query stands at the last key."""
    n, d = q.shape[-2:]
    n_past = k.shape[-2] - n
    q = q * (1 / math.sqrt(d))
    out = np.empty_like(q)
    for i in range(0, n, ROWS):  # in pieces of rows, each only as far as its last row sees
        j = min(i + ROWS, n)
        weights = attention_weights(q[..., i:j, :], k[..., : n_past + j, :])
        np.matmul(weights, v[..., : n_past + j, :], out=out[..., i:j, :])
        out[..., i:j, :] /= weights.sum(-1, keepdims=True)
    return out


def mha(x, c_attn, c_proj, n_head, cache, n_past):  # [n, e] -> [n, e]
    n, e = x.shape
    qkv = linear(x, **c_attn).reshape(n, 3, n_head, e // n_head)  # [n, 3e] -> [n, 3, h, d]
    qkv = qkv.transpose(1, 2, 0, 3)  # [3, h, n, d]
    cache[:, :, n_past : n_past + n] = qkv[1:]  # the one write to the cache
    k, v = cache[:, :, : n_past + n]  # two of [h, n_past + n, d]
    x = attention(qkv[0], k, v)  # [h, n, d]
    return linear(x.swapaxes(0, 1).reshape(n, e), **c_proj)


def ffn(x, c_fc, c_proj):  # [..., e] -> [..., 4e] -> [..., e]
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def transformer_block(x, ln_1, attn, ln_2, mlp, n_head, eps, cache, n_past):  # [n, e] -> [n, e]
    x = x + mha(layer_norm(x, **ln_1, eps=eps), **attn, n_head=n_head, cache=cache, n_past=n_past)
    x += ffn(layer_norm(x, **ln_2, eps=eps), **mlp)
    return x


def new_cache(params, n_head, n):  # -> [n_layer, 2, h, n, d], keys and values of n positions
    e = params["wte"].shape[1]
    return np.empty((len(params["blocks"]), 2, n_head, n, e // n_head), np.float32)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps=1e-5, cache=None, n_past=0, n_logits=0):
    """Logits of the tokens that follow: [n] ids -> [n_logits or n, n_vocab].

    The cache (new_cache) holds n_past positions on entry and n_past + n on return; without one
    the inputs are the whole text. n_logits projects only the last positions, 0 all of them.
    """
    n = len(inputs)
    if cache is None:
        cache = new_cache({"wte": wte, "blocks": blocks}, n_head, n)
    x = wte[inputs] + wpe[n_past : n_past + n]  # [n] -> [n, e]
    for block, block_cache in zip(blocks, cache):
        x = transformer_block(x, **block, n_head=n_head, eps=eps, cache=block_cache, n_past=n_past)
    return layer_norm(x[-n_logits:], **ln_f, eps=eps) @ wte.T  # [n_logits, e] -> [.., n_vocab]


def window_start(n, n_ctx):
    """First position of n that the model still sees. Past n_ctx the window jumps by half of it:
    sliding by one would move every position embedding, and so cost a new prefill for each token."""
    half = max(1, n_ctx // 2)
    return -(-max(0, n - n_ctx) // half) * half


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):  # [n_vocab] -> [n_vocab], float64
    """The distribution that sampling draws from, the steps in this order.

    softmax(logits / temperature); the top_k most likely tokens (and those equal to the last of
    them), 0: all; of these the fewest that have together top_p (Holtzman et al. 2020).
    """
    with np.errstate(over="ignore"):  # to -inf, at a temperature near 0
        logits = (logits.astype(np.float64) - logits.max()) / temperature
    if 0 < top_k < len(logits):
        logits[logits < np.partition(logits, -top_k)[-top_k]] = -np.inf
    p = softmax(logits)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # what the more likely tokens have together
        before[0] = -1  # the first one stays
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return p


def choose(logits, rng, temperature=0.0, top_k=0, top_p=1.0):  # [n_vocab] -> id
    """The most likely token at temperature 0, else one drawn with one random number."""
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):  # argmax finds a NaN, too
        raise ValueError("the model's logits are not finite: its weights are damaged")
    if temperature == 0:
        return best
    total = np.cumsum(probabilities(logits, temperature, top_k, top_p))
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def draft(text, length):
    """A guess at what follows: what followed the last NGRAM tokens when they were last there.

    Prompt lookup (Saxena 2023). A token is a character, so that str.rfind searches; a guess that
    reaches the end of the text goes round: with NGRAM = 3, "abcdeabc" -> "deabcdeabc..."
    """
    place = text.rfind(text[-NGRAM:], 0, -1)
    if place < 0 or length <= 0 or text == "":
        return ""
    cycle = text[place + NGRAM :]
    return (cycle * (length // len(cycle) + 1))[:length]


def generate(
    inputs,
    params,
    n_head,
    n_tokens,
    eps=1e-5,
    eos=None,
    seed=None,
    max_draft=MAX_DRAFT,
    passes=None,
    **sampling,
):
    """Iterator of up to n_tokens ids that continue the inputs; ends before eos.

    A pass over the model may check a draft of up to max_draft tokens: at each position the token
    is chosen from the model's own logits, as without a draft, until a choice differs from it. So
    the draft changes the time and not the tokens (Leviathan et al. 2023).
    sampling: temperature, top_k, top_p as in choose; the same seed gives the same tokens.
    passes: a list that gets the number of tokens that each pass has given.
    """
    ids, n_ctx, rng = list(inputs), len(params["wpe"]), np.random.default_rng(seed)
    text, end, length, pause, misses = "".join(map(chr, ids)), len(ids) + n_tokens, 0, 0, 0
    passes = [] if passes is None else passes
    cache = new_cache(params, n_head, min(n_ctx, end))
    start = n_past = 0  # the window begins at ids[start], and the cache holds n_past from there
    while len(ids) < end:
        if start != window_start(len(ids), n_ctx):
            start, n_past = window_start(len(ids), n_ctx), 0
        room = min(end - len(ids) - 1, start + n_ctx - len(ids), max_draft)
        guess = draft(text, min(room, length or FIRST_DRAFT)) if pause == 0 else ""
        new = [*ids[start + n_past :], *map(ord, guess)]
        logits = gpt2(
            new,
            **params,
            n_head=n_head,
            eps=eps,
            cache=cache,
            n_past=n_past,
            n_logits=len(guess) + 1,
        )
        before = len(ids)
        passes.append(0)
        for row, guessed in zip(logits, [*map(ord, guess), None]):
            ids.append(choose(row, rng, **sampling))
            if ids[-1] == eos:
                return
            passes[-1] += 1
            yield ids[-1]
            if ids[-1] != guessed:
                break
        n_past = len(ids) - 1 - start  # a wrong guess is overwritten
        text += "".join(map(chr, ids[before:]))
        if guess and len(ids) - before > len(guess) // 2:  # right: longer ones, if all of it was
            misses, length = 0, 2 * len(guess) + 1 if len(ids) - before > len(guess) else len(guess)
        elif guess:  # wrong: the more often, the longer without
            misses, length, pause = misses + 1, 0, 2 ** min(misses + 2, 6)
        pause = max(0, pause - 1)


def windows(n, length, stride):
    """Yield (start, first, stop): ids[first:stop] are predicted with the context from start on.

    Each id but the first is a target once: windows(10, 6, 3) -> (0, 1, 6) (3, 6, 9) (6, 9, 10).
    """
    stop = 1
    for start in range(0, max(1, n - length + stride), stride):
        first, stop = max(stop, start + 1), min(start + length, n)
        if first < stop:
            yield start, first, stop


def window_nats(ids, window, params, n_head, eps=1e-5):
    """Sum of -log p(id) over a window's targets, in nats. Goes through the window in pieces with
    the cache, so that only a piece's logits [ROWS, n_vocab] are in memory."""
    start, first, stop = window
    cache, nats = new_cache(params, n_head, stop - 1 - start), 0.0
    for i in range(start, stop - 1, ROWS):
        j = min(i + ROWS, stop - 1)
        n_logits = j + 1 - max(first, i + 1)  # token i predicts token i + 1
        logits = gpt2(
            ids[i:j],
            **params,
            n_head=n_head,
            eps=eps,
            cache=cache,
            n_past=i - start,
            n_logits=max(1, n_logits),
        )
        if n_logits > 0:
            logits -= logits.max(-1, keepdims=True)
            log_p = logits[np.arange(n_logits), ids[j + 1 - n_logits : j + 1]]
            log_p -= np.log(np.exp(logits).sum(-1))
            nats -= float(log_p.sum(dtype=np.float64))
    return nats


# The command line


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="gpt2.py",
        description="Complete a prompt with GPT-2. The continuation goes to standard output as it "
        "is generated, everything else to standard error.",
        epilog="No prompt on a terminal opens a loop: text after >> is completed, 'quit' or end "
        "of file leaves. Environment: HF_ENDPOINT and HF_TOKEN (the Hugging Face hub), "
        "GPT2_OPENAI_URL (OpenAI's store, where a released size is fetched if the hub fails), "
        "HF_HOME and HF_HUB_CACHE (models that are already here).",
    )
    add = parser.add_argument
    add(
        "prompt",
        nargs="?",
        help="text to continue; - or a pipe: read it from standard input, "
        "without its last line break",
    )
    add(
        "--n_tokens_to_generate",
        type=number(int, 0),
        default=40,
        metavar="N",
        help="at most so many tokens, about 3/4 of an English word each (40)",
    )
    add(
        "--model_size",
        default="124M",
        metavar="MODEL",
        help="124M, 355M, 774M or 1558M; a directory in models_dir, such as shakespeare; a path; "
        "or owner/name[@revision] on the Hugging Face hub (124M)",
    )
    add("--models_dir", default="models", metavar="DIR", help="where models are kept (models)")
    add(
        "--temperature",
        type=number(float, 0),
        metavar="T",
        help="0 takes the most likely token each time; 1 draws from the model's own distribution; "
        "between them it is bolder than 0 and safer than 1, often best at 0.7 to 0.9 (0; 1 with "
        "top_k, top_p or seed)",
    )
    add(
        "--top_k",
        type=number(int, 1),
        metavar="K",
        help="draw from the K most likely tokens only, such as 40",
    )
    add(
        "--top_p",
        type=number(float, 0, 1),
        metavar="P",
        help="draw from the fewest tokens that together have probability P, such as 0.9",
    )
    add("--seed", type=number(int, 0), help="the same seed draws the same text again")
    add("--perplexity", metavar="FILE", help="measure how well the model predicts a text, instead")
    add(
        "--stride",
        type=number(int, 1),
        metavar="N",
        help="with --perplexity: windows of the context's length start N tokens apart, and only "
        "what a window adds is counted; less is slower and gives more context (half a window)",
    )
    add(
        "--verbose",
        action="store_true",
        help="ids, times, speeds, tokens per pass and memory on standard error",
    )
    args = parser.parse_args(argv)
    if args.perplexity is not None and args.prompt is not None:
        parser.error("--perplexity measures a file and takes no prompt")
    return parser, args


def number(kind, low, high=math.inf):
    """Parser of an option's value: a number of this kind from low to high."""

    def parse(text):
        value = kind(text)
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not finite")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} is not {'at least' if high == math.inf else 'between'} {low}"
                + (f" and {high}" if high < math.inf else "")
            )
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # as argparse names it
    return parse


def say(text):
    print(text, file=sys.stderr, flush=True)


def open_streams():
    """UTF-8 and plain line breaks on every system; a stream that was closed leads nowhere."""
    for name in "stdin", "stdout", "stderr":
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")
    sys.stdout.reconfigure(newline="\n")


def drop_output():
    """After a broken pipe: what is left in the buffer must not break it again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prompts(args):
    """Yield the prompts: the argument, all of standard input, or the lines from a terminal."""
    if args.prompt not in (None, "-"):
        yield args.prompt
    elif args.prompt == "-" or not sys.stdin.isatty():
        try:
            yield re.sub(r"\r?\n\Z", "", sys.stdin.buffer.read().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8: {error}") from None
    else:
        while True:
            print(">> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if line.strip() in ("", "quit") and (not line or line.strip() == "quit"):
                if not line:
                    say("")
                return
            yield line.rstrip("\n")


def complete(prompt, encoder, hparams, params, args):
    """Print the continuation of a prompt; -> its ids, new ids, the time of each, of each pass."""
    sampling = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if "temperature" not in sampling:
        sampling["temperature"] = 0.0 if sampling == {} and args.seed is None else 1.0
    n_ctx, eos = hparams["n_ctx"], hparams["eos_token_id"]
    inputs = encoder.encode(prompt) or [eos]
    if inputs == [None]:
        raise ValueError("an empty prompt needs a model with <|endoftext|>: give a prompt")
    if len(inputs) > n_ctx:
        say(f"gpt2.py: the prompt has {len(inputs)} tokens; the model sees the last {n_ctx}")
        inputs = inputs[-n_ctx:]
    ids, times, passes = [], [time.perf_counter()], []

    def watched():
        for i in generate(
            inputs,
            params,
            hparams["n_head"],
            args.n_tokens_to_generate,
            hparams["layer_norm_epsilon"],
            eos,
            args.seed,
            passes=passes,
            **sampling,
        ):
            ids.append(i)
            times.append(time.perf_counter())
            if len(inputs) + len(ids) == n_ctx + 1:
                say("gpt2.py: the text is longer than the context: the window slides from here")
            yield i

    from encoder import decode_stream

    for text in decode_stream(encoder, watched()):
        print(text, end="", flush=True)
    print(flush=True)
    return inputs, ids, times, passes


def measure(path, encoder, hparams, params, stride):
    """Print how well the model predicts a text: the figures that papers give, by their method."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            ids = encoder.encode(file.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None
    if len(ids) < 2:
        raise ValueError(f"{path}: {len(ids)} tokens; there have to be two to predict one")
    from tqdm import tqdm

    n_ctx, nats, n_targets, n_bytes = hparams["n_ctx"], 0.0, 0, 0
    if n_ctx < 2:
        raise ValueError("a context of one token predicts nothing: perplexity needs two")
    todo = list(windows(len(ids), n_ctx, min(stride or n_ctx // 2, n_ctx)))
    for window in tqdm(todo, unit="window", disable=None):
        nats += window_nats(ids, window, params, hparams["n_head"], hparams["layer_norm_epsilon"])
        targets = ids[window[1] : window[2]]
        n_targets, n_bytes = n_targets + len(targets), n_bytes + len(encoder.decode_bytes(targets))
    if not math.isfinite(nats):
        raise ValueError("the model's logits are not finite: its weights are damaged")
    print(f"tokens          {n_targets}")
    print(f"nats per token  {nats / n_targets:.4f}")
    print(f"perplexity      {math.exp(min(nats / n_targets, 700)):.2f}")
    print(f"bits per byte   {nats / math.log(2) / n_bytes:.4f}")


def report(loaded, inputs, ids, times, passes):
    """What --verbose says: ids, and times in seconds, speeds in tokens a second."""
    say(f"prompt ids     {inputs}")
    say(f"generated ids  {ids}")
    say(f"loading        {loaded:.3f} s")
    if ids:
        prefill = times[1] - times[0]
        speed = f"{len(inputs) / prefill:.1f}/s"
        say(f"prompt         {len(inputs)} tokens in {prefill:.3f} s: {speed}")
    if len(ids) > 1:
        decoding = times[-1] - times[1]
        speed = f"{(len(ids) - 1) / decoding:.1f}/s"
        say(f"generation     {len(ids) - 1} more in {decoding:.3f} s: {speed}")
        say(f"               {len(ids) / len(passes):.2f} tokens per pass over the model")
    try:
        import resource  # not on Windows
    except ImportError:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say(f"peak memory    {peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB")


def run(parser, args):
    from utils import UnknownModel, load_encoder_hparams_and_params

    start = time.perf_counter()
    try:
        model = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    except UnknownModel as error:
        parser.error(str(error))
    loaded = time.perf_counter() - start
    if args.perplexity is not None:
        return measure(args.perplexity, *model, args.stride)
    for prompt in prompts(args):
        result = complete(prompt, *model, args)
        if args.verbose:
            report(loaded, *result)


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    try:
        open_streams()
        run(*parse_arguments(argv))
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        say("")
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        drop_output()
        return 0
    except (ValueError, OSError) as error:
        say(f"gpt2.py: error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
