"""Show what a model does with a prompt: in the terminal, or as a page to explore in a browser.

    python explain.py "To be, or not to" --model_size shakespeare --page page.html

page/record.py runs the model and records what happens in it. page/data.py packs the record into an
HTML file, where the scripts in page/ draw it. The lesson uses this command in step 18.
"""

import json
import math
import os
import shutil
import sys
import unicodedata

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # see gpt2.py

import cli
from fast import Drafts
from gpt2 import Sampler, continuation, penalize, probabilities
from model_files.files import write_atomic
from page.data import build_page, project_address
from page.record import logit_lens, record, residual_streams, run_with_trace, top, unembed
from utils import load_encoder_hparams_and_params, name_of


def terminal_view(ids, encoder, hparams, params, args):
    """Yield the lines for the terminal: the prompt's tokens, the next token, the logit lens."""
    width = max(40, shutil.get_terminal_size().columns)
    yield "tokens of the prompt, with their ids"
    yield from prompt_lines(ids, encoder, width)
    streams = residual_streams(run_with_trace(ids, params, hparams), rows=slice(-1, None))
    best, p = next_tokens(ids, list(streams.values())[-1], hparams, params, args)
    yield "\nmost likely next tokens"
    for id_ in best:
        bar = "█" * max(1, round(min(40, width - 27) * p[id_] / p[best[0]]))
        yield f"  {100 * p[id_]:5.1f} %  {fit(spell(encoder, [id_]), 15)} {bar}"
    yield "\nlogit lens (lesson/README.md, step 15):"
    yield "the next token if the model ended after"
    n_guesses = (width - 20) // 20  # the name of a row takes 21 columns, a guess 19 and a space
    for name, x in streams.items():
        lens_ids, lens_p = logit_lens(x, params, hparams)
        best = zip(lens_ids[0, :n_guesses], lens_p[0, :n_guesses])
        guesses = (f"{100 * p:5.1f} % {fit(spell(encoder, [id_]), 11)}" for id_, p in best)
        yield f"  {name:19}{' '.join(guesses)}".rstrip()


def next_tokens(ids, last, hparams, params, args):  # [n], the last residual stream [1, e]
    """Return the ids of the most likely next tokens, and the probabilities of all [n_vocab]."""
    sampler = Sampler(**args.sampling)
    logits = penalize(unembed(last, params, hparams)[0], ids, sampler.penalty)
    temperature = 1 if sampler.temperature == 0 else sampler.temperature
    p = probabilities(logits, temperature, **sampler.options)
    best = top(p, min(args.top, len(p)))
    return best[p[best] > 0], p


def as_json(ids, encoder, hparams, params, args):
    """Return the prompt's tokens and the most likely next tokens, as one line of JSON."""
    *_, trace = run_with_trace(ids, params, hparams)
    best, p = next_tokens(ids, trace.resid_post[-1:], hparams, params, args)
    prompt = [{"id": id_, "text": encoder.decode([id_])} for id_ in ids]
    following = [
        {"id": int(i), "text": encoder.decode([i]), "log_probability": math.log(p[i])} for i in best
    ]
    return json.dumps({"prompt": prompt, "next": following}, ensure_ascii=False)


def prompt_lines(ids, encoder, width):
    """Yield lines of tokens and ids; tokens of one character stand together: '☃' 159 247 226."""
    line, start = "", 0
    for end in range(1, len(ids) + 1):
        if b"\x80" <= encoder.decode_bytes(ids[end : end + 1])[:1] < b"\xc0":
            continue  # the next token starts inside a character of UTF-8, so it belongs here
        numbers = " ".join(map(str, ids[start:end]))
        text = fit(spell(encoder, ids[start:end]), max(1, width - 3 - len(numbers))).rstrip()
        start = end
        if line and columns(f"{line}  {text} {numbers}") > width:
            yield line
            line = ""
        line += f"  {text} {numbers}"
    yield line


