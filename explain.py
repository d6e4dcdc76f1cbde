"""Show what a model does with a prompt: in the terminal, or as a page to explore in a browser.

    python explain.py "To be, or not to" --model_size shakespeare --page page.html

This is the command. page/record.py runs the model and records what happens in it; page/data.py
packs that into the page, which the scripts beside it draw. Lesson: step 18.
"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # see gpt2.py

import cli
from fast import Drafts
from gpt2 import Sampler, continuation, penalize, probabilities
from model_files.files import write_atomic
from page.data import build_page
from page.record import logit_lens, record, residual_streams, run_with_trace, top, unembed
from utils import load_encoder_hparams_and_params, name_of


def terminal_view(ids, encoder, hparams, params, args):
    """Yield the lines for the terminal: the prompt's tokens, what may follow, the logit lens."""
    yield "tokens and their ids"
    yield "  " + "  ".join(f"{spell(encoder, id_)} {id_}" for id_ in ids)
    streams = residual_streams(run_with_trace(ids, params, hparams), rows=slice(-1, None))
    last = list(streams.values())[-1]
    sampler = Sampler(**args.sampling)
    logits = penalize(unembed(last, params, hparams)[0], ids, sampler.penalty)
    temperature = 1 if sampler.temperature == 0 else sampler.temperature
    p = probabilities(logits, temperature, **sampler.options)
    best = top(p, min(args.top, len(p)))
    yield "\nwhat may follow"
    for id_ in best[p[best] > 0]:
        bar = "█" * max(1, round(40 * p[id_] / p[best[0]]))
        yield f"  {100 * p[id_]:5.1f} %  {spell(encoder, id_):15} {bar}"
    yield "\nwhat would follow, if the model ended after"
    for name, x in streams.items():
        lens_ids, lens_p = logit_lens(x, params, hparams)
        best = zip(lens_ids[0, :3], lens_p[0, :3])
        guesses = (f"{100 * p:5.1f} % {spell(encoder, id_):15}" for id_, p in best)
        yield f"  {name:19}{' '.join(guesses)}".rstrip()


def spell(encoder, id_):
    """Return a token as the terminal shows it: in quotes, and as bytes if it is not UTF-8."""
    data = encoder.decode_bytes([id_])
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def make_page(ids, encoder, hparams, params, args):
    """Return the page, in bytes: how the model reads a prompt's ids and continues them."""
    n_prompt, n_ctx, n_tokens = len(ids), hparams["n_ctx"], args.n_tokens_to_generate
    if n_tokens < 0:
        n_tokens = n_ctx - n_prompt
    sampler = Sampler(**args.sampling)
    completion = cli.Completion(encoder, hparams["eos_token_ids"], args.stop)
    for id_, _ in continuation(ids, params, hparams, n_tokens, sampler, Drafts()):
        completion.add(id_)
        if completion.ended != "length":
            break
    # Past the context the window jumps, and its tokens get other positions. The page shows the
    # window in which the continuation began.
    ids = [*ids, *completion.ids]
    ids, beyond = ids[:n_ctx], ids[n_ctx:]
    arrays, fits = record(ids, n_prompt, beyond[0] if beyond else None, params, hparams)
    facts = {
        "model": name_of(args.model_size),
        "hparams": {name: x for name, x in hparams.items() if name != "training"},  # private
        "ids": ids,
        "n_prompt": n_prompt,
        "n_cut": max(0, len(encoder.encode(args.prompt)) - n_prompt),
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
        "Show what a model does with a prompt: its tokens, what may follow them and how the model "
        "gets there, on standard output; with --page all of it and a completion, as one HTML file.",
    )
    parser.add_argument("prompt", help="text to look at; -: read it from standard input")
    page_help = "write the page; - is standard output"
    parser.add_argument("--page", type=cli.not_empty, metavar="FILE", help=page_help)
    parser.add_argument(
        "--top",
        type=cli.number(int, 1),
        default=10,
        metavar="N",
        help="without --page: show N of the tokens that may follow (10)",
    )
    cli.add_completion_options(parser)
    return parser


def work(args):
    """Load the model and explain a prompt."""
    args.sampling = cli.sampling_options(args)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    args.prompt = cli.read_prompt(args.prompt)
    ids = cli.prompt_ids(args.prompt, encoder, hparams)
    if args.page is None:
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
