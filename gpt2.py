"""GPT-2 as it is used, and the command that completes a prompt.

    python gpt2.py "ROMEO:" --model_size shakespeare

Lay it beside gpt2_pico.py: the functions of the first chapter have the same names and stand in the
same order. What is done otherwise, and why the numbers stay the same:

gpt2_pico.py                      here                               allowed because
for each token the whole text     only the new tokens go through,    the mask forbids a token to see
goes through the model            the keys and values of earlier     later ones: so what has been
                                  ones wait in a cache               computed for it never changes
all scores at once, [n, n]        the scores of 64 queries at a      the mask hides all keys after
                                  time, as far as the last one sees  that one
one token a pass                  several, where the text repeats    a guess only stays where the
                                  itself: a draft is checked         model's own choice is the same
a new array for each operation    in place, a piece at a time        the operations are the same
one head after another            a long prompt's on all cores       none needs another's numbers

Shapes: n tokens enter, after n_past that the cache holds already; e = n_embd numbers a token,
h = n_head heads of d = e / h numbers each; m queries at a time. Everything is float32.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
Lesson: steps 17 to 19.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex>=2024.11.6", "requests", "tqdm"]
# ///

if __name__ == "__main__":
    import startup

    startup.begin()

import math
import numbers
import os
import re
import sys
import time
from itertools import zip_longest

import numpy as np

import command
import startup
from completion import Completion, prompt_ids, report
from drafts import Drafts
from parallel import in_parallel, product

# ================================================================================================
# The model
# ================================================================================================

N_QUERIES = 64  # at a time, in attention: so their scores stay in the processor's cache
PIECE = 2**16  # numbers at a time, in gelu and layer_norm, for the same reason
SCORES = 2**18  # of a prompt, at least, before another core takes some of the heads
FUTURE = np.triu(np.full((N_QUERIES, N_QUERIES), -np.inf, np.float32), 1)  # -inf: not to be seen

# glibc gives the memory of a large array back to the system, and the next one pays a page fault
# for each 4 KB: 50,000 in a prompt of 1000 tokens. Not so once one of 31 MB was freed: this one.
np.empty(31 << 20, np.uint8)


def gelu(x):  # [n, 4e] -> [n, 4e]
    y = np.empty_like(x)
    for i in pieces(x):
        np.multiply(x[i], normal_cdf(x[i]), out=y[i])
    return y


def normal_cdf(x):  # [n, 4e] -> [n, 4e]
    """The share of a normal distribution that lies below x, nearly: Hendrycks and Gimpel 2016.

    0.5 (1 + tanh(x (c + 0.044715 c x^2))), where c = sqrt(2/pi); each step in place.
    """
    cdf = x * x
    cdf *= 0.044715 * math.sqrt(2 / math.pi)
    cdf += math.sqrt(2 / math.pi)
    cdf *= x
    np.tanh(cdf, out=cdf)
    cdf += 1
    cdf *= 0.5
    return cdf


def pieces(x):  # [n, ...] -> slices of n
    """Groups of rows, PIECE numbers in all. NumPy goes over the whole array for each operation: the
    eight of gelu are faster over a piece in the processor's cache than through all the memory."""
    n_rows = max(1, PIECE // x.shape[1])
    return [slice(i, i + n_rows) for i in range(0, len(x), n_rows)]


def softmax(x):  # [..., n] -> [..., n], each row sums to 1
    x = np.exp(x - x.max(-1, keepdims=True))
    x /= x.sum(-1, keepdims=True)
    return x


def layer_norm(x, g, b, eps):  # [n, e] -> [n, e]
    y = np.empty_like(x)
    for i in pieces(x):
        z = x[i] - mean(x[i])
        z /= np.sqrt(mean(z * z) + eps)
        z *= g
        np.add(z, b, out=y[i])
    return y


def mean(x):  # [n, e] -> [n, 1]
    """x.mean(-1, keepdims=True) in half the time for one row; a token in 124M takes 50 of them."""
    return np.add.reduce(x, -1, keepdims=True) / x.shape[-1]


def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]
    x = product(x, w)
    x += b
    return x


