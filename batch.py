"""Many texts in one pass over the model, and the command that completes many prompts.

    python batch.py prompts.txt --model_size shakespeare

A pass over the model reads all its weights from memory. With a single row that takes longer than
the arithmetic, so sixteen rows take only two or three times as long as one. Therefore the rows of
all texts go through the embedding, the layer norms, the linear layers and the MLPs together. Only
attention treats each text by itself: each has its own cache, length and window. No row is wasted on
padding, and when a text ends, the next one takes its place.

Each text has its own random generator, and gets the tokens that gpt2.py would give it alone. Rare
exceptions are nearly tied tokens: a matrix product with more rows may round the last digit
differently, so the other token may be chosen. docs/speed.md says how often.
"""

import json
import math
import numbers
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # see gpt2.py

import numpy as np
from tqdm import tqdm

import cli
import gpt2
from fast import Drafts, product
from model_files.files import read_json
from utils import load_encoder_hparams_and_params as load

BATCH_SIZE = 64  # texts per pass; more are faster, but each needs memory for its cache
DRAFT_ROWS = 32  # rows per pass that the growing texts share: one each, and the rest for drafts
PROMPT_ROWS = 256  # rows per pass for prompts, so that a long prompt does not hold up other texts
CACHE_BYTES = 2**30  # limit for all caches together; a single text may need more
MAX_WAITING = 1024  # limit for lines read ahead, and for output that waits for an earlier line
MAX_LINE = 16 << 20  # bytes; a longer line is an error
LONG_LINE = 1 << 16  # bytes; a longer line waits until all lines before it have been taken
MAX_BYTES = 64 << 20  # bytes; while lines in progress have more, no other line is started
# The keys of a JSON line. Those after id override the options of the command.
KEYS = "prompt id n_tokens stop temperature top_k top_p min_p repetition_penalty seed".split()
# What tqdm shows on a terminal while the prompts are completed, with and without a known total.
BAR = "{percentage:3.0f}%|{bar}| {desc}, tokens: {n:,} at {rate_noinv_fmt} [{elapsed}<{remaining}]"
COUNTS = "{desc}, tokens: {n:,} at {rate_noinv_fmt} [{elapsed}]"

# ==== The model, for many texts =================================================================


class Text:
    """A text that grows: what gpt2.continuation keeps in local variables.

    name            the caller's identifier
    ids, end        the ids so far; the number of ids at which the text ends
    over            set it to True to end the text
    start, n_past   where the window that the model sees starts; how many of its ids are cached
    new             the ids that go through the model next
    n_logits        how many of them, counted from the end, need logits; 0 until the prompt ends
    draft           those of the new ids that are drafted and have to be verified
    """

    def __init__(self, ids, n_tokens, sampler, hparams, name):
        self.name = name
        self.ids = list(ids)
        self.end = math.inf if n_tokens is None else len(ids) + n_tokens
        self.over = len(self.ids) == self.end
        self.sampler, self.drafts = sampler, Drafts()
        self.n_ctx = hparams["n_ctx"]
        self.cache = None  # gets its memory when the text's turn comes
        self.start, self.n_past = 0, 0
        self.new, self.draft, self.n_logits = [], [], 0

    def choose_rows(self, n_prompt, n_draft):
        """Choose the ids that go through the model next; return how many belong to a prompt.

        n_prompt: rows of the pass that are left for prompts; n_draft: rows for each growing text.
        """
        if len(self.ids) - self.start > self.n_ctx:
            self.start = gpt2.next_window(self.start, len(self.ids), self.n_ctx)
            self.n_past = 0
        window = self.ids[self.start :]
        self.new, self.draft = window[self.n_past :], []
        if len(self.new) == 1:  # The text is growing: only its last id is not cached yet.
            room = min(self.n_ctx - len(window), self.end - len(self.ids) - 1, n_draft - 1)
            self.draft = self.drafts.draft(self.ids, room)
            self.new += self.draft
            self.n_logits = 1 + len(self.draft)
            return 0
        self.n_logits = 1 if len(self.new) <= n_prompt else 0  # 1 if this pass ends the prompt
        self.new = self.new[:n_prompt]
        return len(self.new)

    def choose_ids(self, logits):  # [n_logits, n_vocab]
        """Append the ids that follow, and yield (id, the logits from which it was chosen)."""
        if self.n_logits == 0:  # the prompt goes on
            self.n_past += len(self.new)
            return
        window = self.ids[self.start :]
        for id_, row in gpt2.verify(self.draft, logits, window, self.sampler):
            self.ids.append(id_)
            yield id_, row
        self.n_past = len(self.ids) - self.start - 1
        self.drafts.update(self.draft, n_accepted=self.n_past - len(window))
        self.over = self.over or len(self.ids) == self.end


