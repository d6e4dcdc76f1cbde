"""A fast GPT-2, and the command that completes a prompt with it.

    python gpt2.py "ROMEO:" --model_size shakespeare

Read gpt2_pico.py first. The chapter "The model" below has the same functions in the same order, and
some helpers. It computes the same results, up to rounding, in a different way:

- Only new tokens go through the model. A cache holds the keys and values of earlier tokens. They
  never change, because the mask hides later tokens from earlier ones.
- attention computes all heads at once, as one array [h, n, d], and 64 queries at a time.
- Where a text repeats itself, the next tokens are drafted (guessed). One pass verifies several of
  them, and keeps those that the model would have chosen itself.
- Operations write into existing arrays, in pieces that fit the CPU's cache.

Shapes: n new tokens after n_past tokens in the cache, e = n_embd numbers per token, h = n_head
heads of d = e / h numbers. The model is float32. params holds its arrays, hparams the rest.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
Lesson: steps 17 to 19.
"""

import math
import numbers
import os
import sys
import time
from collections.abc import Iterable

if __name__ == "__main__":
    # NumPy multiplies matrices with OpenBLAS. Its idle threads spin for 2**26 cycles before they
    # sleep, on cores that our own threads need. This setting shortens that to 2**20 cycles. It must
    # be made here, because OpenBLAS reads it when NumPy is imported.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

import numpy as np

# product(x, w) is x @ w; in_parallel(f, n) is f(slice(0, n)); Drafts guesses the next tokens.
from fast import Drafts, in_parallel, product

# ==== The model =================================================================================

QUERY_BLOCK = 64  # attention takes this many queries at a time: their scores fit the CPU's cache
PIECE = 2**16  # gelu and layer_norm take this many numbers at a time, for the same reason
MIN_SCORES = 2**18  # a thread that computes fewer scores than this costs more than it saves
CAUSAL_MASK = np.triu(np.full((QUERY_BLOCK, QUERY_BLOCK), -np.inf, np.float32), 1)


def gelu(x):  # [n, 4e] -> [n, 4e]
    y = np.empty_like(x)
    for i in pieces(x):
        np.multiply(x[i], normal_cdf(x[i]), out=y[i])
    return y


def normal_cdf(x):  # [n, 4e] -> [n, 4e]
    """Return the probability that a standard normal variable is below x, approximately:
    0.5 (1 + tanh(c (x + 0.044715 x^3))) with c = sqrt(2 / pi) (Hendrycks and Gimpel 2016)."""
    cdf = x * x
    cdf *= 0.044715 * math.sqrt(2 / math.pi)
    cdf += math.sqrt(2 / math.pi)
    cdf *= x
    np.tanh(cdf, out=cdf)
    cdf += 1
    cdf *= 0.5
    return cdf


def erf(x):  # [n, m] -> [n, m]
    """Return the error function, within 1e-6: Abramowitz and Stegun 1964, formula 7.1.26."""
    size = np.minimum(np.abs(x), 6)  # from there on it is 1 in float32
    t = 1 / (1 + 0.3275911 * size)
    series = 1.061405429
    for coefficient in -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0:
        series = series * t + coefficient
    return np.copysign(1 - series * np.exp(-size * size), x)


ACTIVATIONS = {  # GPT-2 has gelu_new; other models of its architecture have another one
    "gelu_new": gelu,
    "gelu": lambda x: x * (0.5 + 0.5 * erf(x * math.sqrt(0.5))),  # without the approximation
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),  # x sigmoid(x), and nothing overflows
}


def pieces(x):  # [n, m] -> slices of range(n)
    """Return slices of a few rows, whose numbers stay in the CPU's cache between operations."""
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
    """Return x.mean(-1, keepdims=True), in half the time for a single row."""
    return np.add.reduce(x, -1, keepdims=True) / x.shape[-1]


def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]
    x = product(x, w)
    x += b
    return x


