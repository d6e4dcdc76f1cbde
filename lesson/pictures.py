"""Draw the lesson's pictures. Each function takes values from run.py and returns an SVG.

The same values give the same file. Needs matplotlib. Colour-blind readers can tell the colours
apart: maps are blue, or purple and orange, and lines have Okabe and Ito's blue and vermilion. The
background is white, because a reader's page may be dark.
"""

import io

import matplotlib
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, RED, GREY = "#0072B2", "#D55E00", "#888888"
STYLE = {
    "svg.hashsalt": "lesson",  # Otherwise the file would contain random names.
    "svg.fonttype": "path",  # A reader may not have the font.
    "text.parse_math": False,  # A token may contain dollar signs.
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


CHAPTERS = {  # what the drawing of the model marks in each chapter
    "The whole model": [],
    "Text to numbers": ["text", "ids"],
    "Numbers with a meaning": ["embedding + position", "layer norm"],
    "Attention": ["attention"],
    "The network": ["+", "MLP", "blocks", "product with all embeddings"],
    "Numbers to text": ["next token", "loop"],
    "Beyond": ["gradient"],
}


@picture
def model(figure, chapter, text, ids, shape, n_blocks, choice):
    """Draw the model from top to bottom. shape: of the embeddings; choice: the next token."""
    axes = one(figure, 4.2, 4.4)
    axes.set(xlim=(0, 4.2), ylim=(9.45, -0.45))
    axes.axis("off")
    marked, stream = CHAPTERS[chapter], 0.85  # the residual stream flows down at this x

    def color(name):
        return BLUE if name in marked else GREY

    def box(name, left, right, y, inside):
        fill, width = ("#CCE3F0", 1.8) if name in marked else ("white", 1)
        line = {"edgecolor": color(name), "linewidth": width, "facecolor": fill, "zorder": 2}
        axes.add_patch(Rectangle((left, y - 0.34), right - left, 0.68, **line))
        inside = inside if len(inside) < 28 else inside[:27] + "…"
        axes.text((left + right) / 2, y, inside, ha="center", va="center", zorder=3)

    def arrow(name, *points):
        line = {"color": color(name), "linewidth": 1.8 if name in marked else 1}
        if name == "stream" and "gradient" in marked:  # from the loss back to the tables
            points, line["color"] = points[::-1], RED
        axes.plot(*zip(*points), **line, zorder=1)
        head = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **line}
        axes.annotate("", points[-1], points[-2], arrowprops=head)

    n, (n_vocab, e) = len(ids), shape
    # One row for each step outside the blocks: its name, what its box holds, and its result.
    for y, name, inside, result in (
        (0, "text", repr(text), "text"),
        (1, "ids", " ".join(map(str, ids)), f"ids [{n}]"),
        (2, "embedding + position", "embedding + position", f"rows [{n}, {e}]"),
        (7, "layer norm", "layer norm", f"[{n}, {e}]"),
        (
            8,
            "product with all embeddings",
            "product with all embeddings",
            f"logits [{n}, {n_vocab}]",
        ),
        (9, "next token", repr(choice), "next token"),
    ):
        box(name, 0.4, 2.75, y, inside)
        axes.text(2.85, y, result, va="center", color="#555555")
    frame = {"facecolor": "none", "edgecolor": color("blocks"), "linestyle": "--"}
    axes.add_patch(Rectangle((0.4, 2.5), 3.75, 4, **frame))
    axes.text(4.08, 6.2, f"{n_blocks} blocks", ha="right", va="center", color=color("blocks"))
    # A half block reads the stream, and adds its result to it one row below.
    for y, above, part in (3, 2.34, "attention"), (5, 4.24, "MLP"):
        box("layer norm", 1.4, 2.5, y, "layer norm")
        box(part, 2.9, 4, y, part)
        circle = {"boxstyle": "circle", "facecolor": "white", "edgecolor": color("+")}
        axes.text(stream, y + 1, "+", ha="center", va="center", bbox=circle)
        arrow("stream", (stream, above), (stream, y + 0.76))
        arrow("stream", (stream, y), (1.4, y))
        arrow("stream", (2.5, y), (2.9, y))
        arrow("stream", (3.45, y + 0.34), (3.45, y + 1), (stream + 0.12, y + 1))
    # The arrows between the rows. The last one leads from the next token back to the ids.
    for y in 0, 1, 6, 7, 8:
        start = 0.24 if y == 6 else 0.34
        arrow("stream" if y in (6, 7) else "other", (stream, y + start), (stream, y + 0.66))
    arrow("loop", (0.4, 9), (0.15, 9), (0.15, 1), (0.4, 1))