def spell(encoder, ids):
    """Return the text of some ids in quotes, or their bytes if they are not valid UTF-8."""
    data = encoder.decode_bytes(ids)
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def fit(text, width):
    """Return a text padded to a width in columns, or cut to it with "…" at the end."""
    if columns(text) > width:
        text = [text[:n] for n in range(width) if columns(text[:n]) < width][-1] + "…"
    return text + " " * (width - columns(text))


def columns(text):
    """Return the width of a text in a terminal: a wide character has 2 columns, an accent 0."""
    bases = [char for char in text if unicodedata.category(char) not in ("Mn", "Me")]
    return len(bases) + sum(unicodedata.east_asian_width(char) in ("W", "F") for char in bases)


def make_page(ids, encoder, hparams, params, args):
    """Return a page, in bytes, that shows how the model reads these ids and continues them."""
    n_prompt, n_ctx, n_tokens = len(ids), hparams["n_ctx"], args.n_tokens_to_generate
    if n_tokens < 0:
        n_tokens = n_ctx - n_prompt
    sampler = Sampler(**args.sampling)
    completion = cli.Completion(encoder, hparams["eos_token_ids"], args.stop)
    for id_, _ in continuation(ids, params, hparams, n_tokens, sampler, Drafts()):
        completion.add(id_)
        if completion.ended != "length":
            break
    # When the text outgrows the context, the window moves on and its tokens get new positions. The
    # page shows the window in which the continuation began.
    ids = [*ids, *completion.ids]
    ids, beyond = ids[:n_ctx], ids[n_ctx:]
    arrays, fits = record(ids, n_prompt, beyond[0] if beyond else None, params, hparams)
    model = name_of(args.model_size)
    # Pages are passed on. The model's path and training.json may name directories of this computer.
    if os.path.exists(model):
        model = os.path.basename(os.path.abspath(model))
    facts = {
        "model": model,
        "address": project_address(args.page),
        "hparams": {name: x for name, x in hparams.items() if name != "training"},
        "ids": ids,
        "n_prompt": n_prompt,
        "n_cut": max(0, len(encoder.encode(args.prompt, args.special_tokens)) - n_prompt),
        "beyond": beyond,
        "ended": completion.ended,
        "sampling": {**args.sampling, "temperature": sampler.temperature, "seed": sampler.seed},
        "fits": fits,
    }
    return build_page(facts, arrays, encoder)


def parser():
    """Return the parser of the command's options."""
    parser = cli.new_parser(
        "explain.py",
        "Show how a model reads a prompt: its tokens, the most likely next tokens, and the best "
        "guesses after each part of the model. With --page, write a page that shows much more.",
    )
    parser.add_argument("prompt", help="text to explain; -: read it from standard input")
    page_help = "write an HTML page about the prompt and a completion; - is standard output"
    json_help = "print the prompt's tokens and the next ones with their log-probabilities"
    parser.add_argument("--json", action="store_true", help=json_help)
    parser.add_argument("--page", type=cli.not_empty, metavar="FILE", help=page_help)
    parser.add_argument(
        "--top",
        type=cli.number(int, 1),
        default=10,
        metavar="N",
        help="without --page: show the N most likely next tokens (10)",
    )
    cli.add_completion_options(parser)
    return parser


def work(args):
    """Load the model and explain a prompt."""
    args.sampling = cli.sampling_options(args)
    if args.json and args.page is not None:
        raise cli.UsageError("--json prints data instead of a page: leave out --page")
    model = load_encoder_hparams_and_params(args.model_size, args.models_dir, args.tokenizer)
    encoder, hparams, params = model
    args.prompt = cli.read_prompt(args.prompt)
    ids = cli.prompt_ids(args.prompt, encoder, hparams, args.special_tokens)
    if args.json:
        cli.print_line(as_json(ids, encoder, hparams, params, args))
    elif args.page is None:
        print("\n".join(terminal_view(ids, encoder, hparams, params, args)))
    elif args.page == "-":
        sys.stdout.buffer.write(make_page(ids, encoder, hparams, params, args))
    else:
        with write_atomic(args.page) as file:
            file.write(make_page(ids, encoder, hparams, params, args))
        cli.say(f"{args.page} is written: open it in a browser")


def main(argv=None):
    """Run the command and return its exit status."""
    return cli.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