def attention(q, k, v):  # [h, n, d], twice [h, n_past + n, d] -> [h, n, d]
    """Return softmax(q k^T / sqrt(d) + mask) v for each head.

    The n queries belong to the last n keys. To save time, q is divided by sqrt(d) instead of the
    scores, and y by softmax's sum instead of the weights: those two arrays are smaller.
    """
    h, n, d = q.shape
    n_past = k.shape[1] - n
    q = q * (1 / math.sqrt(d))
    y = np.empty_like(q)

    def attend(heads):
        for i in range(0, n, QUERY_BLOCK):
            j = i + QUERY_BLOCK  # this may be more than n: a slice ends where its array ends
            exps = exp_scores(q[heads, i:j], k[heads, : n_past + j])  # [heads, j - i, n_past + j]
            np.matmul(exps, v[heads, : n_past + j], out=y[heads, i:j])
            y[heads, i:j] /= exps.sum(-1, keepdims=True)

    least = MIN_SCORES // (n * (n_past + n)) + 1  # this many heads are worth another thread
    in_parallel(attend, h, least)
    return y


def exp_scores(q, k):  # [h, m, d], [h, n_keys, d] -> [h, m, n_keys]
    """Return exp(scores - their maximum): softmax without its division. The m queries belong to the
    last m keys, so only those need the mask."""
    m = q.shape[1]
    scores = q @ k.swapaxes(1, 2)
    scores[..., -m:] += CAUSAL_MASK[:m, :m]
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    return scores


def mha(x, c_attn, c_proj, n_head, cache, n_past):  # [n, e] -> [n, e]; cache: [2, h, n_max, d]
    n, e = x.shape
    q, k, v = split_heads(linear(x, **c_attn), n_head)  # [n, 3e] -> three times [h, n, d]
    k, v = extend(cache, n_past, k, v)  # [h, n, d] -> [h, n_past + n, d]
    y = attention(q, k, v)  # [h, n, d]
    return linear(y.swapaxes(0, 1).reshape(n, e), **c_proj)  # [n, h, d] -> [n, e]


def split_heads(qkv, n_head):  # [n, 3e] -> [3, h, n, d]
    """Return the queries, keys and values of each head. In a row of qkv, they are side by side."""
    return qkv.reshape(len(qkv), 3, n_head, -1).transpose(1, 2, 0, 3)  # from [n, 3, h, d]


def extend(cache, n_past, k, v):  # [2, h, n_max, d], twice [h, n, d] -> twice [h, n_past + n, d]
    """Write new keys and values after the n_past earlier ones, and return all of them."""
    n = n_past + k.shape[1]
    cache[0, :, n_past:n] = k
    cache[1, :, n_past:n] = v
    return cache[:, :, :n]


def ffn(x, c_fc, c_proj, hparams):  # [n, e] -> [n, 4e] -> [n, e]
    activation = ACTIVATIONS[hparams.get("activation_function", "gelu_new")]
    return linear(activation(linear(x, **c_fc)), **c_proj)


def gpt2(
    inputs, wte, wpe, blocks, ln_f, hparams, lm_head=None, cache=None, n_past=0, n_logits=None
):
    """Return the logits of each next token: [n] ids -> [n_logits or n, n_vocab].

    lm_head: the matrix that gives the logits, if it is not wte.
    cache: made by new_cache; it holds n_past positions before the call and n_past + n after it.
    Without it, the inputs are the whole text. n_logits: return those of the last positions only.
    """
    n, n_head, eps = len(inputs), hparams["n_head"], hparams["layer_norm_epsilon"]
    if cache is None:
        cache = new_cache(n, hparams)
    x = wte[inputs] + wpe[n_past : n_past + n]  # [n] -> [n, e]
    for block, kv in zip(blocks, cache):
        y = layer_norm(x, **block["ln_1"], eps=eps)
        x += mha(y, **block["attn"], n_head=n_head, cache=kv, n_past=n_past)
        x += ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"], hparams=hparams)
    if n_logits is not None:
        x = x[n - n_logits :]
    return product(layer_norm(x, **ln_f, eps=eps), (wte if lm_head is None else lm_head).T)


