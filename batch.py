"""Many texts in one pass, and the command that completes many prompts.

    python batch.py prompts.txt --model_size shakespeare

A pass over the model reads all its weights from memory, and one row of one text waits for that, not
for the arithmetic: sixteen rows cost two or three times as much as one. So the rows of all texts go
through embedding, layer norm, linear and MLP together. Only attention tells the texts apart: each
has its own cache, its own length and its own window. Nothing is padded, and when a text ends, the
next one takes its place.

A text's tokens are those that gpt2.py gives it alone, whatever its neighbours: each has its own
random numbers. (A product of other rows rounds otherwise in the last digit, so two choices that are
as good as equal may change places: docs/speed.md counts how often.)
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex>=2024.11.6", "requests", "tqdm"]
# ///

if __name__ == "__main__":
    import startup

    startup.begin()

import json
import math
import numbers
import queue
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import command
from completion import Completion, prompt_ids
from drafts import Drafts
from gpt2 import (
    Sampler,
    accept,
    attention,
    check,
    checked,
    ffn,
    layer_norm,
    linear,
    new_cache,
    product,
    softmax,
    window_start,
)

BATCH_SIZE = 64  # texts at once: a third faster than 32, for 140 MB more
DRAFT_ROWS = 32  # of a pass, shared by the texts that are being continued
PROMPT_ROWS = 256  # of a pass, so that a long prompt does not stop the other texts
CACHE_BYTES = 2**30  # of all caches together, unless one alone needs more
MOST_WAITING = 1024  # lines that were read, and lines that wait for an earlier one

# ================================================================================================
# The model, for many texts
# ================================================================================================


class Text:
    """A text on its way: its ids, and the keys and values of those that the model has seen.

    over: may be set by whoever wants no more of it. name: what its owner knows it by.
    """

    def __init__(self, ids, n_tokens, sampler, hparams, name):
        self.name = name
        self.ids, self.sampler, self.n_ctx = list(ids), sampler, hparams["n_ctx"]
        self.end = math.inf if n_tokens is None else len(ids) + n_tokens
        self.over = len(ids) == self.end
        self.start, self.n_past, self.cache = 0, 0, None  # the window's first id; ids in the cache
        self.drafts, self.guess, self.new, self.n_logits = Drafts(), [], [], 0

    def take_rows(self, n_prompt, n_draft):
        """Decide which ids go through the model next: new, the last n_logits of them to choose
        from; -> how many are of a prompt, n_prompt at most."""
        start = window_start(len(self.ids), self.n_ctx)
        if start != self.start:
            self.start, self.n_past = start, 0
        self.new, self.guess, self.n_logits = self.ids[start + self.n_past :], [], 1
        if len(self.new) > 1 and len(self.new) > n_prompt:
            self.new, self.n_logits = self.new[:n_prompt], 0
        elif len(self.new) == 1:
            seen = len(self.ids) - start
            room = min(self.end - len(self.ids) - 1, self.n_ctx - seen, n_draft - 1)
            self.guess = self.drafts.guess(self.ids, room)
            self.new, self.n_logits = self.new + self.guess, 1 + len(self.guess)
            return 0
        return len(self.new)

    def choose(self, logits):  # [n_logits, n_vocab]
        """Yield (id, its logits) of what follows, as gpt2.choices does."""
        n_before = len(self.ids)
        if self.n_logits:
            yield from accept(logits, self.guess, self.ids, self.start, self.sampler)
            self.drafts.judge(self.guess, len(self.ids) - n_before - 1)
        self.n_past = min(self.n_past + len(self.new), len(self.ids) - 1 - self.start)
        self.over = self.over or len(self.ids) >= self.end


def gpt2_many(texts, wte, wpe, blocks, ln_f, n_head, eps):
    """Logits of what follows the new ids of each text: -> [sum of n_logits, n_vocab]."""
    ends = np.cumsum([len(text.new) for text in texts])
    rows = [slice(end - len(text.new), end) for text, end in zip(texts, ends)]
    ids = np.concatenate([text.new for text in texts])
    positions = np.concatenate([text.n_past + np.arange(len(text.new)) for text in texts])
    x = wte[ids] + wpe[positions]  # [n] -> [n, e], all texts one below the other
    for i, block in enumerate(blocks):
        y = layer_norm(x, **block["ln_1"], eps=eps)
        x += mha_many(y, **block["attn"], n_head=n_head, layer=i, texts=texts, rows=rows)
        x += ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"])
    last = np.concatenate([np.arange(end - t.n_logits, end) for t, end in zip(texts, ends)])
    return product(layer_norm(x[last], **ln_f, eps=eps), wte.T)


def mha_many(x, c_attn, c_proj, n_head, layer, texts, rows):  # [n, e] -> [n, e]
    n, e = x.shape
    qkv = linear(x, **c_attn).reshape(n, 3, n_head, e // n_head)  # [n, 3e] -> [n, 3, h, d]
    y = np.empty_like(x)
    single = []  # row, keys, values of the texts that have one new id
    for text, mine in zip(texts, rows):
        m = len(text.new)
        its = qkv[mine].transpose(1, 2, 0, 3)  # [3, h, m, d]
        cache = text.cache[layer]  # [2, h, room, d]
        cache[:, :, text.n_past : text.n_past + m] = its[1:]
        k, v = cache[:, :, : text.n_past + m]
        if m == 1:
            single.append((mine.start, k, v))
        else:
            y[mine] = attention(its[0], k, v).swapaxes(0, 1).reshape(m, e)
    if single:
        places, keys, values = map(list, zip(*single))
        y[places] = attention_many(qkv[places, 0], keys, values).reshape(-1, e)
    return linear(y, **c_proj)


def attention_many(q, keys, values):  # [t, h, d], t of [h, n_past + 1, d] twice -> [t, h, d]
    """attention of one row for each of t texts. A softmax for all of them takes a quarter off the
    time: so short rows are filled up with -inf, whose weight is 0."""
    q, y = q[:, :, None] * (1 / math.sqrt(q.shape[-1])), np.empty_like(q)  # q: [t, h, 1, d]
    scores = np.full((*q.shape[:3], max(k.shape[1] for k in keys)), -np.inf, np.float32)
    for i, k in enumerate(keys):
        np.matmul(q[i], k.swapaxes(1, 2), out=scores[i, ..., : k.shape[1]])
    weights = softmax(scores)
    for i, v in enumerate(values):
        np.matmul(weights[i, ..., : v.shape[1]], v, out=y[i, :, None])
    return y


def choices_many(next_text, params, hparams, batch_size=BATCH_SIZE):
    """Iterator of (text, id, the logits that it was chosen from), in whatever order they come.

    The last one of a text has None in place of an id. An end of text is an id, and ends the text.
    next_text(idle): a Text, or None where there is none yet; idle: there is nothing else to do, so
    None means that there will be none.
    """
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    texts, text = [], None
    while True:
        while len(texts) < batch_size and (text := text or next_text(not texts)):
            room = min(text.end, text.n_ctx)
            n_bytes = 8 * room * hparams["n_layer"] * hparams["n_embd"]  # two float32 each
            if texts and n_bytes + sum(other.cache.nbytes for other in texts) > CACHE_BYTES:
                break
            text.cache = new_cache(room, **hparams)
            texts.append(text)
            text = None  # the next one, then
        if not texts:
            return
        yield from one_pass([text for text in texts if not text.over], model, hparams)
        yield from ((text, None, None) for text in texts if text.over)
        texts = [text for text in texts if not text.over]


def one_pass(texts, model, hparams):
    """All texts a step further: yield (text, id, logits)."""
    n_prompt, n_draft = PROMPT_ROWS, max(1, DRAFT_ROWS // max(1, len(texts)))
    for text in texts:
        n_prompt -= text.take_rows(n_prompt, n_draft)
    texts = [text for text in texts if text.new]
    logits = gpt2_many(texts, **model) if texts else []
    for text in texts:
        mine, logits = logits[: text.n_logits], logits[text.n_logits :]
        for id_, row in text.choose(mine):
            yield text, id_, row
            if text.over or id_ in hparams["eos_token_ids"]:
                text.over = True
                break


def generate_many(prompts, params, hparams, n_tokens=None, batch_size=BATCH_SIZE, **sampling):
    """Iterator of (number of the prompt, id): each prompt gets the ids that generate gives it."""
    numbered = enumerate(prompts)

    def next_text(idle):
        for number, ids in numbered:
            ids = checked(ids, params, hparams)
            return Text(ids, n_tokens, Sampler(**sampling), hparams, number)

    for text, id_, _ in choices_many(next_text, params, hparams, batch_size):
        if id_ is not None and id_ not in hparams["eos_token_ids"]:
            yield text.name, id_


# ================================================================================================
# The command line
# ================================================================================================


class Job(NamedTuple):
    """A completion that was asked for. about: what its object begins with."""

    number: int
    about: dict
    completion: Completion
    start: float


class Jobs:
    """From lines of prompts to Texts, and from what becomes of them to lines, in the same order."""

    def __init__(self, lines, args, encoder, hparams):
        self.lines, self.args, self.encoder, self.hparams = lines, args, encoder, hparams
        self.as_json, self.waiting = None, []  # Texts of the line that was read last
        self.n_jobs = self.n_printed = self.n_bad = 0
        self.done = {}  # lines to be printed, by the number of the job

    def next_text(self, idle):
        """As choices_many wants it."""
        while not self.waiting:
            if not idle and self.n_jobs - self.n_printed > MOST_WAITING:
                return None
            try:
                number, line = self.lines.get(block=idle)
            except queue.Empty:
                return None
            if isinstance(line, OSError):
                raise line
            if line is None:  # the end
                self.lines.put((number, line))  # there may be another question
                return None
            self.open(number, line)
        return self.waiting.pop(0)

    def open(self, number, line):
        """Make the Texts of a line, or its object with an error."""
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            prompt, n_tokens, seed = self.parse(text)
            ids = prompt_ids(prompt, self.encoder, self.hparams, f"line {number}")
        except ValueError as error:  # so is what is not UTF-8, or not JSON
            self.n_bad += 1
            said = {"line": number, "error": str(error)}
            return self.finish(self.next_number(), json.dumps(said, ensure_ascii=False))
        for sample in range(self.args.n_samples):
            sampler = Sampler(**{**self.args.sampling, "seed": seed})
            seed = sampler.seed  # where none was given, the samples of a prompt share the first's
            if sample:
                sequence = np.random.SeedSequence(seed, spawn_key=(sample,))
                sampler.rng = np.random.default_rng(sequence)
            about = {"line": number, "prompt": prompt, "sample": sample, "seed": seed}
            ends, stops = self.hparams["eos_token_ids"], self.args.stop
            completion = Completion(self.encoder, ends, stops, scored=True)
            job = Job(self.next_number(), about, completion, time.perf_counter())
            n = None if n_tokens < 0 else n_tokens
            self.waiting.append(Text(ids, n, sampler, self.hparams, job))

    def parse(self, line):
        """-> prompt, number of tokens, seed; ValueError if the line is no prompt."""
        line = line.removesuffix("\n").removesuffix("\r")
        if self.as_json is None:  # the first line decides
            try:
                self.as_json = isinstance(json.loads(line)["prompt"], str)
            except (ValueError, TypeError, LookupError):
                self.as_json = False
        told = json.loads(line) if self.as_json else {"prompt": line}
        if not isinstance(told, dict) or not isinstance(told.get("prompt"), str):
            raise ValueError('no object with a text "prompt"')
        told = {"n_tokens": self.args.n_tokens_to_generate, "seed": self.args.seed, **told}
        check("n_tokens", told["n_tokens"], -1, kind=numbers.Integral)
        check("seed", told["seed"] or 0, 0, kind=numbers.Integral)
        return told["prompt"], told["n_tokens"], told["seed"]

    def next_number(self):
        self.n_jobs += 1
        return self.n_jobs - 1

    def add(self, text, id_, logits):
        """What choices_many says of a text."""
        job = text.name
        if id_ is not None:
            job.completion.add(id_, logits)
            text.over = job.completion.ended != "length"
        else:
            seconds = round(time.perf_counter() - job.start, 3)
            self.finish(job.number, job.completion.as_json(**job.about, seconds=seconds))

    def finish(self, number, line):
        """Print the line, and those that waited for it; or let it wait for those before it."""
        self.done[number] = line
        while self.n_printed in self.done:
            command.print_line(self.done.pop(self.n_printed))
            self.n_printed += 1


def read_lines(path):
    """-> a queue of (number, line in bytes), and of (0, None) at the end, or (0, an OSError).

    A thread reads, so that what is there can be completed while the rest is waited for.
    """
    lines, file = queue.Queue(MOST_WAITING), command.open_bytes(path)

    def read():
        try:
            for number_and_line in enumerate(file, 1):
                lines.put(number_and_line)
            lines.put((0, None))
        except OSError as error:
            lines.put((0, error))

    threading.Thread(target=read, daemon=True).start()
    return lines


def parser():
    options = command.new_parser(
        "batch.py",
        "Complete many prompts. Standard output gets an object in a line for each, in their order.",
    )
    add, whole = options.add_argument, command.number(int, 1)
    add(
        "prompts",
        help='a file with a prompt a line, or JSON lines with a "prompt" and, if they are there, '
        '"n_tokens" and "seed"; - reads standard input, line by line as they come',
    )
    add(
        "--n_samples",
        type=whole,
        default=1,
        metavar="N",
        help="continuations of each prompt, drawn one by one; above 1 the temperature is 1 unless "
        "given (1)",
    )
    add(
        "--batch_size",
        type=whole,
        default=BATCH_SIZE,
        metavar="N",
        help=f"texts in a pass over the model; changes the time and not the texts ({BATCH_SIZE})",
    )
    command.completion_options(options)
    return options


def work(args):
    """Load the model, and complete every prompt."""
    args.sampling = command.sampling(args)
    if args.n_samples > 1 and args.temperature == 0:
        raise command.WrongUsage("--n_samples are drawn, and --temperature 0 draws nothing")
    if args.n_samples > 1 and args.temperature is None:
        args.sampling["temperature"] = 1.0
    lines = read_lines(args.prompts)
    encoder, hparams, params = command.load_and_warn(args)
    jobs = Jobs(lines, args, encoder, hparams)
    with tqdm(unit="prompt", disable=None) as bar:
        for text, id_, logits in choices_many(jobs.next_text, params, hparams, args.batch_size):
            jobs.add(text, id_, logits)
            bar.update(jobs.n_printed // args.n_samples - bar.n)
    if jobs.n_bad:
        raise ValueError(f'{jobs.n_bad} lines are no prompts: their objects say "error"')


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    return command.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
