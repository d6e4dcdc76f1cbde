"""Tests of the page of explain.py in a real browser: numbers, pictures, controls, no requests.

Needs playwright and axe-playwright-python (requirements-dev.txt) and a Chromium: see find_browser.
"""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, LETTERS, ROOT, model_options, random_params, run
from pico_trace import Pass

import explain
import gpt2
from encoder import learn_bpe
from model_files.directory import save_model
from page import data, record
from utils import load_encoder_hparams_and_params

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

SHIPPED = "--model_size", "shakespeare", "--models_dir", ROOT / "models"
PHONE = {"width": 375, "height": 800}
NASTY = [
    "</script><script>document.title = 'broken'</script>",
    "</title><b>bold</b> &amp; <!-- --> {{data}}",
    "שלום עולם \u202e abc \u2066",
    "\ud83d",  # half an emoji
    "\0\x01\x1b[31m \x7f",
    "😀é\u0301",
    "a",
    "",
]


def find_browser(chromium):
    """Start the system's chromium or google-chrome, or the browser that playwright installed."""
    names = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
    paths = [path for name in names if (path := shutil.which(name))]
    choices = [*({"executable_path": path} for path in paths), {}, {"channel": "chrome"}]
    for choice in choices:
        try:
            return chromium.launch(args=["--no-sandbox"], **choice)
        except sync_api.Error:
            pass
    pytest.skip("no browser: apt-get install chromium, or python -m playwright install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = find_browser(playwright.chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def make_page(tmp_path_factory):
    """Return a function that runs explain.py with some arguments and returns the page's path."""

    def make(*args):
        path = tmp_path_factory.mktemp("page") / "page.html"
        done = run("explain.py", *args, "--page", path)
        assert done.returncode == 0, done.stderr
        return path

    return make


@pytest.fixture(scope="module")
def shipped():
    return load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "explain.npz")


@pytest.fixture(scope="module")
def golden_path(make_page, shipped, golden):
    text = shipped[0].decode(golden["ids"].tolist())
    return make_page(text, *SHIPPED, "--n_tokens_to_generate", "0")


@pytest.fixture(scope="module")
def truth(shipped, golden):
    _, hparams, params = shipped
    return Pass(golden["ids"], params, hparams)


@pytest.fixture(scope="module")
def drawn_path(make_page):
    """Return the path of a page with a prompt and a sampled continuation."""
    return make_page("To be, or not to", *SHIPPED, "--n_tokens_to_generate", "12", "--seed", "4")