def gpt2_many(texts, wte, wpe, blocks, ln_f, hparams, lm_head=None):  # -> [n_logits, n_vocab]
    """Run gpt2.gpt2 on the new ids of all texts; return the logits of each one's last n_logits."""
    n_head, eps = hparams["n_head"], hparams["layer_norm_epsilon"]
    ends = np.cumsum([len(text.new) for text in texts])
    rows = [slice(end - len(text.new), end) for text, end in zip(texts, ends)]
    ids = np.concatenate([text.new for text in texts])
    positions = np.concatenate([text.n_past + np.arange(len(text.new)) for text in texts])
    x = wte[ids] + wpe[positions]  # [n] -> [n, e], one text after the other
    for i, block in enumerate(blocks):
        y = gpt2.layer_norm(x, **block["ln_1"], eps=eps)
        x += mha_many(y, **block["attn"], n_head=n_head, layer=i, texts=texts, rows=rows)
        x += gpt2.ffn(gpt2.layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"], hparams=hparams)
    last = np.concatenate([np.arange(end - text.n_logits, end) for text, end in zip(texts, ends)])
    x = gpt2.layer_norm(x[last], **ln_f, eps=eps)
    return product(x, (wte if lm_head is None else lm_head).T)


def mha_many(x, c_attn, c_proj, n_head, layer, texts, rows):  # [n, e] -> [n, e]
    """Apply gpt2.mha to the rows of each text. rows: the slice of x for each text."""
    qkv = gpt2.linear(x, **c_attn)  # [n, 3e]
    y = np.empty_like(x)
    single_rows, queries, keys, values = [], [], [], []  # for texts with a single new id
    for text, part in zip(texts, rows):
        q, k, v = gpt2.split_heads(qkv[part], n_head)  # three times [h, m, d]
        k, v = gpt2.extend(text.cache[layer], text.n_past, k, v)
        if len(text.new) == 1:
            single_rows.append(part.start)
            queries.append(q)
            keys.append(k)
            values.append(v)
        else:
            y[part] = gpt2.attention(q, k, v).swapaxes(0, 1).reshape(len(text.new), -1)
    if single_rows:
        y[single_rows] = attention_many(np.stack(queries), keys, values).reshape(-1, x.shape[1])
    return gpt2.linear(y, **c_proj)


def attention_many(q, keys, values):  # -> [t, h, 1, d]
    """Apply gpt2.attention to a single row of each of t texts.

    q: [t, h, 1, d]; keys, values: lists of t arrays [h, n_past + 1, d].

    One softmax for all texts is faster than one for each. It needs rows of equal length, so shorter
    rows of scores are padded with -inf, which softmax turns into 0.
    """
    q = q * (1 / math.sqrt(q.shape[-1]))
    n_keys = max(k.shape[1] for k in keys)
    scores = np.full((*q.shape[:3], n_keys), -np.inf, np.float32)  # [t, h, 1, n_keys]
    for i, k in enumerate(keys):
        np.matmul(q[i], k.swapaxes(1, 2), out=scores[i, ..., : k.shape[1]])
    p = gpt2.softmax(scores)
    y = np.empty_like(q)
    for i, v in enumerate(values):
        np.matmul(p[i, ..., : v.shape[1]], v, out=y[i])
    return y


def continuations(next_text, params, hparams, batch_size):
    """Yield (text, id, the logits [n_vocab] from which it was chosen), in the order of the passes.

    After a text's last id, (text, None, None) follows. An end-of-text token ends a text.
    next_text(wait) returns the next Text, or None if none is ready; if wait is true, it waits for
    one, and None means that there are no more.
    """
    texts, next_one = [], None
    while True:
        while len(texts) < batch_size:
            if next_one is None:
                next_one = next_text(wait=not texts)
            if next_one is None or not fits_in_memory(next_one, texts, hparams):
                break
            next_one.cache = gpt2.new_cache(min(next_one.end, next_one.n_ctx), hparams)
            texts.append(next_one)
            next_one = None
        if not texts:
            return
        yield from one_pass([text for text in texts if not text.over], params, hparams)
        yield from ((text, None, None) for text in texts if text.over)
        texts = [text for text in texts if not text.over]


def fits_in_memory(text, others, hparams):
    """Return whether there is room for a text's cache. A text on its own always fits."""
    n_max = min(text.end, text.n_ctx)
    n_bytes = 8 * n_max * hparams["n_layer"] * hparams["n_embd"]  # float32 keys and values
    return not others or n_bytes + sum(other.cache.nbytes for other in others) <= CACHE_BYTES


def one_pass(texts, params, hparams):
    """Send the next ids of all texts through the model; yield (text, id, its logits)."""
    n_prompt = PROMPT_ROWS
    n_draft = max(1, DRAFT_ROWS // max(1, len(texts)))
    for text in texts:
        n_prompt -= text.choose_rows(n_prompt, n_draft)
    texts = [text for text in texts if text.new]  # the prompts of the others wait for free rows
    if not texts:
        return
    logits = gpt2_many(texts, **params, hparams=hparams)
    ends = np.cumsum([text.n_logits for text in texts])
    for text, end in zip(texts, ends):
        for id_, row in text.choose_ids(logits[end - text.n_logits : end]):
            yield text, id_, row
            if text.over or id_ in hparams["eos_token_ids"]:
                text.over = True
                break


def generate_many(prompts, params, hparams, n_tokens=None, batch_size=BATCH_SIZE, **sampling):
    """Return an iterator of (index of the prompt, id): each prompt gets the ids of gpt2.generate.

    prompts: an iterable of lists of ids. An iterator is read as its prompts are needed, and each
    prompt is checked then. ValueError if an argument is wrong.
    """
    gpt2.check_model(params, hparams)
    gpt2.check_number("n_tokens", n_tokens, 0, kind=numbers.Integral)
    gpt2.check_number("batch_size", batch_size, 1, kind=numbers.Integral, optional=False)
    gpt2.Sampler(**sampling)  # checks the options
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts is {prompts!r}: it must be a list of lists of ids")
    checked = (gpt2.check_inputs(ids, params, hparams) for ids in prompts)
    numbered = enumerate(list(checked) if hasattr(prompts, "__len__") else checked)
    texts = (Text(ids, n_tokens, gpt2.Sampler(**sampling), hparams, i) for i, ids in numbered)
    steps = continuations(lambda wait: next(texts, None), params, hparams, batch_size)
    eos_token_ids = {None, *hparams["eos_token_ids"]}
    return ((text.name, id_) for text, id_, _ in steps if id_ not in eos_token_ids)


# ==== The command ===============================================================================


class Job(NamedTuple):
    """A completion in progress. number: its line of the output, from 0 on; about: the first entries
    of its JSON object, from "line" to "seed"; start: the time at which it was started."""

    number: int
    about: dict
    completion: cli.Completion
    start: float  # seconds


class Jobs:
    """Turn lines of input into Texts, and their completions into lines of output, in order."""

    def __init__(self, lines, args, encoder, hparams):
        self.lines, self.args, self.encoder, self.hparams = lines, args, encoder, hparams
        self.is_json = None  # unknown until the first line
        self.texts = []  # samples of the last line that have not started
        self.sizes = {}  # {number: bytes of its line of input}, until its output is printed
        self.done = {}  # {number: line of output} for output that waits for an earlier line
        self.n_jobs, self.n_printed, self.n_bad = 0, 0, 0
        self.n_bytes, self.n_tokens = 0, 0  # bytes and expected tokens of all lines taken so far

    def next_text(self, wait):
        """Return a Text or None, as continuations expects it."""
        while not self.texts:
            if not wait and (len(self.sizes) > MAX_WAITING or sum(self.sizes.values()) > MAX_BYTES):
                return None
            try:
                number, line = self.lines.get(block=wait)
            except queue.Empty:
                return None
            self.lines.task_done()
            if not isinstance(line, bytes):  # the end of the input, or an error
                self.lines.put((number, line))  # for the next call
                if wait and line:  # By now all lines before the error are completed.
                    raise line
                return None
            with tqdm.external_write_mode():  # hides the bar while something else is printed
                self.open(number, line)
        return self.texts.pop(0)

    def open(self, number, line):
        """Make the Texts of a line, or print its error. Ignore a blank line."""
        self.n_bytes += len(line)
        about = {"line": number}
        try:
            entry = self.parse(number, line)
            if entry is None:
                return
            if "id" in entry:
                about["id"] = entry["id"]
            args = self.options(entry)
            name = f"line {number}"
            ids = cli.prompt_ids(args.prompt, self.encoder, self.hparams, args.special_tokens, name)
        except NotLines:
            raise
        except (ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError, too
            self.n_bad += 1
            message = json.dumps({**about, "error": str(error)}, ensure_ascii=False)
            self.finish(self.next_number(len(line)), message)
            return
        n_max = None if args.n_tokens < 0 else args.n_tokens
        for sample in range(args.n_samples):
            sampler = gpt2.Sampler(**args.sampling)
            if sample > 0:  # Each sample derives its own random numbers from the same seed.
                sequence = np.random.SeedSequence(sampler.seed, spawn_key=(sample,))
                sampler.rng = np.random.default_rng(sequence)
            about = {**about, "prompt": args.prompt, "sample": sample, "seed": sampler.seed}
            completion = cli.Completion(self.encoder, self.hparams["eos_token_ids"], args.stop)
            job = Job(self.next_number(len(line)), about, completion, time.perf_counter())
            self.texts.append(Text(ids, n_max, sampler, self.hparams, job))
            self.n_tokens += self.texts[-1].end - len(ids)

    def parse(self, number, line):
        """Return the object in a line, or {"prompt": text}, or None if the line is blank."""
        if len(line) > MAX_LINE:
            raise ValueError(f"the line is longer than {MAX_LINE} bytes")
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if not text.strip():
            return None
        if self.is_json is None:
            self.is_json = is_json_object(text)
        if not self.is_json:
            return {"prompt": text.removesuffix("\n").removesuffix("\r")}
        entry = read_json("the line", text.encode())
        # An id that can be printed inside eight lists can be printed in the output, too.
        json.dumps([[[[[[[[entry]]]]]]]], allow_nan=False)
        return entry

    def options(self, entry):
        """Return the options for a line: the command's, overridden by the entries of its object."""
        for key in entry:
            if key not in KEYS:
                raise ValueError(f"unknown key {key!r}: known are {', '.join(KEYS)}")
        if not isinstance(entry.get("prompt"), str):
            raise ValueError('the object has no "prompt" that is a text')
        args = SimpleNamespace(**vars(self.args), n_tokens=self.args.n_tokens_to_generate)
        vars(args).update({key: value for key, value in entry.items() if value is not None})
        if isinstance(args.stop, str):
            args.stop = [args.stop]
        if not isinstance(args.stop, list) or not all(x and isinstance(x, str) for x in args.stop):
            raise ValueError("stop must be a text or a list of texts, none of them empty")
        gpt2.check_number("n_tokens", args.n_tokens, -1, kind=numbers.Integral)
        args.sampling = sampling_options(args)
        # All samples of a line share a seed, even if it is chosen at random.
        args.sampling["seed"] = gpt2.Sampler(**args.sampling).seed
        return args

    def next_number(self, n_bytes):
        """Return the number of the next line of output. n_bytes: the length of its input line."""
        self.sizes[self.n_jobs] = n_bytes
        self.n_jobs += 1
        return self.n_jobs - 1

    def add(self, text, id_, logits):
        """Take a step of continuations: add an id to its completion, or print a finished one."""
        job = text.name
        if id_ is not None:
            job.completion.add(id_, gpt2.log_probability(logits, id_))
            text.over = job.completion.ended != "length"
            return
        self.n_tokens -= text.end - len(text.ids)  # It ended early: these will not come.
        seconds = round(time.perf_counter() - job.start, 3)
        self.finish(job.number, job.completion.as_json(**job.about, seconds=seconds))

    def finish(self, number, line):
        """Print a line of output and those that wait for it, unless it has to wait itself."""
        self.done[number] = line
        while self.n_printed in self.done:
            with tqdm.external_write_mode():
                cli.print_line(self.done.pop(self.n_printed))
            del self.sizes[self.n_printed]
            self.n_printed += 1


class NotLines(ValueError):
    """The input is JSON, but not one object per line."""


def is_json_object(text):
    """Return whether the first line is a JSON object. NotLines if an array begins there, or an
    object of several lines; but "[Verse 1] hello" is a text."""
    try:
        value = json.loads(text)
    except RecursionError:  # No text is nested so deeply: this is JSON.
        value = {}
    except ValueError:
        value = None
    if isinstance(value, list) or re.match(r'\[[\s\[]*["{]|[\s\[{]+$', text.strip()):
        raise NotLines('the prompts are JSON, but not one object per line: {"prompt": ...}')
    return isinstance(value, dict)


def read_lines(path):
    """Return a queue of (number, line in bytes), ended by (0, None) or by (0, an exception).

    A thread reads the lines, so that prompts are completed while others have not arrived yet.
    """
    lines, file = queue.Queue(MAX_WAITING), cli.open_bytes(path)

    def read():
        try:
            for number, line in enumerate(bounded_lines(file), 1):
                if len(line) > LONG_LINE:
                    lines.join()  # until the queue is empty
                lines.put((number, line))
            lines.put((0, None))
        except Exception as error:
            lines.put((0, error))

    threading.Thread(target=read, daemon=True).start()
    return lines


def bounded_lines(file):
    """Yield the lines of a file, only the first MAX_LINE + 1 bytes of each."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def parser():
    """Return the parser of the command's options."""
    parser = cli.new_parser(
        "batch.py",
        "Complete many prompts. Standard output gets a line of JSON for each completion, in order.",
    )
    add = parser.add_argument
    add(
        "prompts",
        help='a file with one prompt per line, or JSON lines with "prompt" and optionally "id", '
        '"n_tokens", "stop", "temperature", "top_k", "top_p", "min_p", "repetition_penalty" and '
        '"seed"; - reads standard input, line by line as they arrive',
    )
    samples_help = "continuations per prompt; above 1 the temperature is 1 unless given (1)"
    add("--n_samples", type=cli.number(int, 1, 2**16), default=1, metavar="N", help=samples_help)
    batch_help = f"texts per pass over the model; changes the time and not the texts ({BATCH_SIZE})"
    add("--batch_size", type=cli.number(int, 1), default=BATCH_SIZE, metavar="N", help=batch_help)
    cli.add_completion_options(parser)
    return parser


def sampling_options(args):
    """Return the options of gpt2.Sampler for a line. UsageError if they contradict each other."""
    options = cli.sampling_options(args)
    if args.n_samples > 1 and args.temperature == 0:
        raise cli.UsageError("at --temperature 0 all samples are equal: leave out --n_samples")
    if args.n_samples > 1 and args.temperature is None:
        options["temperature"] = 1.0
    return options


def work(args):
    """Load the model, and complete every prompt."""
    sampling_options(args)  # refuses contradictions before anything is loaded
    lines = read_lines(args.prompts)
    encoder, hparams, params = load(args.model_size, args.models_dir, args.tokenizer)
    cli.warn_of_training(args.model_size, hparams)
    jobs = Jobs(lines, args, encoder, hparams)
    size = os.path.getsize(args.prompts) if os.path.isfile(args.prompts) else math.inf
    with tqdm(desc="prompts: 0", bar_format=COUNTS, unit="", unit_scale=True, disable=None) as bar:
        for text, id_, logits in continuations(jobs.next_text, params, hparams, args.batch_size):
            jobs.add(text, id_, logits)
            # The rest of a file is expected to need as many tokens per byte as its lines so far.
            total = jobs.n_tokens * max(size, jobs.n_bytes) / jobs.n_bytes
            bar.total = total if math.isfinite(total) else None  # unknown: a pipe, or no limit
            bar.bar_format = BAR if bar.total else COUNTS
            bar.set_description_str(f"prompts: {jobs.n_printed // args.n_samples}", refresh=False)
            bar.update(id_ is not None)
    if jobs.n_bad:
        raise ValueError(f'{jobs.n_bad} lines are not prompts: see "error" in their objects')


def main(argv=None):
    """Run the command and return its exit status."""
    return cli.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
