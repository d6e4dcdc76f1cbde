"""Draw the lesson's pictures. Each function takes values from run.py and returns an SVG.

The same values give the same file. Needs matplotlib. Colour-blind readers can tell the colours
apart: maps are blue, or purple and orange, and lines have Okabe and Ito's blue and vermilion. The
background is white, because a reader's page may be dark.
"""

import io

import matplotlib
from matplotlib.figure import Figure

BLUE, RED, GREY = "#0072B2", "#D55E00", "#888888"
STYLE = {
    "svg.hashsalt": "lesson",  # Otherwise the file would contain random names.
    "svg.fonttype": "path",  # A reader may not have the font.
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def picture(draw):
    """Decorate a function that draws on a figure, so that it returns the figure as SVG."""

    def drawn(*values):
        with matplotlib.rc_context(STYLE):
            figure = Figure(facecolor="white", layout="constrained")
            draw(figure, *(x.tolist() if hasattr(x, "tolist") else x for x in values))
            file = io.StringIO()
            no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", metadata=no_metadata)
        return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())

    return drawn


def one(figure, width, height, **labels):
    """Return the only axes of a figure of this size in inches."""
    figure.set_size_inches(width, height)
    return figure.subplots(subplot_kw=labels)


def grid(axes, rows, name_of_row=None, name_of_column=None, **colours):
    """Draw a map with a coloured cell for each number, and tokens beside its rows and columns."""
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", **colours)
    axes.set_xticks(range(len(name_of_column or [])), name_of_column or [])
    axes.set_yticks(range(len(name_of_row or [])), name_of_row or [])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def shown(text):
    """Return a token with all its characters visible: " be" as "␣be"."""
    return "".join(char if char.isprintable() else "\\n" for char in text).replace(" ", "␣")


def diverging(rows):
    """Return the options of a map whose colours go from purple, below 0, to orange."""
    largest = max(abs(x) for row in rows for x in row)
    return {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}


@picture
def merges(figure, steps):
    axes = one(figure, 6.4, 0.42 * len(steps) + 0.3)
    for level, tokens in enumerate(steps):
        left = 0
        for token in tokens:
            new = level == 0 or token not in steps[level - 1]
            font = {"family": "monospace", "color": "black" if new else GREY}
            axes.text(left + len(token) / 2, level, token, ha="center", va="center", **font)
            fill, edge = ("#CCE3F0", BLUE) if new and level else ("white", GREY)
            corner, width = (left + 0.04, level - 0.4), len(token) - 0.08
            box = matplotlib.patches.Rectangle(corner, width, 0.8, facecolor=fill, edgecolor=edge)
            axes.add_patch(box)
            left += len(token)
    axes.set(xlim=(0, sum(map(len, steps[0]))), ylim=(-0.5, len(steps) - 0.5))
    axes.axis("off")


@picture
def positions(figure, similarity, every):
    axes = one(figure, 4.4, 3.6, xlabel="position", ylabel="position")
    end = every * len(similarity)
    image = axes.imshow(
        similarity, extent=(0, end, end, 0), interpolation="nearest", **diverging(similarity)
    )
    figure.colorbar(image, label="cosine")


@picture
def strips(figure, q, k, v, tokens):
    figure.set_size_inches(6.4, 3.4)
    for axes, rows, name in zip(
        figure.subplots(3, sharex=True), (q, k, v), ("query", "key", "value")
    ):
        image = grid(axes, rows, [*map(shown, tokens)], **diverging(q + k + v))
        axes.set_title(name, fontsize=9)
    figure.colorbar(image, ax=figure.axes)


@picture
def shares(figure, scores, weights, tokens):
    figure.set_size_inches(6.4, 3.1)
    names = [*map(shown, tokens)]
    maps = (scores, "scores", diverging(scores)), (weights, "pattern", {"cmap": "Blues", "vmin": 0})
    for axes, (rows, title, colours) in zip(figure.subplots(1, 2), maps):
        grid(axes, rows, names, names, **colours)
        axes.set(title=title, xlabel="looks at")
        largest = max(abs(x) for row in rows for x in row)
        for i, row in enumerate(rows):
            for j, x in enumerate(row):
                color = "white" if abs(x) > 0.6 * largest else "black"
                axes.text(j, i, f"{x:.2f}", ha="center", va="center", color=color, fontsize=7)