def new_cache(n_max, hparams):  # -> [n_layer, 2, h, n_max, d]
    """Return an empty cache for the keys and values of n_max positions."""
    n_head = hparams["n_head"]
    d = hparams["n_embd"] // n_head
    return np.empty((hparams["n_layer"], 2, n_head, n_max, d), np.float32)


# ==== Choosing a token ==========================================================================


def probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Return the probabilities to sample from: [n_vocab] -> [n_vocab], float64.

    1. softmax(logits / temperature); a temperature below 1 favours likely tokens
    2. top_k: keep the k most likely tokens, and any that are as likely as the last of them
    3. top_p: keep the fewest tokens that together have probability p (Holtzman et al. 2020)
    4. min_p: keep the tokens at least p times as likely as the most likely (Nguyen et al. 2024)
    """
    with np.errstate(over="ignore"):  # near temperature 0 a quotient may be -inf: probability 0
        logits = (logits.astype(np.float64) - logits.max()) / temperature
    if top_k is not None and top_k < len(logits):
        smallest = np.partition(logits, -top_k)[-top_k]  # the top_k-th largest logit
        logits[logits < smallest] = -np.inf
    p = softmax(logits)
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, kind="stable")  # the most likely token first
        before = np.cumsum(p[order]) - p[order]  # probability of all more likely tokens together
        before[0] = -1  # the most likely token always stays, even at top_p 0
        p[order[before >= top_p]] = 0  # more likely tokens have already reached top_p
        p /= p.sum()
    if min_p is not None and min_p > 0:
        p[p < min_p * p.max()] = 0
        p /= p.sum()
    return p


def penalize(logits, ids, penalty):  # [n_vocab], [n] -> [n_vocab]
    """Return logits in which the tokens of a text are less likely (Keskar et al. 2019)."""
    penalized = logits.copy()
    # Dividing a negative logit would raise it, so multiply it.
    penalized[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)
    return penalized


def log_probabilities(logits, ids):  # [n, n_vocab], [n] -> [n]; overwrites the logits
    """Return log softmax(logits)[id], with one id for each row. log is the natural logarithm."""
    logits -= logits.max(-1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))


def log_probability(logits, id_):  # [n_vocab] -> a number
    """Return log softmax(logits)[id_], computed in float64."""
    return float(log_probabilities(logits[None].astype(np.float64), [id_])[0])


class Sampler:
    """Choose the next token: the most likely one, or one sampled at random.

    temperature: 0 always takes the most likely token. The default is 1 if top_k, top_p, min_p or
    seed is given, and 0 if not. seed: the same seed samples the same tokens; by default it is
    random. repetition_penalty: above 1, repetitions are less likely. ValueError if out of range.
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
            options = top_k, top_p, min_p, seed
            temperature = 0.0 if all(option is None for option in options) else 1.0
        check_number("temperature", temperature, 0, 1e6)
        check_number("top_k", top_k, 1, kind=numbers.Integral)
        check_number("top_p", top_p, 0, 1)
        check_number("min_p", min_p, 0, 1)
        check_number("repetition_penalty", repetition_penalty, 1e-6, 1e6)
        check_number("seed", seed, 0, kind=numbers.Integral)
        self.temperature = temperature
        self.options = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        self.penalty = 1.0 if repetition_penalty is None else repetition_penalty
        self.seed = None
        if temperature > 0:
            self.seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
            self.rng = np.random.default_rng(self.seed)

    def choose(self, logits, ids):  # [n_vocab], [n] ids that the model has seen -> id
        """Return the next token. Each sampled token takes exactly one random number, so that a seed
        gives the same text with drafts and without."""
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # argmax finds a NaN, too
            raise ValueError("the model's logits are not finite: its weights are damaged")
        if self.penalty != 1:
            logits = penalize(logits, ids, self.penalty)
            best = int(logits.argmax())
        if self.temperature == 0:
            return best
        # Lay the probabilities end to end and see where a random number between 0 and 1 falls.
        ends = np.cumsum(probabilities(logits, self.temperature, **self.options))
        return int(np.searchsorted(ends, self.rng.random() * ends[-1], side="right"))