@pytest.fixture
def visit(browser):
    """Return a function that opens a page offline. Errors and requests make the test fail."""
    contexts, troubles, requests, loads = [], [], [], []

    def visit(path, hash="", **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda x: x.type == "error" and troubles.append(x.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("load", lambda: loads.append(1))
        page.goto(f"{path.as_uri()}{hash}")
        page.wait_for_selector("html[data-drawn]", timeout=30000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []
    assert len(requests) == len(loads) >= len(contexts)


def array(page, name):
    """Return an array of the page."""
    values, shape = page.evaluate(f"[Array.from(arrays.{name}.values), arrays.{name}.shape]")
    return np.array(values).reshape(shape)


# Numbers


def test_the_page_makes_no_requests_and_forbids_them(visit, golden_path):
    page = visit(golden_path)
    text = golden_path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "://" not in text
    assert page.title().endswith("GPT-2 explained") and not page.locator("#lack").count()


def test_the_policy_of_the_page_refuses_other_scripts_and_requests(browser, golden_path, tmp_path):
    path = tmp_path / "page.html"
    text = golden_path.read_text(encoding="utf-8")
    more = "<script>window.foreign = 1</script><img src='https://localhost/x.png'></body>"
    path.write_text(text.replace("</body>", more), encoding="utf-8")
    page, messages = browser.new_page(), []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate("window.foreign") is None
    assert sum("Content Security Policy" in text for text in messages) == 2
    page.close()


def test_attention_agrees_with_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    n_layer, n_head, n, _ = golden["weights"].shape
    found = np.zeros_like(golden["weights"])
    rows = page.evaluate(
        "range(n_layer).map(layer => range(n_head).map(head => "
        "range(n).map(i => [...patternOf(layer, head, i)])))"
    )
    for layer, heads in enumerate(rows):
        for head, lines in enumerate(heads):
            for i, line in enumerate(lines):
                found[layer, head, i, : i + 1] = line
    assert page.evaluate("ids") == golden["ids"].tolist()
    np.testing.assert_allclose(found, golden["weights"], rtol=0, atol=0.004)


def test_the_lens_agrees_with_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    assert np.mean(array(page, "lens_ids")[..., 0] == golden["lens_ids"][..., 0]) > 0.999
    p = (array(page, "lens_p")[..., 0] / 65535) ** 2
    np.testing.assert_allclose(p, golden["lens_p"][..., 0], rtol=0, atol=1e-4)


def test_contributions_add_up_to_the_logit_of_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    n = len(golden["ids"])
    for c in range(10):
        sum_ = page.evaluate(f"attributionOf({n - 1}, {c}, null).reduce((a, b) => a + b)")
        candidate = page.evaluate(f"candidatesAt({n - 1})[{c}]")
        assert abs(sum_ - golden["logits"][candidate["id"]]) < 1e-4
        assert abs(candidate["logit"] - golden["logits"][candidate["id"]]) < 1e-4


def test_ablation_agrees_with_transformers_without_that_part(visit, golden_path, golden):
    page = visit(golden_path)
    found = np.array(page.evaluate("range(n).map(i => ablationOf(i, 0))")).T
    np.testing.assert_allclose(found, golden["knocked"], rtol=0, atol=1e-4)
    names = page.evaluate("ablatedNames()")
    assert names[:6] == [*(f"block 0 head {i}" for i in range(4)), "block 0 MLP", "block 1 head 0"]


def test_queries_times_keys_give_the_scores_behind_the_weights(visit, golden_path, golden):
    page = visit(golden_path)
    i = len(golden["ids"]) - 1
    for layer, head in (0, 0), (3, 2), (5, 3):
        scores = page.evaluate(
            f"range({i + 1}).map(j => productsOf({layer}, {head}, {i}, j)"
            ".reduce((sum, x) => sum + x.product, 0))"
        )
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights, golden["weights"][layer, head, i], rtol=0, atol=0.02)


@pytest.mark.parametrize("at_the_prompt", [True, False])
def test_sliders_give_the_probabilities_of_gpt2(at_the_prompt, visit, drawn_path, shipped):
    _, hparams, params = shipped
    page = visit(drawn_path)
    i = page.evaluate("facts.n_prompt") - (1 if at_the_prompt else 3)
    ids = page.evaluate("ids")[: i + 1]
    logits = gpt2.gpt2(ids, **params, hparams=hparams)[-1]
    rng = np.random.default_rng(0)
    for _ in range(100):
        options = {
            "temperature": float(rng.choice([0.1, 0.3, 0.7, 1, 1.5, 3]) * rng.uniform(0.8, 1.2)),
            "top_k": int(rng.choice([1, 2, 10, 40, 300, 1500, 2048])),
            "top_p": float(rng.choice([1, 0.999, 0.9, 0, rng.uniform()])),
            "min_p": float(rng.choice([0, 0, 0.01, rng.uniform()])),
        }
        found = page.evaluate(f"probabilities(distributionAt({i}), {json.dumps(options)})")
        p = gpt2.probabilities(logits, **options)
        named = {x["id"]: x["p"] for x in found if x["id"] is not None}
        # At the end of the prompt the page has all logits. Elsewhere a limit may cut a bin in two.
        error = max(abs(x - p[id_]) for id_, x in named.items())
        assert error < (1e-4 if at_the_prompt else 2e-3), options
        rest = sum(x["p"] * x["kept"] for x in found if x["id"] is None)
        assert abs(sum(named.values()) + rest - 1) < 1e-9
        assert abs(rest - (1 - p[list(named)].sum())) < (1e-9 if at_the_prompt else 1e-2), options
        if at_the_prompt:
            assert sum(x["kept"] for x in found) == np.count_nonzero(p)


def test_the_page_links_to_the_lesson_if_the_project_has_an_address(
    tmp_path, monkeypatch, visit, models_dir
):
    path = tmp_path / "page.html"
    monkeypatch.setattr(data, "ADDRESS", "https://example.org/main")
    args = "low", *map(str, model_options(models_dir)), "--page", str(path)
    assert explain.main(args) == 0
    links = visit(path).locator(".step a")
    text = (ROOT / "lesson" / "README.md").read_text("utf-8") if lesson_is_there() else None
    for link in links.all():
        start, anchor = link.get_attribute("href").split("#")
        assert start == "https://example.org/main/lesson/README.md"
        assert link.inner_text() == f"Lesson, step {anchor.split('-')[0]}."
        assert text is None or f"](#{anchor})" in text
    assert links.count() == 8


def lesson_is_there():
    return (ROOT / "lesson" / "README.md").exists()


def test_moving_a_slider_changes_what_is_listed(visit, drawn_path, shipped):
    _, hparams, params = shipped
    page = visit(drawn_path)
    page.locator("#temperature").fill("0.5")
    page.locator("#min_p").fill("0.2")
    ids = page.evaluate("ids.slice(0, facts.n_prompt)")
    logits = gpt2.gpt2(ids, **params, hparams=hparams)[-1]
    p = gpt2.probabilities(logits, temperature=0.5, min_p=0.2)
    shown = page.locator("#choices tbody tr").count()
    assert shown == np.count_nonzero(p)
    first = page.locator("#choices tbody tr").first.inner_text()
    assert f"{100 * p.max():.1f} %" in first
    page.locator("#draw").click()
    assert page.locator("#drawn").inner_text().startswith("Drawn: ")
    page.locator("#temperature").fill("0")
    assert page.locator("#choices tbody tr").count() == 1
    page.locator("#top_k").fill("50")  # the middle of a logarithmic scale up to 2048 tokens
    assert page.evaluate("[state.top_k, +$('top_k').value]") == [45, 50]


SETTINGS = ["--temperature", "0.8", "--top_k", "50", "--seed", "3"], ["--repetition_penalty", "1.3"]


@pytest.mark.parametrize("options", SETTINGS)
def test_the_continuation_is_that_of_the_command(options, visit, make_page, shipped):
    args = ["ROMEO:", *SHIPPED, "--n_tokens_to_generate", "20", *options]
    page = visit(make_page(*args))
    how = "always the most likely one"
    if "--seed" in options:
        how = "drawn at temperature 0.8 with seed 3"
    assert f"continued it with 20 ({how})." in page.locator("#about").inner_text()
    printed = json.loads(run("gpt2.py", *args, "--json").stdout)
    n_prompt = page.evaluate("facts.n_prompt")
    assert page.evaluate("ids")[n_prompt:] == printed["ids"]
    if "--repetition_penalty" in options:
        _, hparams, params = shipped
        ids = page.evaluate("ids.slice(0, facts.n_prompt)")
        exact = gpt2.penalize(gpt2.gpt2(ids, **params, hparams=hparams)[-1], ids, 1.3)
        found = page.evaluate("distributionAt(facts.n_prompt - 1)")
        np.testing.assert_allclose([x["logit"] for x in found], -np.sort(-exact), atol=1e-4)
    # With the sliders at the command's settings, the chosen tokens can be drawn.
    found = page.evaluate(
        "ids.slice(facts.n_prompt).map((id, i) => probabilities("
        "distributionAt(facts.n_prompt - 1 + i), state).findIndex(x => x.id === id && x.p > 0))"
    )
    assert len(found) == len(printed["ids"]) and min(found) >= 0
    assert "--seed" in options or max(found) == 0


# Pictures


def map_geometry(page):
    """Return where the cells of the large map begin, and the side of a cell."""
    width, n = page.evaluate("[$('map').width, n]")
    left = 90 if (width - 90) % n == 0 else 0
    return left, (width - left) / n


def cell(page, id_, part, n_columns=5):
    """Return the middle of a cell of the wall or of a grid. Cells count row by row."""
    width, margin = page.evaluate("id => [$(id).width, MARGIN]", id_)
    side = (width - margin) / n_columns
    row, column = divmod(part, n_columns)
    return margin + (column + 0.5) * side, margin + (row + 0.5) * side


def pixel(page, id_, x, y):
    script = "([id, x, y]) => [...$(id).getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    return page.evaluate(script, [id_, x, y])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pixels_have_the_colour_of_their_value(scheme, visit, golden_path, golden):
    page = visit(golden_path, "#layer=4&head=3", color_scheme=scheme)
    n = len(golden["ids"])
    colours = np.array(page.evaluate("palette()"))
    left, side = map_geometry(page)
    rng = np.random.default_rng(0)
    for i, j in rng.integers(0, n, size=(60, 2)).tolist():
        if i == n - 1:  # the selected row has frames on its cells
            continue
        byte = round(255 * golden["weights"][4, 3, i, j] ** 0.5)
        found = pixel(page, "map", left + (j + 0.5) * side, left + (i + 0.5) * side)
        near = colours[max(0, byte - 1) : byte + 2]
        assert found in near.tolist(), (i, j)
    # The wall has a smaller map of this head in its row and column.
    side, margin = page.evaluate("[wall.side, MARGIN]")
    picture = [pixel(page, "wall", margin + side * 3 + 2, margin + side * 4 + 2)]
    assert picture[0] == colours[255].tolist()  # the first token can only look at itself
    numbers = page.evaluate("attributionOf(n - 1, 0, candidatesAt(0).length)")[2:-1]
    largest = max(map(abs, numbers))
    for part in 0, 7, 19:
        expected = page.evaluate(f"colour('two', {numbers[part] / largest})")
        assert pixel(page, "attribution-map", *cell(page, "attribution-map", part)) == expected


@pytest.mark.parametrize("carried", [False, True])
def test_the_wall_has_the_map_of_each_head(carried, visit, golden_path, truth):
    page = visit(golden_path, "#carried=true" if carried else "")
    colours = np.array(page.evaluate("palette()"))
    side, margin, n = page.evaluate("[wall.side, MARGIN, n]")
    inner = side - 3
    rng = np.random.default_rng(0)
    for layer, head in (0, 0), (1, 3), (5, 2), (3, 1):
        pattern = truth.patterns[layer][head]
        if carried:
            pattern = pattern * truth.value_norms(layer)[head]
            pattern /= pattern.sum(-1, keepdims=True)
        for i, j in rng.integers(0, n, size=(25, 2)).tolist():
            x = margin + head * side + (j + 0.5) * inner / n
            y = margin + layer * side + (i + 0.5) * inner / n
            byte = round(255 * pattern[i, j] ** 0.5)
            near = colours[max(0, byte - 3) : byte + 4].tolist()
            assert pixel(page, "wall", int(x), int(y)) in near, (layer, head, i, j)


@pytest.mark.parametrize("carried", [False, True])
def test_what_a_token_looks_at_most_is_listed(carried, visit, golden_path, truth):
    page = visit(golden_path, f"#token=26&layer=2&head=0&carried={str(carried).lower()}")
    pattern = truth.patterns[2][0, 26]
    if carried:
        pattern = pattern * truth.value_norms(2)[0]
        pattern /= pattern.sum()
    rows = rows_of(page, "#looks")
    shown = [int(row[0]) for row in rows]
    np.testing.assert_allclose(pattern[shown], -np.sort(-pattern)[:6], rtol=0, atol=0.01)
    np.testing.assert_allclose([number(row[2]) for row in rows], 100 * pattern[shown], atol=1)
    assert page.evaluate("keyOf()") == shown[0]


@pytest.mark.parametrize("i", [28, 3])
def test_columns_are_as_high_as_their_numbers(i, visit, golden_path, truth):
    """Positive numbers go up, negative ones down, on a scale from the lowest to the highest."""
    page = visit(golden_path, f"#token={i}&layer=2&head=1&key=1")
    streams = np.stack(truth.streams)[:, i]
    products = page.evaluate("productsOf(2, 1, state.token, 1).map(x => x.product)")
    for name, values in (
        ("products", products),
        ("norms", np.sqrt((streams**2).sum(-1))),
        ("added", np.sqrt((np.diff(streams, axis=0) ** 2).sum(-1))),
    ):
        high, low = max(0, *values), min(0, *values)
        scale = 116 / (high - low)
        zero, step = 2 + high * scale, page.evaluate(f"$('{name}').width") / len(values)
        for c, x in enumerate(values):
            if abs(x) * scale < 6:
                continue
            end, outwards = zero - x * scale, -np.sign(x)
            column = int((c + 0.4) * step)
            assert pixel(page, name, column, int(end - 2 * outwards)) != [0, 0, 0], (name, c)
            assert pixel(page, name, column, int(end + 3 * outwards)) == [0, 0, 0], (name, c)
    assert min(products) < 0 < max(products)


def test_the_products_are_of_query_and_key(visit, golden_path, shipped, golden):
    """The query belongs to the token that looks, and the key to the one that it looks at."""
    page = visit(golden_path)
    _, hparams, params = shipped
    block = list(record.run_with_trace(golden["ids"], params, hparams))[3]
    found = page.evaluate("productsOf(3, 2, 20, 7)")
    np.testing.assert_allclose([x["q"] for x in found], block.q[2, 20], rtol=0, atol=0.03)
    np.testing.assert_allclose([x["k"] for x in found], block.k[2, 7], rtol=0, atol=0.03)
    np.testing.assert_allclose([x["product"] for x in found], [x["q"] * x["k"] / 8 for x in found])


def test_carried_weights_are_weighted_by_what_the_head_writes(visit, golden_path, truth):
    page = visit(golden_path)
    for layer, head in (0, 1), (4, 3):
        norms = truth.value_norms(layer)[head]
        for i in 0, 9, 28:
            exact = truth.patterns[layer][head, i] * norms
            found = page.evaluate(f"[...patternOf({layer}, {head}, {i}, true)]")
            np.testing.assert_allclose(found, exact[: i + 1] / exact.sum(), rtol=0, atol=0.01)
            assert abs(sum(found) - 1) < 1e-6


def rows_of(page, selector):
    """Return the texts of a table's cells, row by row."""
    page.locator(
        f"{selector} tbody tr"
    ).first.wait_for()  # a table is filled after the click that opens it
    rows = page.locator(f"{selector} tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def number(text):
    """Return the number in a cell such as "−1.25", "15.5 %" or "< 0.01 %"."""
    return float(re.search(r"[\d.]+", text)[0]) * (-1 if "−" in text else 1)


def test_the_tables_of_the_stream_hold_its_lengths_and_neurons(visit, golden_path, truth):
    i, layer = 11, 2
    page = visit(golden_path, f"#token={i}&layer={layer}")
    page.locator("#norms-table summary").click()
    rows = rows_of(page, "#norms-table")
    names = [f"block {block} {half}" for block in range(6) for half in ("attention", "MLP")]
    assert [row[0] for row in rows] == ["embedding", *names]
    streams = [x[i] for x in truth.streams]
    lengths = [np.sqrt((x**2).sum()) for x in streams]
    np.testing.assert_allclose([number(row[1]) for row in rows], lengths, rtol=0, atol=0.006)
    added = [np.sqrt(((b - a) ** 2).sum()) for a, b in zip(streams, streams[1:])]
    np.testing.assert_allclose([number(row[2]) for row in rows[1:]], added, rtol=0, atol=0.006)
    written = np.sqrt((truth.written_by_neurons(layer, i) ** 2).sum(-1))
    best = np.argsort(-written)[:16]
    rows = rows_of(page, "#neurons")
    assert [int(row[0]) for row in rows] == best.tolist()
    activations = truth.neurons[layer][i, best]
    np.testing.assert_allclose([number(row[1]) for row in rows], activations, rtol=0, atol=0.006)
    widths = page.evaluate("[...$('neurons').querySelectorAll('.bar div')].map(x => x.style.width)")
    shown = [number(width) for width in widths]
    np.testing.assert_allclose(shown, 100 * written[best] / written[best[0]], rtol=0, atol=1)
    for neuron, row in zip(best, rows):
        tokens = page.evaluate("ids => ids.map(nameOf)", truth.promoted(layer, neuron)[:5].tolist())
        assert row[3].split() == tokens


def test_candidates_have_a_rank_a_probability_and_a_mark_if_they_follow(visit, drawn_path, shipped):
    _, hparams, params = shipped
    page = visit(drawn_path, "#token=2")
    ids = page.evaluate("ids")
    exact = Pass(ids, params, hparams)
    for i, what in (2, "is in the prompt"), (8, "was chosen"):
        page.locator(f"#token-{i}").click()
        p = gpt2.probabilities(exact.logits(exact.streams[-1])[i])
        order = np.argsort(-p).tolist()
        rows = rows_of(page, "#rivals")
        assert [int(row[2]) for row in rows[:9]] == order[:9]
        for row in rows:
            id_ = int(row[2])
            rank = order.index(id_) + 1
            assert row[0] == (str(rank) if rank <= 200 else "> 200")
            assert abs(number(row[3]) - 100 * p[id_]) < 0.06
            assert row[5] == (what if id_ == ids[i + 1] else "")
        assert ids[i + 1] in [int(row[2]) for row in rows]


def test_the_lens_shows_the_best_tokens_and_since_when(visit, golden_path, golden, truth):
    page = visit(golden_path)
    names = [f"block {block} {half}" for block in range(6) for half in ("attention", "MLP")]
    names = ["embedding", *names]
    page.locator("#lens-table summary").click()
    since = []
    for i in range(0, 29, 4):
        page.locator(f"#token-{i}").click()
        best = golden["lens_ids"][:, i, 0].tolist()
        step = max((k + 1 for k in range(13) if best[k] != best[-1]), default=0)
        since.append(step)
        assert page.locator("#lens-text strong").inner_text() == names[step]
    assert len(set(since)) > 3
    table = rows_of(page, "#lens-table")
    for name, x, row in zip(names, truth.streams, table):
        p = gpt2.probabilities(truth.logits(x)[28])
        assert row[0] == name
        for id_, text in zip(np.argsort(-p)[:5], row[1:]):
            assert text.startswith(page.evaluate(f"nameOf({id_})"))
            assert abs(number(text.split(" ")[-2]) - 100 * p[id_]) < 0.06
    assert page.locator("#lens-grid tbody th").all_inner_texts() == names  # the embedding on top
    column = page.locator("#lens-grid tbody tr td.selected")
    for x, shown, title in zip(
        truth.streams,
        column.locator("bdi").all_inner_texts(),
        column.evaluate_all("all => all.map(x => x.title)"),
    ):
        p = gpt2.probabilities(truth.logits(x)[28])
        assert shown == page.evaluate(f"nameOf({p.argmax()})")
        assert abs(number(title.split(" ")[-2]) - 100 * p.max()) < 0.06


def test_why_compares_with_what_is_selected(visit, golden_path, truth, golden):
    """The comparison is with the mean of all tokens, with nothing, or with another candidate."""
    i = 20
    logits = truth.logits(truth.streams[-1])[i]
    for versus, reference in (0, None), (1, 0.0), (4, 2):
        page = visit(golden_path, f"#token={i}&candidate=1&versus={versus}")
        ids = page.evaluate(f"candidatesAt({i}).map(x => x.id)")
        expected = logits[ids[1]] - (logits.mean() if reference is None else 0)
        if versus == 4:
            expected -= logits[ids[reference]]
        rows = rows_of(page, "#attribution-list")
        assert abs(number(rows[-1][1]) - expected) < 0.006
        assert rows[-1][0] == ("the logit" if versus == 1 else "sum")
        assert abs(sum(number(row[1]) for row in rows[:-1]) - expected) < 0.06


def bars_of(page, selector):
    """Return (class, start, length) of each bar of a table, the last two in percent."""
    script = """all => all.map(x => [
        x.className, parseFloat(x.style.marginLeft), parseFloat(x.style.width)])"""
    return page.locator(f"{selector} .bar div").evaluate_all(script)


def check_bars(bars, values):
    """Check that bars start in the middle for positive values and end there for negative ones."""
    longest = max(map(abs, values))
    for (name, start, width), x in zip(bars, values):
        assert name == ("negative" if x < 0 else "positive")
        assert abs(width - 50 * abs(x) / longest) < 0.5
        assert abs(start - (50 - width if x < 0 else 50)) < 1e-3
    assert len(bars) == len(values) and min(values) < 0 < max(values)


def test_bars_of_attribution_show_what_speaks_for_and_against(visit, golden_path):
    page = visit(golden_path, "#token=25&candidate=1")
    values = page.evaluate("attributionOf(25, 1, candidatesAt(25).length)")
    values = sorted(values, key=abs, reverse=True)[:10]
    rows = rows_of(page, "#attribution-list")
    np.testing.assert_allclose([number(row[1]) for row in rows[:10]], values, rtol=0, atol=0.006)
    check_bars(bars_of(page, "#attribution-list"), values)


def test_a_part_that_helps_is_orange_when_it_is_ablated(visit, golden_path, golden, truth):
    i = 24
    page = visit(golden_path, f"#token={i}")
    p = gpt2.probabilities(truth.logits(truth.streams[-1])[i]).max()
    changes = golden["knocked"][:, i] - p
    order = np.argsort(-abs(changes))[:10]
    rows = rows_of(page, "#ablation-list")
    shown = [number(row[1]) for row in rows]
    expected = [p, *golden["knocked"][order, i]]
    np.testing.assert_allclose(shown, 100 * np.array(expected), rtol=0, atol=0.06)
    names = page.evaluate("ablatedNames()")
    assert [row[0] for row in rows] == ["none", *(names[part] for part in order)]
    check_bars(bars_of(page, "#ablation-list"), changes[order])
    for part in order[:6].tolist():
        red, _, blue = pixel(page, "ablation-map", *cell(page, "ablation-map", part))
        assert (red > blue) == (changes[part] < 0), names[part]


@pytest.mark.parametrize("number, expected", [(0, 0), (0.5, None), (0.999999, -1)])
def test_a_token_is_drawn_by_its_probability(number, expected, visit, drawn_path):
    page = visit(drawn_path, "#temperature=0.9&top_k=50")
    page.evaluate(f"Math.random = () => {number}")
    page.locator("#draw").click()
    left = page.evaluate("probabilities(distributionAt(state.token), state)")
    if expected is None:
        expected = int(np.searchsorted(np.cumsum([x["p"] for x in left]), number, side="right"))
    name = page.evaluate(f"nameOf({left[expected]['id']})")
    assert page.locator("#drawn").inner_text().startswith(f"Drawn: {name} (")


def test_bars_under_the_tokens_show_the_selected_heads_attention(visit, golden_path, truth):
    page = visit(golden_path, "#token=25&layer=3&head=2")
    widths = page.evaluate("ids.map((_, j) => parseFloat($(`token-${j}`).lastChild.style.width))")
    pattern = truth.patterns[3][2, 25]
    np.testing.assert_allclose(widths, 100 * pattern / pattern.max(), rtol=0, atol=1.5)


# Controls


def click(page, id_, x, y):
    """Click on a canvas with the mouse. x, y: in its own pixels."""
    script = """([id, y]) => {
        scrollBy(0, $(id).getBoundingClientRect().top + y - innerHeight / 2);
        const {left, top} = $(id).getBoundingClientRect();
        return [left, top];
    }"""
    left, top = page.evaluate(script, [id_, y])
    page.mouse.click(left + x, top + y)


def test_a_click_on_the_map_selects_a_query_and_its_key(visit, golden_path):
    page = visit(golden_path)
    left, side = map_geometry(page)
    for query, key, expected in (20, 4, 4), (27, 26, 26), (5, 12, 5):  # no key is after its query
        click(page, "map", left + (key + 0.5) * side, left + (query + 0.5) * side)
        assert page.evaluate("[state.token, state.key]") == [query, expected]
        assert f"position {query}, id" in page.locator("#chosen").inner_text()


def test_a_click_on_a_cell_selects_its_block_and_head(visit, golden_path):
    page = visit(golden_path)
    for id_, n_columns in ("wall", 4), ("attribution-map", 5), ("ablation-map", 5):
        for layer, head in (1, 3), (4, 0), (2, 2):
            click(page, id_, *cell(page, id_, layer * n_columns + head, n_columns))
            assert page.evaluate("[state.layer, state.head]") == [layer, head], id_
        if n_columns == 5:  # an MLP is not a head
            click(page, id_, *cell(page, id_, 3 * 5 + 4))
            assert page.evaluate("[state.layer, state.head]") == [3, 2], id_
    assert page.locator("#map-title").inner_text() == "Attention pattern of block 3, head 2"


def test_a_click_in_the_lens_selects_that_block_and_token(visit, golden_path):
    page = visit(golden_path, "#token=0")  # so that the first column is the first token
    rows = page.locator("#lens-grid tbody tr")
    for row, column, layer in (5, 3, 2), (12, 1, 5), (1, 2, 0):
        name = rows.nth(row).locator("th").inner_text()
        rows.nth(row).locator("td").nth(column).click()
        assert page.evaluate("[state.layer, state.token]") == [layer, column], name
        assert name.startswith(f"block {layer} ")
    rows.nth(0).locator("td").nth(4).click()  # the embedding is before all blocks
    assert page.evaluate("[state.layer, state.token]") == [0, 4]


def test_another_token_starts_with_its_own_key_and_candidate(visit, golden_path):
    page = visit(golden_path, "#token=20&layer=3&head=1&key=2&candidate=3")
    page.keyboard.press("d")
    assert page.locator("#drawn").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("]")
    assert page.evaluate("[state.key, state.candidate]") == [2, 3]  # the token is the same
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[state.key, state.candidate]") == [None, 0]
    assert page.locator("#drawn").inner_text() == ""
    pattern = page.evaluate("[...patternOf(4, 2, 21, false)]")
    assert page.evaluate("keyOf()") == int(np.argmax(pattern))
    assert page.evaluate("location.hash") == "#token=21&layer=4&head=2"


def test_another_address_shows_another_view(visit, golden_path):
    page = visit(golden_path, "#token=20&candidate=2&temperature=0.5&carried=true")
    page.evaluate("location.hash = '#token=3&layer=2&head=1'")
    page.wait_for_function("state.token === 3")
    assert page.evaluate("[state.layer, state.head, state.candidate]") == [2, 1, 0]
    assert page.evaluate("[state.temperature, state.carried]") == [1, False]
    assert "position 3" in page.locator("#chosen").inner_text()
    assert page.locator("#map-title").inner_text() == "Attention pattern of block 2, head 1"
    assert page.locator("#tokens [aria-selected=true]").get_attribute("id") == "token-3"
    page.evaluate("location.hash = '#token=7&key=12'")  # a token cannot look at a later one
    page.wait_for_function("state.token === 7")
    assert page.evaluate("state.key") == 7


def test_each_control_is_reached_by_tab(visit, drawn_path):
    page = visit(drawn_path)
    script = """[...document.querySelectorAll(
        "#page :is(button, select, input, summary, a[href], [tabindex])")]
        .filter(x => x.offsetParent !== null).map(x => x.id || x.textContent)"""
    expected = set(page.evaluate(script))
    reached = set()
    for _ in range(len(expected) + 5):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert expected and expected <= reached


def test_keys_do_what_the_help_says(visit, drawn_path):
    page = visit(drawn_path)
    state = lambda name: page.evaluate(f"state.{name}")  # noqa: E731
    assert (state("token"), state("layer"), state("head")) == (5, 5, 0)
    for key, name, value in [
        ("ArrowRight", "token", 6),
        ("ArrowLeft", "token", 5),
        ("End", "token", 17),
        ("Home", "token", 0),
        ("ArrowLeft", "token", 0),
        ("ArrowUp", "layer", 4),
        ("ArrowDown", "layer", 5),
        ("ArrowDown", "layer", 5),
        ("]", "head", 1),
        ("[", "head", 0),
        ("c", "candidate", 1),
        ("w", "carried", True),
        ("ArrowRight", "token", 1),
        ("ArrowRight", "token", 2),
        (",", "key", None),
    ]:
        before = page.evaluate("keyOf()")
        page.keyboard.press(key)
        if name == "key":
            assert state("key") == max(0, before - 1)
        else:
            assert state(name) == value, key
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("d")
    assert page.locator("#drawn").inner_text()


def test_the_continuation_plays_to_its_end(visit, drawn_path):
    page = visit(drawn_path)
    page.clock.install()
    page.keyboard.press("p")
    assert page.locator("#play").inner_text() == "Stop"
    assert page.evaluate("state.token") == 6
    page.clock.run_for(2500)
    assert page.evaluate("state.token") == 8
    row = page.locator("#rivals tr.next").inner_text()
    assert "was chosen" in row and page.evaluate("nameOf(ids[9])") in row
    page.clock.run_for(20000)
    assert page.evaluate("state.token") == 17
    assert page.locator("#play").inner_text() == "Play"


def test_with_reduced_motion_play_takes_one_step(visit, drawn_path):
    page = visit(drawn_path, reduced_motion="reduce")
    page.clock.install()
    page.keyboard.press("p")
    page.clock.run_for(5000)
    assert page.evaluate("state.token") == 6


def test_the_address_brings_the_view_back(visit, drawn_path):
    page = visit(drawn_path)
    page.locator("#token-9").click()
    page.locator("#layer").select_option("2")
    page.locator("#key").select_option("4")
    page.locator("#candidate").select_option("3")
    page.locator("#versus").select_option("1")
    page.locator("#carried").check()
    page.locator("#top_p").fill("0.5")
    page.locator("#top_k").fill("40")
    state, text = page.evaluate("state"), page.locator("main").inner_text()
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate("state") == state and state["token"] == 9 and state["top_k"] > 1
    assert page.locator("main").inner_text() == text


@pytest.mark.parametrize(
    "hash_", ["#token=999&layer=-3&head=x&key=1e9", "#%", "#top_k=0&nonsense=1&&="]
)
def test_a_damaged_address_does_no_harm(hash_, visit, drawn_path):
    page = visit(drawn_path, hash_)
    assert page.locator("#rivals tbody tr").count() == 10


# Readers, prompts and models of all kinds


@pytest.mark.parametrize("width", [375, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, width, visit, drawn_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(drawn_path, color_scheme=scheme, viewport={"width": width, "height": 800})
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    result = axe.Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_any_prompt_can_be_looked_at(text, tmp_path, visit, shipped):
    path = tmp_path / "page.html"
    args = "-", *SHIPPED, "--n_tokens_to_generate", "3", "--page", path
    done = run("explain.py", *args, stdin=text.encode("utf-8", "replace"))
    assert done.returncode == 0, done.stderr
    page = visit(path)
    assert "broken" != page.title() and not page.locator("b, main script").count()
    assert page.evaluate("scrollTo(9999, 0), scrollX") == 0
    n_prompt = max(1, len(shipped[0].encode(text.encode("utf-8", "replace").decode())))
    assert page.evaluate("facts.n_prompt") == n_prompt
    page.evaluate("range(n).forEach(i => change({token: i}))")
    assert page.evaluate("state.token") == n_prompt + 2


def test_half_a_character_is_shown_as_bytes(visit, make_page):
    page = visit(make_page("☃", *SHIPPED, "--n_tokens_to_generate", "0"))
    chips = page.locator("#tokens .chip bdi").all_inner_texts()
    assert "".join(chips).replace("⟩⟨", " ") == "⟨E2 98 83⟩"


def test_a_token_may_have_more_than_65535_bytes(tmp_path, visit, make_page):
    vocabulary = learn_bpe([], 257).vocabulary
    vocabulary.ids["é" * 70_000] = 257
    hparams = {**LETTERS, "n_vocab": 258}
    save_model(tmp_path / "long", hparams, random_params(3, **hparams), vocabulary)
    options = *model_options(tmp_path, "long"), "--n_tokens_to_generate", "1"
    page = visit(make_page("lo", *options))
    assert page.evaluate("[bytesOf(256).length, bytesOf(257).length]") == [1, 70_000]


@pytest.mark.parametrize("n_words, n_more", [(1, 3), (16, 4), (60, 0), (60, 6)])
def test_a_model_it_has_never_seen_and_the_end_of_its_context(
    n_words, n_more, models_dir, tiny, visit, make_page
):
    """Its context has 32 tokens, and some prompts and continuations are longer."""
    text = "low " * n_words
    options = *model_options(models_dir), "--temperature", "1", "--seed", "1"
    page = visit(make_page(text, *options, "--n_tokens_to_generate", n_more))
    n_prompt = min(32, len(tiny[0].encode(text)))
    n_beyond = max(0, n_prompt + n_more - 32)
    assert page.evaluate("n") == min(32, n_prompt + n_more)
    assert page.evaluate("facts.beyond.length") == n_beyond
    assert page.locator(".chip.beyond").count() == n_beyond
    notes = page.locator("#notes").inner_text()
    assert ("after its window had moved on" in notes) == (n_beyond > 0)
    n_cut = max(0, len(tiny[0].encode(text)) - 32)
    assert (f"its first {n_cut} tokens" in notes) == (n_cut > 0)
    if n_beyond:  # the page still says which token followed the last one
        page.keyboard.press("End")
        assert "was chosen" in page.locator("#rivals tr.next").inner_text()
    assert page.locator("#wall").evaluate("x => x.width") > 0


def odd_model(path, shape):
    hparams = {**LETTERS, **shape}
    vocabulary = learn_bpe(["low lower lowest, slow slower slowest"], 260).vocabulary
    save_model(path / "odd", hparams, random_params(3, **hparams), vocabulary)
    return model_options(path, "odd")


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_ctx": 4},
        {"n_layer": 3, "n_head": 16, "n_embd": 48},
        {"n_layer": 30, "n_head": 2, "n_vocab": 300},  # 40 ids have no token
        {"n_inner": 10},
    ],
    ids=["smallest", "many heads", "many blocks", "thin MLP"],
)
def test_odd_shapes(shape, tmp_path, visit, make_page):
    options = odd_model(tmp_path, shape)
    page = visit(make_page("lo", *options, "--n_tokens_to_generate", "2"), viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator("#neurons tbody tr").count() == min(16, shape.get("n_inner", 16))
    sums = page.evaluate("range(n).map(i => attributionOf(i, 2, null).reduce((a, b) => a + b))")
    logits = page.evaluate("range(n).map(i => candidatesAt(i)[2].logit)")
    np.testing.assert_allclose(sums, logits, rtol=0, atol=1e-4)


def test_the_page_says_what_it_leaves_out_and_the_rest_holds(tmp_path, monkeypatch, visit, shipped):
    """Lower the limits until a short text exceeds them."""
    encoder, hparams, params = shipped
    for name, limit in {
        "MAX_PATTERN": 3000,
        "MAX_STRONGEST": 6 * 4 * 4 * 10,
        "MAX_BEST": 20 * 60,
        "MAX_BINS_PER_NAT": 20 * 4,
        "MAX_QK": 2 * 6 * 256 * 7,
        "MAX_LENS": 70,
        "MAX_ATTRIBUTION": 11 * 33 * 5,
        "MAX_NEURONS": 6 * 20 * 3,
        "A_MINUTE": 1e9,
        "MAX_PROMOTING": 12,
    }.items():
        monkeypatch.setattr(data, name, limit)
    ids = encoder.encode("To be, or not to be: that is the question: whether it is nobler")[:20]
    arrays, fits = record.record(ids, 9, None, params, hparams)
    facts = {"model": "x", "ids": ids, "n_cut": 0, "beyond": [], "n_prompt": 9, "ended": "length"}
    facts |= {"hparams": hparams, "fits": fits, "sampling": {"seed": None, "top_k": None}}
    path = tmp_path / "page.html"
    path.write_bytes(data.build_page(facts, arrays, encoder))
    page = visit(path, "#token=12")
    assert page.locator("#left-out li").all_inner_texts() == [
        "the logit lens after whole blocks, not after half blocks",
        "the logit lens for positions 8 to 17 only, out of 20",
        "the 4 largest attention weights of each token in each head",
        "attention for positions 8 to 17 only, out of 20",
        "queries and keys for positions 8 to 14 only, out of 20",
        "the exact logits of the 60 most likely tokens at each position",
        "the 3 strongest neurons for each token in each block",
        "direct logit attribution and ablation for positions 8 to 12 only, out of 20",
        "ablation of whole attention layers and MLPs: for single heads it takes more than a minute",
    ]
    note = page.evaluate("facts.fits.lens[1] = 20, notesOnLimits()[1]")
    assert note == "the logit lens for positions 8 to 19 only, out of 20"
    page.evaluate("facts.fits.lens[1] = 18")
    exact = Pass(ids, params, hparams)
    i = 12  # not the end of the prompt, so the page has the best tokens and coarse bins
    p = gpt2.probabilities(exact.logits(exact.streams[-1])[i], temperature=0.9)
    options = {"temperature": 0.9, "top_k": None, "top_p": 1, "min_p": 0}
    found = page.evaluate(f"probabilities(distributionAt({i}), {json.dumps(options)})")
    error = [abs(x["p"] - p[x["id"]]) for x in found if x["id"] is not None]
    assert len(error) == 60 and max(error) < 1e-3
    for i in range(8, 18):
        row = np.array(page.evaluate(f"[...patternOf(3, 1, {i}, false)]"))
        largest = np.argsort(-exact.patterns[3][1, i])[:4]
        assert set(np.flatnonzero(row)) <= set(largest.tolist())
        np.testing.assert_allclose(row[largest], exact.patterns[3][1, i, largest], atol=0.004)
    assert page.evaluate("patternOf(0, 0, 7, false)") is None
    # The lens at position 10 is in the third column, and its fourth row is after block 2.
    p = gpt2.probabilities(exact.logits(exact.streams[6])[10])
    assert page.evaluate("rowOf('lens_ids', 3, 2)[0]") == p.argmax()
    assert abs(page.evaluate("lensOf(3, 2)[0]") - p.max()) < 1e-4
    scores = page.evaluate("[8, 14].map(j => productsOf(3, 1, 14, j).map(x => x.product))")
    weights = exact.patterns[3][1, 14, [8, 14]]
    assert abs(sum(scores[1]) - sum(scores[0]) - np.log(weights[1] / weights[0])) < 0.2
    assert page.evaluate("productsOf(3, 1, 15, 8)") is None
    # Whole layers are ablated, and a click on one of them leaves the head as it is.
    names = page.evaluate("ablatedNames()")
    without = page.evaluate("ablationOf(12, 0)")
    best = page.evaluate("candidatesAt(12)[0].id")
    for part in (2, "attention"), (4, "MLP"):
        one = Pass(ids, params, hparams, without=part)
        p = gpt2.probabilities(one.logits(one.streams[-1])[12])[best]
        assert abs(without[names.index("block {} {}".format(*part))] - p) < 1e-4
    page.keyboard.press("]")
    click(page, "ablation-map", *cell(page, "ablation-map", 2 * 1 + 1, n_columns=2))
    assert page.evaluate("[state.layer, state.head]") == [1, 1]
    # The third row of the lens is after block 1.
    page.locator("#token-8").click()
    page.locator("#lens-grid tbody tr").nth(3).locator("td").first.click()
    assert page.evaluate("[state.layer, state.token]") == [2, 8]
    assert "not computed for this neuron" in page.locator("#neurons").inner_text()
    for i in 0, 8, 19:
        page.locator(f"#token-{i}").click()
        assert page.locator("main").inner_text()
    text = page.locator("main").inner_text()
    assert "contains queries and keys for positions" in text and "Go to position" in text


def test_the_page_says_what_a_browser_lacks(browser, drawn_path):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(drawn_path.as_uri())
    assert "DecompressionStream" in page.locator("#lack").inner_text()
    page.close()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(drawn_path.as_uri())
    assert "JavaScript" in page.locator("#lack").inner_text()
    context.close()


# After a change, the page shows what a new page shows


PANELS = """() => [
    document.querySelector("main").innerText,
    ...[...document.querySelectorAll("main canvas")].map(x => x.toDataURL()),
    ...[...document.querySelectorAll("main select")].map(x => `${x.value} ${x.innerText}`),
    ...[...document.querySelectorAll("main input")].map(x => `${x.value} ${x.checked}`),
    wall.picture.toDataURL(),
]"""


def check_panels(page, other):
    """Wait until a page shows the same as another one that has just been opened, and compare."""
    for one in page, other:
        one.evaluate("document.querySelectorAll('main details').forEach(x => { x.open = true; })")
    other.wait_for_timeout(200)  # a table is filled after it has been opened
    expected = other.evaluate(PANELS)
    for _ in range(50):
        if page.evaluate(PANELS) == expected:
            break
        page.wait_for_timeout(100)
    for found, wanted in zip(page.evaluate(PANELS), expected, strict=True):
        assert found == wanted


def test_all_panels_follow_what_is_selected(visit, drawn_path):
    page = visit(drawn_path)
    some = "[...document.querySelectorAll('main details')].filter((x, i) => i % 2)"
    page.evaluate(f"{some}.forEach(x => {{ x.open = true; }})")  # the others are opened later
    page.locator("#carried").check()
    page.locator("#token-9").click()
    page.locator("#layer").select_option("2")
    page.locator("#head").select_option("3")
    page.locator("#key").select_option("4")
    page.locator("#candidate").select_option("3")
    page.locator("#versus").select_option("11")
    page.locator("#temperature").fill("0.5")
    page.locator("#min_p").fill("0.1")
    hash = page.evaluate("location.hash")
    assert hash.count("&") == 8 and page.locator("#key option").count() == 10  # 0 to 9
    check_panels(page, visit(drawn_path, hash))


def test_all_panels_follow_the_size_of_the_window(visit, drawn_path):
    page = visit(drawn_path)
    page.set_viewport_size(PHONE)
    check_panels(page, visit(drawn_path, viewport=PHONE))


def test_all_panels_follow_the_colours_of_the_system(visit, drawn_path):
    page = visit(drawn_path, color_scheme="light")
    page.emulate_media(color_scheme="dark")
    check_panels(page, visit(drawn_path, color_scheme="dark"))


def test_pictures_are_sharp_on_a_screen_of_high_resolution(visit, golden_path):
    page, plain = visit(golden_path, device_scale_factor=2), visit(golden_path)
    script = "[...document.querySelectorAll('main canvas')].map(x => [x.id, x.width, x.height])"
    sizes = plain.evaluate(script)
    assert page.evaluate(script) == [[name, 2 * x, 2 * y] for name, x, y in sizes]
    on_page = (
        "[...document.querySelectorAll('main canvas')].map(x => [x.offsetWidth, x.offsetHeight])"
    )
    assert page.evaluate(on_page) == plain.evaluate(on_page)
    assert page.evaluate("wall.picture.width") == 2 * plain.evaluate("wall.picture.width")
    left, side = map_geometry(plain)
    for i, j in np.random.default_rng(0).integers(0, 28, size=(20, 2)).tolist():
        x, y = left + (j + 0.5) * side, left + (i + 0.5) * side
        assert pixel(page, "map", 2 * x, 2 * y) == pixel(plain, "map", x, y)
    for part in range(24):
        x, y = cell(plain, "wall", part, 4)
        assert pixel(page, "wall", 2 * x, 2 * y) == pixel(plain, "wall", x, y)
    click(page, "wall", *cell(plain, "wall", 2 * 4 + 3, 4))
    assert page.evaluate("[state.layer, state.head]") == [2, 3]


def test_buttons_do_what_they_say(visit, drawn_path):
    page = visit(drawn_path, "#token=9")
    for button, token in ("forward", 10), ("back", 9), ("first", 5), ("back", 4), ("play", 5):
        page.locator(f"#{button}").click()
        assert page.evaluate("state.token") == token, button
    page.locator("#play").click()  # stop
    page.locator("#keys").click()
    assert page.locator("#help").is_visible()
    page.locator("#close").click()
    assert not page.locator("#help").is_visible()


def test_the_continuation_plays_from_the_selected_token(visit, drawn_path):
    page = visit(drawn_path, "#token=9")
    page.clock.install()
    page.keyboard.press("p")
    assert page.evaluate("state.token") == 10
    page.clock.run_for(1300)
    assert page.evaluate("state.token") == 11
    page.keyboard.press("p")
    page.clock.run_for(5000)
    assert page.evaluate("state.token") == 11


def test_keys_that_are_not_for_the_page_do_nothing(visit, drawn_path):
    page = visit(drawn_path, "#token=9")
    before = page.evaluate("JSON.stringify(state)")
    for key in "Control+c", "Alt+w", "Meta+d", "x":
        page.keyboard.press(key)
    page.keyboard.press("?")  # while the list of keys is open, other keys do nothing
    for key in "]", "ArrowLeft", "c":
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    page.locator("#layer").focus()
    page.keyboard.press("w")
    assert page.evaluate("JSON.stringify(state)") == before
    page.locator("#lens-grid").focus()
    page.keyboard.press("ArrowRight")  # the focused table scrolls instead
    assert page.evaluate("state.token") == 9
    page.keyboard.press("]")
    assert page.evaluate("state.head") == 1


def test_the_keys_of_candidates_and_of_tokens_looked_at(visit, drawn_path):
    page = visit(drawn_path, "#token=9&key=4")
    page.keyboard.press(".")
    assert page.evaluate("state.key") == 5
    for i in range(1, 11):
        page.keyboard.press("C")  # with or without shift
        assert page.evaluate("state.candidate") == i % 10


def test_an_address_is_held_within_its_limits(visit, drawn_path):
    hash = "#token=4&versus=99&candidate=99&top_p=7&min_p=-1&temperature=1e9&top_k=5000"
    page = visit(drawn_path, f"{hash}&carried=false&head=99")
    found = page.evaluate("state")
    assert (found["versus"], found["candidate"], found["head"]) == (11, 9, 3)
    assert (found["top_p"], found["min_p"], found["temperature"]) == (1, 0, 100)
    assert (found["top_k"], found["carried"]) == (2048, False)
    assert page.locator("#versus").input_value() == "11"


def test_the_strip_marks_the_prompt_and_names_the_selected_token(visit, drawn_path, shipped):
    page = visit(drawn_path)
    marked = "ids.map((_, i) => $(`token-${i}`).classList.contains('prompt'))"
    assert page.evaluate(marked) == [i < 6 for i in range(18)]
    ids = page.evaluate("ids")
    for i in 0, 5, 12:
        page.locator(f"#token-{i}").click()
        spelled = shipped[0].decode_bytes([ids[i]]).hex(" ").upper()
        what = "byte" if len(spelled) == 2 else "bytes"
        assert (
            f"position {i}, id {ids[i]}, {what} {spelled}." in page.locator("#chosen").inner_text()
        )


def test_ids_without_a_token_and_neurons_of_a_thin_mlp(tmp_path, visit, make_page):
    options = odd_model(tmp_path, {"n_vocab": 300, "n_inner": 10})
    page = visit(make_page("low", *options, "--n_tokens_to_generate", "2"))
    names = page.evaluate("[259, 260, 299].map(nameOf)")
    assert names[0] != "⟨no token⟩" == names[1] == names[2]
    for layer in 0, 1:
        page.locator("#layer").select_option(str(layer))
        tokens = page.locator("#neurons .tokens").all_inner_texts()
        assert len(tokens) == 10 and not any("not computed" in text for text in tokens)