@picture
def heads(figure, maps, tokens):
    n_blocks, n_heads = len(maps), len(maps[0])
    figure.set_size_inches(6.4, 1.5 * n_blocks)
    names = [*map(shown, tokens)]
    for i, row in enumerate(figure.subplots(n_blocks, n_heads, squeeze=False)):
        for j, axes in enumerate(row):
            down, across = names if j == 0 else None, names if i == n_blocks - 1 else None
            image = grid(axes, maps[i][j], down, across, cmap="Blues", vmin=0, vmax=1)
            axes.tick_params(axis="x", rotation=90)
            axes.set_title(f"block {i}, head {j}", fontsize=7)
    figure.colorbar(image, ax=figure.axes, label="attention weight", aspect=60, fraction=0.03)


@picture
def stream(figure, lengths, added):
    axes = one(figure, 6.4, 2.8, xlabel="part", ylabel="length of the row")
    names = ["embedding"]
    for i in range(len(lengths) // 2):
        names += [f"attention {i}", f"MLP {i}"]
    axes.plot(lengths, color=BLUE, marker="o", markersize=4, label="stream")
    axes.bar(range(len(added)), added, color=RED, alpha=0.6, label="added by the part")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.legend(frameon=False)


@picture
def switch(figure, at, curve, edges, counts):
    axes = one(figure, 5.2, 2.8, xlabel="input", ylabel="output")
    behind = axes.twinx()
    behind.stairs(counts, edges, fill=True, color=GREY, alpha=0.3)
    behind.set_ylabel("number of inputs", color=GREY)
    axes.plot(at, curve, color=BLUE, label="GELU")
    axes.plot(at, [max(x, 0) for x in at], color=RED, linestyle="--", label="ReLU")
    axes.set_zorder(1)
    axes.patch.set_visible(False)
    axes.legend(frameon=False, loc="upper left")


@picture
def lens(figure, best, p, tokens):
    axes = one(figure, 6.4, 0.34 * len(best) + 0.7, xlabel="token of the prompt")
    depths = [f"after {i} blocks" for i in range(len(best))]
    image = grid(axes, p, depths, [*map(shown, tokens)], cmap="Blues", vmin=0, vmax=1)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    for i, row in enumerate(best):
        for j, token in enumerate(row):
            color = "white" if p[i][j] > 0.6 else "black"
            axes.text(j, i, shown(token), ha="center", va="center", color=color)
    figure.colorbar(image, label="probability")


@picture
def best(figure, tokens, p):
    axes = one(figure, 5.2, 2.4, xlabel="probability in percent")
    axes.barh(range(len(p)), p, color=BLUE)
    axes.set_yticks(range(len(p)), [*map(shown, tokens)])
    axes.invert_yaxis()


@picture
def temperatures(figure, ranks, curves):
    axes = one(figure, 5.2, 2.8, xlabel="most likely tokens", ylabel="their total probability")
    for curve, color, line, t in zip(curves, (BLUE, "black", RED), ("--", "-", ":"), (0.5, 1, 2)):
        axes.plot(ranks, curve, color=color, linestyle=line, label=f"temperature {t}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)


@picture
def context(figure, seen, losses):
    axes = one(figure, 5.2, 2.4, xlabel="tokens that the model sees", ylabel="nats per token")
    axes.plot(seen, losses, color=BLUE, marker="o", markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(seen, map(str, seen))
    axes.minorticks_off()


@picture
def cache(figure, lengths, plain, cached):
    axes = one(figure, 5.2, 2.6, xlabel="tokens in the text", ylabel="million multiplications")
    axes.plot(lengths, plain, color=RED, linestyle="--", label="without a cache")
    axes.plot(lengths, cached, color=BLUE, label="with a cache")
    axes.legend(frameon=False)


@picture
def training(figure, shown, held_out):
    figure.set_size_inches(6.4, 2.4)
    curves = ("shown", shown, BLUE), ("held out", held_out, RED)
    for axes, (name, losses, color) in zip(figure.subplots(1, 2), curves):
        axes.plot(losses, color=color, marker="o", markersize=4)
        span = max(losses) - min(losses)
        axes.set_title(f"{name}: a range of {span:.2f} nats", fontsize=9)
        axes.set(xlabel="steps", ylabel="nats per token")


@picture
def breaks(figure, names, costs, blind):
    axes = one(figure, 6.4, 4.0, xlabel="nats per token")
    colours = [GREY if name == "unchanged" else BLUE for name in names]
    axes.barh(range(len(costs)), costs, color=colours)
    axes.axvline(blind, color=RED, linestyle="--", label="blind guessing")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.06 * max(costs))
    for i, cost in enumerate(costs):
        axes.text(cost, i, f"{cost:.2f} ", va="center", ha="right", color="white", fontsize=7)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