def check_number(name, value, low, high=math.inf, kind=numbers.Real, optional=True):
    """Raise ValueError unless the value is a number from low to high, or None if optional."""
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if (is_number and low <= value <= high) or (value is None and optional):
        return
    what = "a whole number" if kind is numbers.Integral else "a number"
    limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    raise ValueError(f"{name} is {value!r}: it must be {what}, {limits}")


# ==== Generating ================================================================================


def generate(inputs, params, hparams, n_tokens=None, drafts=None, **sampling):
    """Return an iterator over the ids that continue the inputs, until n_tokens or an end of text.

    inputs: token ids; if empty, start from the end-of-text token. n_tokens: None means no limit.
    drafts: Drafts(0) makes none. sampling: options of Sampler. ValueError if an argument is wrong.
    """
    check_model(params, hparams)
    ids = check_inputs(inputs, params, hparams)
    check_number("n_tokens", n_tokens, 0, kind=numbers.Integral)
    sampler = Sampler(**sampling)
    steps = continuation(ids, params, hparams, n_tokens, sampler, drafts or Drafts())
    return (id_ for id_, _ in steps if id_ not in hparams["eos_token_ids"])


def continuation(ids, params, hparams, n_tokens, sampler, drafts):
    """Yield (id, the logits [n_vocab] it was chosen from). An end-of-text token is the last one.

    The model sees a window of the ids. If the window grows beyond the context, its start moves by
    half a context. If it moved by only one token, every new token would change the positions of all
    others, and the whole cache would have to be computed again.
    """
    n_ctx, ids = hparams["n_ctx"], list(ids)
    end = math.inf if n_tokens is None else len(ids) + n_tokens
    cache = new_cache(min(end, n_ctx), hparams)
    start, n_past = 0, 0  # where the window starts; how many of its positions are in the cache
    while len(ids) < end:
        if len(ids) - start > n_ctx:
            start, n_past = next_window(start, len(ids), n_ctx), 0
        window = ids[start:]
        room = min(n_ctx - len(window), end - len(ids) - 1)  # a pass yields one id more
        draft = drafts.draft(ids, room)
        new = window[n_past:] + draft
        logits = gpt2(
            new, **params, hparams=hparams, cache=cache, n_past=n_past, n_logits=1 + len(draft)
        )
        for id_, row in verify(draft, logits, window, sampler):
            ids.append(id_)
            yield id_, row
            if id_ in hparams["eos_token_ids"]:
                return
        del logits  # so that the next pass can reuse the memory
        # The cache now holds every id except the last one, which has not been through the model.
        # Rejected ids of the draft may follow in the cache; the next pass overwrites those.
        n_past = len(ids) - start - 1
        drafts.update(draft, n_accepted=n_past - len(window))


def verify(draft, logits, window, sampler):  # [m] ids, [m + 1, n_vocab]
    """Yield (id, its logits) for each id that follows a window of ids.

    The sampler chooses each id. It stops when its choice differs from the draft, because the later
    logits are those after the draft's id. So drafts change the time and not the text (Leviathan et
    al. 2023), except that a pass over several rows rounds differently, which may decide a near tie.
    """
    ids = list(window)
    for i, row in enumerate(logits):
        ids.append(sampler.choose(row, ids))
        yield ids[-1], row.copy()  # a view would keep all rows in memory
        if i == len(draft) or ids[-1] != draft[i]:
            return


