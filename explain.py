"""What the model did with a prompt: in the terminal, or as one page to walk about in.

    python explain.py "To be, or not to" --model_size shakespeare --page page.html

gpt2.gpt2 forgets what it has done as soon as it has used it. `look` is the same pass, a third
wiring of the same functions, which hands over what it sees:

x        [n, e]     the residual stream before a block
q, k, v  [h, n, d]  each token's query, key and value, a head at a time
weights  [h, n, n]  how much each token (a row) takes of each earlier one's value
mixed    [n, e]     what the heads gathered with these weights, side by side
middle   [n, e]     the stream between attention and MLP; end: after both
neurons  [n, 4e]    how much each neuron of the MLP fired

The rest of this file asks questions of that, and puts the answers into the page (page/).

Shapes as in gpt2.py; l = n_layer blocks; m: those positions of a long text that are looked at.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex>=2024.11.6", "requests", "tqdm"]
# ///

if __name__ == "__main__":
    import startup

    startup.begin()

import math
import re
import sys
from collections import defaultdict, namedtuple
from itertools import chain

import numpy as np
from tqdm import tqdm

import command
import startup
from completion import Completion, prompt_ids
from drafts import Drafts
from gpt2 import (
    N_QUERIES,
    Sampler,
    choices,
    exp_scores,
    ffn,
    gelu,
    layer_norm,
    linear,
    mha,
    new_cache,
    penalize,
    probabilities,
    softmax,
)
from model_files.files import write_atomic
from page.data import MOST_FIRED, N_CANDIDATES, attention_map, build, fixed, root, what_fits

N_NEURONS = 8_192  # neurons of which the page says what they push
N_LENS_BEST, N_PUSHED = 5, 5
MOST_BINS = 1024  # of logits

# ================================================================================================
# A pass that is watched
# ================================================================================================


# What one block did, by the names at the top.
Seen = namedtuple("Seen", "x q k v weights mixed middle neurons end")


def look(ids, wte, wpe, blocks, ln_f, n_head, eps):
    """Yield a Seen for each block of the pass that gpt2.gpt2 makes over these ids."""
    n, e = len(ids), wte.shape[1]
    x = wte[ids] + wpe[:n]  # [n] -> [n, e]
    for block in blocks:
        attn, mlp = block["attn"], block["mlp"]
        y = layer_norm(x, **block["ln_1"], eps=eps)
        qkv = linear(y, **attn["c_attn"]).reshape(n, 3, n_head, e // n_head)
        q, k, v = qkv.transpose(1, 2, 0, 3)  # each [h, n, d]
        weights = attention_weights(q, k)
        mixed = (weights @ v).swapaxes(0, 1).reshape(n, e)  # [h, n, d] -> [n, e]
        middle = x + linear(mixed, **attn["c_proj"])
        neurons = gelu(linear(layer_norm(middle, **block["ln_2"], eps=eps), **mlp["c_fc"]))
        end = middle + linear(neurons, **mlp["c_proj"])
        yield Seen(x, q, k, v, weights, mixed, middle, neurons, end)
        x = end


def attention_weights(q, k):  # [h, n, d] twice -> [h, n, n], each row sums to 1
    h, n, d = q.shape
    weights = np.zeros((h, n, n), np.float32)
    for i in range(0, n, N_QUERIES):
        j = min(i + N_QUERIES, n)
        exp = exp_scores(q[:, i:j] * (1 / math.sqrt(d)), k[:, :j])
        np.divide(exp, exp.sum(-1, keepdims=True), out=weights[:, i:j, :j])
    return weights


def resume(x, half, blocks, n_head, eps, **others):  # [n, e] -> [n, e]
    """The stream at the end of a pass that starts with the stream x before a half block: number
    2i is the attention of block i, 2i + 1 its MLP."""
    n, e = x.shape
    for i in range(half, 2 * len(blocks)):
        block = blocks[i // 2]
        y = layer_norm(x, **block[f"ln_{i % 2 + 1}"], eps=eps)
        if i % 2:
            x = x + ffn(y, **block["mlp"])
        else:
            (cache,) = new_cache(n, n_layer=1, n_head=n_head, n_embd=e)
            x = x + mha(y, **block["attn"], n_head=n_head, cache=cache, n_past=0)
    return x


def read_out(x, wte, ln_f, eps, **others):
    """Yield the positions and logits [n_vocab] of a stream [n, e], N_QUERIES at a time: the logits
    of a long text would fill the memory."""
    for i in range(0, len(x), N_QUERIES):
        rows = slice(i, i + N_QUERIES)
        yield rows, layer_norm(x[rows], **ln_f, eps=eps) @ wte.T


def top(x, n):  # [..., m] -> [..., n] places of the largest, the largest first
    places = np.argpartition(x, -n, axis=-1)[..., -n:]
    order = np.argsort(-np.take_along_axis(x, places, -1), axis=-1, kind="stable")
    return np.take_along_axis(places, order, -1)


# ================================================================================================
# Questions
# ================================================================================================


def lens(streams, at, model, bar=None):
    """What would the model say if it ended here? (nostalgebraist 2020, "the logit lens")

    -> ids and probabilities [steps, m, 5] of the best tokens for each stream, positions at.
    """
    n_best = min(N_LENS_BEST, len(model["wte"]))
    ids = np.empty((len(streams), len(range(*at.indices(len(streams[0])))), n_best), np.int64)
    p = np.empty(ids.shape, np.float32)
    for i, x in enumerate(streams):
        for rows, logits in read_out(x[at], **model):
            ids[i, rows] = top(logits, n_best)
            p[i, rows] = np.take_along_axis(softmax(logits), ids[i, rows], -1)
        if bar:
            bar.update()
    return ids, p


def expectations(x, next_ids, fits, model):
    """What may come next, and how likely is it? From the stream at the end of the pass.

    -> candidates [n, 10], the best ones, the last of which gives way to the token that does come
    if that is not among them; their logits; the logarithm of the sum of all exp(logit) [n]; and the
    distribution: ids and logits of the best, and for what is below them the number of tokens in
    bins of 1/16 nat or more, with where in the bin their mean is.
    """
    n_best, found = min(fits["best"], len(model["wte"])), defaultdict(list)
    for rows, logits in read_out(x, **model):
        for row, next_id in zip(logits, next_ids[rows]):
            best = top(row, n_best)
            candidates = best[:N_CANDIDATES].tolist()
            if next_id is not None and next_id not in candidates:
                candidates[-1] = next_id
            found["candidates"].append(candidates)
            found["logits"].append(row[candidates])
            found["log_sum"].append(np.log(np.exp(row - row[best[0]]).sum()) + row[best[0]])
            found["best"].append(best)
            found["best_logits"].append(row[best])
            below = (row[best[-1]] - np.delete(row, best)) * fits["bins"]
            place = np.minimum(below, MOST_BINS - 1).astype(np.int64)
            counts = np.bincount(place)
            means = np.bincount(place, below - place) / np.maximum(counts, 1)
            found["bin_counts"].append(counts)
            found["bin_means"].append(np.minimum(means * 256, 255).astype(np.uint8))
    starts = np.cumsum([0, *map(len, found["bin_counts"])])
    bins = {name: np.concatenate(found.pop(name)) for name in ("bin_counts", "bin_means")}
    return {name: np.array(x) for name, x in found.items()} | bins | {"bin_starts": starts}


def shares(ids, at, candidates, streams, mixed, wte, wpe, blocks, ln_f, n_head, eps):
    """Who added what to a logit? Exactly, with the last layer norm's scale as it was.

    A logit is a product of the last stream, normalised, with a token's embedding; the stream is a
    sum; so the logit is a sum of a product for each part of it (Elhage et al. 2021).
    -> [m, candidates + 1, 2 + l (h + 1) + 1]: embedding, position, then for each block its heads
    and its MLP, and all biases together. The last candidate is the mean of all tokens.
    """
    n_embd = wte.shape[1]
    positions = np.arange(len(ids))[at]
    mean_token = np.broadcast_to(wte.mean(0), (len(positions), 1, n_embd))
    tokens = np.concatenate([wte[candidates[at]], mean_token], 1)  # [m, c, e]
    x = streams[-1][at] - streams[-1][at].mean(-1, keepdims=True)
    scale = np.sqrt((x * x).mean(-1) + eps)[:, None, None]
    along = tokens * ln_f["g"]  # what a part of the stream is multiplied with
    along = (along - along.mean(-1, keepdims=True)) / scale

    def share(part):  # [m, e] or [e] -> [m, c, 1]
        return along @ np.broadcast_to(part, x.shape)[..., None]

    parts = [share(wte[ids[at]]), share(wpe[positions])]
    biases = tokens @ ln_f["b"][:, None]
    for i, block in enumerate(blocks):
        w = block["attn"]["c_proj"]["w"].reshape(n_head, -1, n_embd)  # [h, d, e]
        heads = mixed[i][at].reshape(len(x), n_head, -1).swapaxes(0, 1) @ w  # -> [h, m, e]
        mlp = streams[2 * i + 2][at] - streams[2 * i + 1][at] - block["mlp"]["c_proj"]["b"]
        parts += [along @ heads.transpose(1, 2, 0), share(mlp)]
        biases = biases + share(block["attn"]["c_proj"]["b"] + block["mlp"]["c_proj"]["b"])
    return np.concatenate([*parts, biases], -1)


def knock_outs(at, candidates, streams, mixed, whole_layers, model, bar):
    """What would a candidate's probability be without one head or MLP, everywhere in the text?

    -> [parts, m, candidates]; the parts: for each block its heads (or its attention as a whole)
    and its MLP. Each is a pass of its own, from the block on.
    """
    n_head, found = model["n_head"], []
    for i, block in enumerate(model["blocks"]):
        before, middle = streams[2 * i : 2 * i + 2]
        heads = zip(
            np.split(mixed[i], n_head, axis=1), np.split(block["attn"]["c_proj"]["w"], n_head)
        )
        attention = [before] if whole_layers else (middle - x @ w for x, w in heads)
        starts = chain(((x, 2 * i + 1) for x in attention), [(middle, 2 * i + 2)])
        for x, half in starts:
            p = [
                np.take_along_axis(softmax(logits), candidates[at][rows], -1)
                for rows, logits in read_out(resume(x, half, **model)[at], **model)
            ]
            found.append(np.concatenate(p))
            bar.update()
    return np.array(found)


def strongest(neurons, c_proj):  # [n, 4e] -> places, how much each fired and wrote [n, 16]
    """The neurons that wrote most: how much each fired times the length of what it writes."""
    written = np.abs(neurons) * np.linalg.norm(c_proj["w"], axis=1)
    places = top(written, min(MOST_FIRED, neurons.shape[1]))
    return places, *(np.take_along_axis(x, places, -1) for x in (neurons, written))


def pushed(places, blocks, wte, ln_f):
    """Which tokens does a neuron make more likely? What it writes, read out as the last stream is.

    places: [l, n, 16] of strongest. -> block * 4e + neuron of those looked at, their 5 tokens.
    """
    numbers, tokens = [], []
    for i, (block, rows) in enumerate(zip(blocks, places)):
        w = block["mlp"]["c_proj"]["w"]  # [4e, e]
        some = list(dict.fromkeys(rows.T.ravel().tolist()))  # of each token the strongest first
        some = sorted(some[: max(1, N_NEURONS // len(blocks))])
        written = (w[some] - w[some].mean(-1, keepdims=True)) * ln_f["g"]
        for j in range(0, len(some), N_QUERIES):
            tokens.append(top(written[j : j + N_QUERIES] @ wte.T, min(N_PUSHED, len(wte))))
        numbers += [i * len(w) + neuron for neuron in some]
    return np.array(numbers), np.concatenate(tokens)


# ================================================================================================
# A record of all that, for the page
# ================================================================================================


def record(ids, n_prompt, next_id, params, hparams):
    """-> {name: array, or (array, the step its whole numbers count)}, what fits, notes.

    ids: the text, of which the prompt is the first part; next_id: what followed it, or None.
    """
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    fits, notes = what_fits(len(ids), n_prompt, hparams)
    n_steps = len(fits["steps"])
    with tqdm(total=hparams["n_layer"] + n_steps + fits["passes"], delay=1, disable=None) as bar:
        streams, mixed, of_blocks = watch(ids, fits, model, bar)
        found = expectations(streams[-1], [*ids[1:], next_id], fits, model)
        some = [streams[step] for step in fits["steps"]]
        lens_ids, lens_p = lens(some, fits["lens"], model, bar)
        at, candidates = fits["shares"], found["candidates"]
        arrays = {
            **found,
            **of_blocks,
            "norms": np.linalg.norm(streams, axis=-1),
            "added": np.linalg.norm(np.diff(streams, axis=0), axis=-1),
            "lens_ids": lens_ids,
            "lens_p": root(lens_p, np.uint16),
            "shares": fixed(shares(ids, at, candidates, streams, mixed, **model), np.int32, 2**-20),
            "full": next(read_out(streams[-1][n_prompt - 1 : n_prompt], **model))[1][0],
        }
        numbers, tokens = pushed(arrays["fired"], params["blocks"], params["wte"], params["ln_f"])
        arrays |= {"pushers": numbers, "pushed": tokens}
        if fits["passes"]:
            whole = fits["whole_layers"]
            p = knock_outs(at, candidates, streams, mixed, whole, model, bar)
            arrays["knocked"] = root(p, np.uint16)
    return arrays, fits, notes


def watch(ids, fits, model, bar):
    """The pass, of which each block is thinned out before the next one begins.

    -> streams [2l + 1, n, e], mixed [l, n, e], {name: array with a row for each block}
    """
    streams, mixed, rows = [], [], {}
    for seen, block in zip(look(ids, **model), model["blocks"]):
        streams += [seen.x, seen.middle]
        mixed.append(seen.mixed)
        q, k = seen.q[:, fits["products"]], seen.k[:, fits["products"]]
        scales = [np.abs(x).max(1, keepdims=True) / 127 + 1e-30 for x in (q, k)]  # [h, 1, d]
        carried = seen.v @ np.stack(np.split(block["attn"]["c_proj"]["w"], model["n_head"]))
        carried = np.linalg.norm(carried, axis=-1)  # [h, n, e] -> [h, n]
        places, values, written = strongest(seen.neurons, block["mlp"]["c_proj"])
        new = {
            **attention_map(seen.weights[:, fits["weights"]], fits["strongest"]),
            "q": np.round(q / scales[0]).astype(np.int8),
            "k": np.round(k / scales[1]).astype(np.int8),
            "q_scale": scales[0][:, 0],
            "k_scale": scales[1][:, 0],
            "carried": root(carried / carried.max(-1, keepdims=True)),
            "fired": places[:, : fits["fired"]],
            "fired_by": values[:, : fits["fired"]],
            "written": root(written / (written.max() + 1e-30))[:, : fits["fired"]],
        }
        for name, x in new.items():
            rows.setdefault(name, []).append(x)
        bar.update()
    rows = {name: np.stack(x) for name, x in rows.items()}
    return np.stack([*streams, seen.end]), np.stack(mixed), rows


# ================================================================================================
# The command
# ================================================================================================


def spell(encoder, id_):
    """A token for the terminal: " be" in quotes, half a character as bytes."""
    data = encoder.decode_bytes([id_])
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def short_form(inputs, encoder, hparams, params, args):
    """Yield the lines for the terminal: tokens, what may follow, the lens of the last position."""
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    streams = []
    for seen in look(inputs, **model):
        streams += [seen.x[-1:], seen.middle[-1:]]
    streams.append(seen.end[-1:])
    yield "tokens and their ids"
    yield "  " + "  ".join(f"{spell(encoder, id_)} {id_}" for id_ in inputs)
    yield "\nwhat may follow"
    (_, logits), *_ = read_out(streams[-1], **model)
    sampler = Sampler(**args.sampling)
    logits = penalize(logits[0], inputs, sampler.penalty)
    p = probabilities(logits, sampler.temperature or 1.0, **sampler.cut)
    best = top(p, min(args.top, len(p)))
    for id_ in best[p[best] > 0]:
        bar = "█" * max(1, round(40 * p[id_] / p[best[0]]))
        yield f"  {100 * p[id_]:5.1f} %  {spell(encoder, id_):15} {bar}"
    yield "\nwhat would follow, if the model ended after"
    for i, (ids, some) in enumerate(zip(*lens(streams, slice(None), model))):
        name = f"block {(i - 1) // 2} {'MLP' if i % 2 == 0 else 'attention'}" if i else "embedding"
        three = [f"{100 * x:5.1f} % {spell(encoder, id_):15}" for id_, x in zip(ids[0], some[0])]
        yield f"  {name:19}{' '.join(three[:3])}".rstrip()


def page(inputs, n_cut, encoder, hparams, params, args):
    """Complete the prompt, from which n_cut ids were cut off, and look at it. -> bytes of HTML"""
    n_ctx, n, sampler = hparams["n_ctx"], args.n_tokens_to_generate, Sampler(**args.sampling)
    n = n_ctx - len(inputs) if n < 0 else n
    done = Completion(encoder, hparams["eos_token_ids"], args.stop)
    for id_, logits in choices(inputs, params, hparams, n, sampler, Drafts()):
        done.add(id_, logits)
        if done.ended != "length":
            break
    ids = [*inputs, *done.ids]
    # Past the context the window jumps, and all in it is computed anew: the page keeps the window
    # in which the continuation began.
    seen, beyond = ids[:n_ctx], ids[n_ctx:]
    next_id = beyond[0] if beyond else None
    arrays, fits, notes = record(seen, len(inputs), next_id, params, hparams)
    facts = {
        "model": args.model_size,
        "ids": seen,
        "n_cut": n_cut,
        "beyond": beyond,
        "n_prompt": len(inputs),
        "ended": done.ended,
        "sampling": {**args.sampling, "temperature": sampler.temperature, "seed": sampler.seed},
        "hparams": hparams,
        "fits": fits,
        "notes": notes,
    }
    return build(facts, arrays, encoder)


def parser():
    options = command.new_parser(
        "explain.py",
        "Show what a model does with a prompt: its tokens, what may follow them and how the model "
        "gets there, on standard output; with --page all of it and a completion, as one HTML file.",
    )
    add = options.add_argument
    add("prompt", help="text to look at; -: read it from standard input")
    add("--page", metavar="FILE", help="write the page; - is standard output")
    add(
        "--top",
        type=command.number(int, 1),
        default=10,
        metavar="N",
        help="without --page: show N of the tokens that may follow (10)",
    )
    command.completion_options(options)
    return options


def work(args):
    """Load the model and explain a prompt."""
    args.sampling = command.sampling(args)
    encoder, hparams, params = command.load(args)
    prompt = args.prompt
    if prompt == "-":
        prompt = re.sub(r"\r?\n\Z", "", command.read_stdin())
    inputs = prompt_ids(prompt, encoder, hparams)
    n_cut = max(0, len(encoder.encode(prompt)) - len(inputs))
    if args.page is None:
        print("\n".join(short_form(inputs, encoder, hparams, params, args)))
    elif args.page == "-":
        sys.stdout.buffer.write(page(inputs, n_cut, encoder, hparams, params, args))
    else:
        with startup.interruptible(), write_atomic(args.page) as file:
            file.write(page(inputs, n_cut, encoder, hparams, params, args))
        command.say(f"{args.page} is written: open it in a browser")


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    return command.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
