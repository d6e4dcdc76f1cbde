"""The goals, and whether the figures of a benchmark reach them on the machine that it ran on."""

from statistics import median

DECODING, DRAFTS = 0.95, 0.98  # at least; speed of llama.cpp F32 = 1; speed without drafts = 1
WHOLE = {"llama.cpp F32": 1.0, "transformers": 0.2}  # at most; their seconds = 1
PROMPT, PROMPT_OF_LARGE = 1.0, 1.15  # at most; PyTorch's seconds = 1; 124M, larger models
MEMORY = 1.12  # at most; the weights = 1
STEP = {"0.8M": 0.85, "4.8M": 1.0, "10.8M": 1.0}  # at least; PyTorch's speed = 1


def verdict(what, figure, at_most=None, at_least=None):
    """One line: the goal, and the figure that reaches or misses it."""
    limit = f"at most {at_most}" if at_least is None else f"at least {at_least}"
    reached = figure <= at_most if at_least is None else figure >= at_least
    return f"- goal {what} {limit}: {'reached' if reached else 'missed'} ({figure:.2f})"


def of_peers(title, results, weights):
    """Verdicts on what peers.py measured: of one model, beside the peers that took part.

    title: "124M, repeats"; weights: MiB.
    """
    plain, ours = results["NumPy plain"], results.get("NumPy", results["NumPy plain"])
    prompt, lines = PROMPT if title.startswith("124M") else PROMPT_OF_LARGE, []

    def seconds(method, kind, n=None):
        found = method[kind][n] if n else [seconds for seconds, _ in method[kind]]
        return median(found)

    for n in plain["decode"]:
        here = seconds(plain, "decode", n)
        if "llama.cpp F32" in results:
            ratio = seconds(results["llama.cpp F32"], "decode", n) / here
            what = f"{title}: plain decoding of {n} tokens, llama.cpp F32's speed = 1,"
            lines.append(verdict(what, ratio, at_least=DECODING))
        ratio = here / seconds(ours, "decode", n)
        what = f"{title}: drafts, {n} tokens, the speed without = 1,"
        lines.append(verdict(what, ratio, at_least=DRAFTS))
    for n in plain["prefill"] if "transformers" in results else []:
        ratio = seconds(ours, "prefill", n) / seconds(results["transformers"], "prefill", n)
        lines.append(verdict(f"{title}: prompt of {n}, PyTorch's time = 1,", ratio, prompt))
    for peer, limit in WHOLE.items() if ours["whole"] else ():
        if peer in results:
            ratio = seconds(ours, "whole") / seconds(results[peer], "whole")
            lines.append(verdict(f"{title}: whole process, {peer}'s time = 1,", ratio, limit))
    if ours["whole"]:
        ratio = median(peak for _, peak in ours["whole"]) / weights
        lines.append(verdict(f"{title}: peak memory, the weights = 1,", ratio, MEMORY))
    return lines


def of_step(name, ratio):
    return verdict(f"{name}: training step, PyTorch's speed = 1,", ratio, at_least=STEP[name])