def next_window(start, n, n_ctx):
    """Return the start of the window when there are n ids: next_window(0, 49, 48) is 24."""
    while n - start > n_ctx:
        start += max(1, n_ctx // 2)
    return start


def check_model(params, hparams):
    """Raise ValueError unless these are a model's params and hparams."""
    for name, value, key in ("params", params, "wte"), ("hparams", hparams, "n_ctx"):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{name} must be the dict with {key!r} that loading a model returns")


def check_inputs(inputs, params, hparams):
    """Return the inputs as a list of at least one id. ValueError if the model lacks one of them."""
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise ValueError(f"a prompt is {inputs!r}: it must be a list of ids")
    ids = list(inputs) or list(hparams["eos_token_ids"][:1])
    if not ids:
        raise ValueError("the prompt is empty, and the model has no end-of-text token")
    last = len(params["wte"]) - 1
    for id_ in ids:
        check_number("an id", id_, 0, last, kind=numbers.Integral, optional=False)
    return ids


# ==== The command ===============================================================================


def parser():
    """Return the parser of the command's options."""
    import cli

    parser = cli.new_parser(
        "gpt2.py",
        "Complete a prompt with GPT-2. The continuation is printed as it is generated.",
        epilog="On a terminal and without a prompt, each line that you type after >> is completed. "
        "Ctrl-C ends a completion; 'quit' or Ctrl-D ends the program. Environment variables: "
        "HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE (Hugging Face), GPT2_OPENAI_URL (OpenAI).",
    )
    add = parser.add_argument
    prompt_help = "text to continue; -, or a pipe: standard input without its last line break"
    add("prompt", nargs="?", help=prompt_help)
    cli.add_completion_options(parser)
    add("--chat", action="store_true", help="keep the conversation after >>; /reset forgets it")
    add("--json", action="store_true", help="print a JSON object, with ids and log-probabilities")
    add("--verbose", action="store_true", help="also show tokens, seed, speeds and memory used")
    return parser


def work(args):
    """Load the model, and complete the prompt or each line that is typed."""
    import cli
    from utils import load_encoder_hparams_and_params

    args.sampling = cli.sampling_options(args)
    if args.chat and args.prompt is not None:
        raise cli.UsageError("--chat reads what you type after >>: leave out the prompt")
    start = time.perf_counter()
    model = load_encoder_hparams_and_params(args.model_size, args.models_dir, args.tokenizer)
    args.loading = time.perf_counter() - start
    cli.warn_of_training(args.model_size, model[1])
    chat = cli.Conversation(model[1], args.n_tokens_to_generate) if args.chat else None

    def answer(prompt):
        ids = cli.prompt_ids(prompt, *model[:2], args.special_tokens)
        if chat:
            chat.add(ids, complete(prompt, chat.inputs(ids), *model, args))
        else:
            complete(prompt, ids, *model, args)

    if chat or (args.prompt is None and sys.stdin.isatty()):
        cli.converse(answer, chat)
    else:
        answer(cli.read_prompt("-" if args.prompt is None else args.prompt))


def complete(prompt, inputs, encoder, hparams, params, args):
    """Print the continuation of a prompt, whose ids are the inputs. Return its ids."""
    import cli

    sampler, drafts = Sampler(**args.sampling), Drafts()
    if args.verbose:
        cli.report_prompt(inputs, encoder, sampler.seed)
    completion = cli.Completion(encoder, hparams["eos_token_ids"], args.stop)
    n_tokens = None if args.n_tokens_to_generate < 0 else args.n_tokens_to_generate
    times = [time.perf_counter()]
    for id_, logits in continuation(inputs, params, hparams, n_tokens, sampler, drafts):
        if args.json:
            completion.add(id_, log_probability(logits, id_))
        else:
            print(cli.visible(completion.add(id_)), end="", flush=True)
        times.append(time.perf_counter())
        if completion.ended != "length":  # a stop or an end of text has ended it
            break
        if len(inputs) + len(completion.ids) == hparams["n_ctx"] + 1:
            cli.say("the text is longer than the context: from here, the model sees its last part")
    if args.json:
        seconds = round(time.perf_counter() - times[0], 3)
        cli.print_line(completion.as_json(prompt=prompt, seed=sampler.seed, seconds=seconds))
    else:
        print(cli.visible(completion.rest()), flush=True)
    if args.verbose:
        cli.report(args.loading, len(inputs), completion.ids, times, drafts.n_passes)
    return completion.ids


def main(argv=None):
    """Run the command and return its exit status."""
    import cli

    return cli.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