@picture
def merges(figure, steps):
    axes = one(figure, 4.2, 0.36 * len(steps))
    for level, tokens in enumerate(steps):
        left = 0
        for token in tokens:
            new = level == 0 or token not in steps[level - 1]
            font = {"family": "monospace", "color": "black" if new else GREY}
            axes.text(left + len(token) / 2, level, token, ha="center", va="center", **font)
            fill, edge = ("#CCE3F0", BLUE) if new and level else ("white", GREY)
            corner, width = (left + 0.04, level - 0.4), len(token) - 0.08
            box = Rectangle(corner, width, 0.8, facecolor=fill, edgecolor=edge)
            axes.add_patch(box)
            left += len(token)
    axes.set(xlim=(0, sum(map(len, steps[0]))), ylim=(len(steps) - 0.5, -0.5))
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
    axes = one(figure, 4.6, 3, xlabel="part", ylabel="length of the row")
    names = ["embedding"]
    for i in range(len(lengths) // 2):
        names += [f"attention {i}", f"MLP {i}"]
    axes.plot(lengths, color=BLUE, marker="o", markersize=4, label="stream")
    axes.bar(range(len(added)), added, color=RED, alpha=0.6, label="added by the part")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.legend(frameon=False)


@picture
def switch(figure, at, curve, edges, counts):
    axes = one(figure, 4.2, 2.6, xlabel="input", ylabel="output")
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
    labels = {"xlabel": "token of the prompt", "ylabel": "number of blocks"}
    axes = one(figure, 0.6 * len(tokens) + 0.6, 0.42 * len(best) + 0.6, **labels)
    colours = PowerNorm(0.5, 0, 1)  # small probabilities differ, too
    grid(axes, p, [*range(len(best))], [*map(shown, tokens)], cmap="Blues", norm=colours)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    for i, row in enumerate(best):
        for j, token in enumerate(row):
            font = {"color": "white" if p[i][j] > 0.3 else "black", "fontsize": 8}
            cell = f"{shown(token)}\n{100 * p[i][j]:.0f} %"
            axes.text(j, i, cell, ha="center", va="center", **font)


@picture
def temperatures(figure, tokens, curves):
    """Draw a panel for each temperature. curves: percent for each token, and for all others."""
    figure.set_size_inches(4.2, 2.6)
    names = [*map(shown, tokens), "all others"]
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, percents, temperature in zip(panels, curves, (0.5, 1, 2)):
        axes.barh(range(len(names)), percents, color=[BLUE] * len(tokens) + [GREY])
        for i, percent in enumerate(percents):
            axes.text(percent + 3, i, f"{percent:.0f} %", va="center", fontsize=8)
        axes.set_title(f"temperature {temperature}", fontsize=9)
        axes.set(xlim=(0, 140), xticks=[])
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()  # and those beside it


@picture
def context(figure, seen, losses):
    axes = one(figure, 4.2, 2.4, xlabel="tokens that the model sees", ylabel="nats per token")
    axes.plot(seen, losses, color=BLUE, marker="o", markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(seen, map(str, seen))
    axes.minorticks_off()


@picture
def cache(figure, lengths, plain, cached):
    axes = one(figure, 4.2, 2.6, xlabel="tokens in the text", ylabel="million multiplications")
    axes.plot(lengths, plain, color=RED, linestyle="--", label="without a cache")
    axes.plot(lengths, cached, color=BLUE, label="with a cache")
    axes.legend(frameon=False)