def attention(q, k, v):  # [h, n, d], [h, n_past + n, d] twice -> [h, n, d]
    """softmax(q k^T / sqrt(d)) v, where the last query stands at the last key.

    Softmax's division comes last: a row of y has d numbers, a row of scores one for each key.
    """
    n, d = q.shape[-2:]
    n_past = k.shape[-2] - n
    q = q * (1 / math.sqrt(d))  # before the product, for the same reason
    y = np.empty_like(q)

    def some_heads(part):
        for i in range(0, n, N_QUERIES):
            j = min(i + N_QUERIES, n)
            exps = exp_scores(q[part, ..., i:j, :], k[part, ..., : n_past + j, :])
            np.matmul(exps, v[part, ..., : n_past + j, :], out=y[part, ..., i:j, :])
            y[part, ..., i:j, :] /= exps.sum(-1, keepdims=True)  # exps: [heads, m, n_past + j]

    in_parallel(some_heads, len(q), least=SCORES // (n * k.shape[-2]) + 1)
    return y


def exp_scores(q, k):  # [h, m, d], [h, n_keys, d] -> [h, m, n_keys]
    """Softmax without its division, exp(score - maximum); 0 for a key that a query must not see.

    The m queries stand at the last m keys, so only the last m columns need the mask.
    """
    m = q.shape[-2]
    scores = q @ k.swapaxes(-1, -2)
    scores[..., -m:] += FUTURE[:m, :m]
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    return scores


def mha(x, c_attn, c_proj, n_head, cache, n_past):  # [n, e] -> [n, e]; cache [2, h, room, d]
    n, e = x.shape
    qkv = linear(x, **c_attn).reshape(n, 3, n_head, e // n_head)  # [n, 3e] -> [n, 3, h, d]
    qkv = qkv.transpose(1, 2, 0, 3)  # [3, h, n, d]
    cache[:, :, n_past : n_past + n] = qkv[1:]  # the new keys and values join the earlier ones
    k, v = cache[:, :, : n_past + n]  # two of [h, n_past + n, d]
    y = attention(qkv[0], k, v)  # [h, n, d]
    return linear(y.swapaxes(0, 1).reshape(n, e), **c_proj)


def ffn(x, c_fc, c_proj):  # [n, e] -> [n, 4e] -> [n, e]
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps, cache=None, n_past=0, n_logits=None):
    """Logits of the tokens that follow: [n] ids -> [n_logits or n, n_vocab].

    cache: of new_cache; holds n_past positions on entry and n_past + n on return. Without one the
    inputs are the whole text. n_logits: of the last positions only, as generating needs no others
    and the product with wte is the largest.
    """
    n, e = len(inputs), wte.shape[1]
    if cache is None:
        cache = new_cache(n, n_layer=len(blocks), n_head=n_head, n_embd=e)
    x = wte[inputs] + wpe[n_past : n_past + n]  # [n] -> [n, e]
    for block, kv in zip(blocks, cache):
        y = layer_norm(x, **block["ln_1"], eps=eps)
        x += mha(y, **block["attn"], n_head=n_head, cache=kv, n_past=n_past)
        x += ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"])
    if n_logits is not None:
        x = x[n - n_logits :]
    return product(layer_norm(x, **ln_f, eps=eps), wte.T)  # [n_logits, e] -> [n_logits, n_vocab]


def new_cache(n, n_layer, n_head, n_embd, **others):  # -> [n_layer, 2, h, n, d]
    """Room for the keys and values of n positions: new_cache(n, **hparams), of which it takes 3."""
    return np.empty((n_layer, 2, n_head, n, n_embd // n_head), np.float32)


# ================================================================================================
# Choosing a token
# ================================================================================================


def probabilities(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """The distribution that sampling draws from: [n_vocab] -> [n_vocab], float64. Step by step:

    softmax(logits / temperature), which below 1 favours the likely; the top_k likeliest tokens (and
    any equal to the last); of these the fewest that together have top_p (Holtzman et al. 2020); of
    these the ones at least min_p times as likely as the first (Nguyen et al. 2024).
    """
    with np.errstate(over="ignore"):  # a temperature near 0 may give -inf: a share of 0
        logits = (logits.astype(np.float64) - logits.max()) / temperature
    if top_k is not None and top_k < len(logits):
        logits[logits < np.partition(logits, -top_k)[-top_k]] = -np.inf
    p = softmax(logits)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # what the more likely tokens have together
        before[0] = -1  # the first one stays, also at top_p 0
        p[order[before >= top_p]] = 0
        p /= p.sum()
    if min_p > 0:
        p[p < min_p * p.max()] = 0
        p /= p.sum()
    return p


def penalize(logits, ids, penalty):  # [n_vocab], [n] -> [n_vocab]
    """Lower the logits of the tokens in a text, above 0 and below (Keskar et al. 2019)."""
    logits, found = logits.copy(), logits[ids]
    logits[ids] = np.where(found < 0, found * penalty, found / penalty)
    return logits


class Sampler:
    """How the next token is chosen: the most likely one, or one drawn at random.

    temperature: 0 is the most likely token. Left out it is 1 if top_k, top_p, min_p or a seed is
    given, for a draw, else 0. seed: the same one draws the same tokens again; left out, any.
    repetition_penalty: above 1 repeats less, and comes first, draw or not.
    """

    def __init__(
        self,
        temperature=None,
        top_k=None,
        top_p=None,
        min_p=None,
        repetition_penalty=None,
        seed=None,
    ):
        if temperature is None:
            temperature = 0.0 if (top_k, top_p, min_p, seed) == (None,) * 4 else 1.0
        self.temperature, self.penalty = temperature, repetition_penalty or 1.0
        self.cut = {"top_k": top_k, "top_p": 1.0 if top_p is None else top_p, "min_p": min_p or 0.0}
        check("temperature", temperature, 0)
        check("top_k", 1 if top_k is None else top_k, 1, kind=numbers.Integral)
        check("top_p", self.cut["top_p"], 0, 1)
        check("min_p", self.cut["min_p"], 0, 1)
        check("repetition_penalty", 1 if repetition_penalty is None else repetition_penalty, 1e-6)
        check("seed", seed or 0, 0, kind=numbers.Integral)
        self.seed = None
        if temperature > 0:
            self.seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
            self.rng = np.random.default_rng(self.seed)

    def choose(self, logits, ids):  # [n_vocab], the ids that the model sees -> id
        """A draw takes one random number a token, whether drafts are checked or not."""
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # argmax finds a NaN, too
            raise ValueError("the model's logits are not finite: its weights are damaged")
        if self.penalty != 1:
            logits = penalize(logits, ids, self.penalty)
        if self.temperature == 0:
            return best if self.penalty == 1 else int(logits.argmax())
        # Each token has its share of the way from 0 to 1; a random place on it lies in one.
        total = np.cumsum(probabilities(logits, self.temperature, **self.cut))
        return int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))


def check(name, value, low, high=math.inf, kind=numbers.Real):
    """ValueError unless the value is a number from low to high."""
    if isinstance(value, kind) and low <= value <= high and value != math.inf:
        return
    what = "a whole number" if kind is numbers.Integral else "a number"
    upper = "" if high == math.inf else f" to {high}"
    raise ValueError(f"{name} is {value!r}, and has to be {what} from {low}{upper}")


# ================================================================================================
# Generating
# ================================================================================================


def generate(inputs, params, hparams, n_tokens=None, drafts=None, **sampling):
    """Iterator of up to n_tokens ids that continue the inputs; ends before the end of text.

    inputs: ids; none: that of an end of text, as if one had just ended. n_tokens: None goes
    on for ever. drafts: Drafts(0) makes none. sampling: options of Sampler.
    """
    ids = checked(inputs, params, hparams)
    for id_, _ in choices(ids, params, hparams, n_tokens, Sampler(**sampling), drafts or Drafts()):
        if id_ not in hparams["eos_token_ids"]:
            yield id_


def choices(ids, params, hparams, n_tokens, sampler, drafts):
    """Iterator of (id, the logits [n_vocab] that it was chosen from); an end of text is the last.

    A draft changes the time and not the tokens: each is chosen from the model's own logits
    (Leviathan et al. 2023).
    """
    check("n_tokens", n_tokens or 0, 0, kind=numbers.Integral)
    ids, end = list(ids), math.inf if n_tokens is None else len(ids) + n_tokens
    window = Window(params, hparams, end)
    while len(ids) < end:
        n_before = len(ids)  # a pass gives a token more than it guessed right: hence - 1, twice
        guess = drafts.guess(ids, min(end - n_before - 1, window.room(ids)))
        for id_, logits in accept(window.logits(ids, guess), guess, ids, window.start, sampler):
            yield id_, logits
            if id_ in hparams["eos_token_ids"]:
                return
        drafts.judge(guess, n_right=len(ids) - n_before - 1)


def accept(logits, guess, ids, start, sampler):  # [1 + len(guess), n_vocab]
    """Choose what follows the ids and, as long as the guess was right, what follows that: yield
    (id, its logits), and append the id. start: the first of the ids that the model sees."""
    for row, guessed in zip_longest(logits, guess):
        ids.append(sampler.choose(row, ids[start:]))
        yield ids[-1], row.copy()  # a view would keep all rows through the next pass
        if ids[-1] != guessed:  # or there is no guess: zip_longest's None
            break


def checked(inputs, params, hparams):
    """-> the inputs as a list of ids that the model has, at least one."""
    if not isinstance(hparams, dict):
        raise ValueError(f"hparams is {hparams!r}, and has to be the dict that loading returns")
    ids = list(inputs) or list(hparams["eos_token_ids"][:1])
    if not ids:
        raise ValueError("there is nothing to continue, and no end of text to begin with")
    for id_ in ids:
        check("an id", id_, 0, len(params["wte"]) - 1, numbers.Integral)
    return ids


class Window:
    """The part of a growing text that the model sees, and its keys and values."""

    def __init__(self, params, hparams, n):  # n: how long the text may get
        self.n_ctx, eps = hparams["n_ctx"], hparams["layer_norm_epsilon"]
        self.model = {**params, "n_head": hparams["n_head"], "eps": eps}
        self.cache = new_cache(min(n, self.n_ctx), **hparams)
        self.start = None  # the cache holds nothing yet

    def room(self, ids):
        """How many more ids fit behind these."""
        return self.n_ctx - (len(ids) - window_start(len(ids), self.n_ctx))

    def logits(self, ids, guess=()):  # -> [1 + len(guess), n_vocab]
        """What follows the ids, and what would follow each id of a guess at their continuation.

        Since the last call the ids have grown by what was right of its guess, which the cache has,
        and by one id more: that is new, and goes where the wrong ones are.
        """
        start = window_start(len(ids), self.n_ctx)
        n_past = len(ids) - 1 - start if start == self.start else 0  # all anew after a jump
        self.start = start
        new = [*ids[start + n_past :], *guess]
        n_logits = 1 + len(guess)
        return gpt2(new, **self.model, cache=self.cache, n_past=n_past, n_logits=n_logits)


def window_start(n, n_ctx):
    """The first of n positions that the model still sees. Past n_ctx the window jumps by half of
    it: sliding by one would give every token another place, void the cache and cost a prompt's time
    for each. window_start(48, 48) is 0, of 49 to 72 it is 24, of 73 to 96 it is 48."""
    if n <= n_ctx:
        return 0
    half = max(1, n_ctx // 2)
    return math.ceil((n - n_ctx) / half) * half


# ================================================================================================
# The command line
# ================================================================================================


def parser():
    """The options; argparse says what is wrong with them and ends with 2."""
    options = command.new_parser(
        "gpt2.py",
        "Complete a prompt with GPT-2. The continuation goes to standard output as it is "
        "generated, everything else to standard error.",
        epilog="No prompt on a terminal opens a loop: text after >> is completed, Ctrl-C ends a "
        "completion, 'quit' or end of file leaves. Environment: HF_ENDPOINT and HF_TOKEN (the "
        "Hugging Face hub), GPT2_OPENAI_URL (OpenAI's store, where a released size is fetched if "
        "the hub fails), HF_HOME and HF_HUB_CACHE (models that are already here).",
    )
    add = options.add_argument
    add(
        "prompt",
        nargs="?",
        help="text to continue; - or a pipe: read it from standard input, without its last line "
        "break",
    )
    command.completion_options(options)
    add("--json", action="store_true", help="an object a line, with ids and log-probabilities")
    add("--verbose", action="store_true", help="tokens, seed, speeds, memory on standard error")
    return options


def work(args):
    """Load the model, and complete the prompt, or each line from a terminal."""
    args.sampling, start = command.sampling(args), time.perf_counter()
    model = command.load_and_warn(args)
    loaded = time.perf_counter() - start
    if args.prompt not in (None, "-"):
        complete(args.prompt, *model, args, loaded)
    elif args.prompt == "-" or not sys.stdin.isatty():
        complete(re.sub(r"\r?\n\Z", "", command.read_stdin()), *model, args, loaded)
    else:
        with startup.interruptible():
            for prompt in command.typed_lines():
                try:
                    complete(prompt, *model, args, loaded)
                except KeyboardInterrupt:
                    print(flush=True)
                except ValueError as error:
                    command.say(f"gpt2.py: error: {error}")


def complete(prompt, encoder, hparams, params, args, loaded):
    """Print what follows a prompt."""
    inputs, sampler = prompt_ids(prompt, encoder, hparams), Sampler(**args.sampling)
    if args.verbose:
        tokens = ", ".join(f"{encoder.decode([id_])!r} {id_}" for id_ in inputs)
        command.say(f"prompt tokens  {tokens}\nseed           {sampler.seed}")
    done = Completion(encoder, hparams["eos_token_ids"], args.stop, scored=args.json)
    n, drafts, times = args.n_tokens_to_generate, Drafts(), [time.perf_counter()]
    for id_, logits in choices(inputs, params, hparams, None if n < 0 else n, sampler, drafts):
        text = done.add(id_, logits)
        if not args.json:
            print(text, end="", flush=True)
        times.append(time.perf_counter())
        if done.ended != "length":
            break
        if len(inputs) + len(done.ids) == hparams["n_ctx"] + 1:
            command.say("the text is longer than the context: the window slides from here")
    seconds = round(time.perf_counter() - times[0], 3)
    if args.json:
        command.print_line(done.as_json(prompt=prompt, seed=sampler.seed, seconds=seconds))
    else:
        print(done.rest(), flush=True)
    if args.verbose:
        report(loaded, len(inputs), done.ids, times, drafts.n_passes)


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    return command.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
