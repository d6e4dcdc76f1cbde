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
import gpt2_pico
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
    np.testing.assert_allclose(found, golden["weights"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-3)


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
        np.testing.assert_allclose(weights, golden["weights"][layer, head, i], rtol=0, atol=1e-3)


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
        assert link.text_content() == f"Lesson, step {anchor.split('-')[0]}."
        assert text is None or f"](#{anchor})" in text
    assert links.count() == 9


def test_a_page_in_the_checkout_links_to_the_lesson_beside_it(
    tmp_path, monkeypatch, visit, models_dir
):
    assert data.project_address(str(ROOT / "page.html")) == "."
    assert data.project_address(str(ROOT / "docs" / "pages" / "x.html")) == "./../.."
    assert data.project_address(str(tmp_path / "page.html")) == data.project_address("-") == ""
    monkeypatch.setattr(explain, "project_address", lambda path: "./..")
    path = tmp_path / "docs" / "page.html"
    path.parent.mkdir()
    args = "low", *map(str, model_options(models_dir)), "--page", str(path)
    assert explain.main(args) == 0
    links = visit(path).locator(".step a")
    addresses = links.evaluate_all("all => all.map(x => x.href.split('#')[0])")
    assert addresses == [(tmp_path / "lesson" / "README.md").as_uri()] * 9


def test_a_page_does_not_name_directories_of_this_computer(visit, wide_path, wide):
    assert visit(wide_path).locator("#about strong").inner_text() == "wide"
    text = wide_path.read_text(encoding="utf-8")
    assert str(wide.parent) not in text and str(ROOT) not in text


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
    numbers = page.evaluate("attributionOf(n - 1, 0, 1)")[2:-1]  # the runner-up is candidate 1
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
    np.testing.assert_allclose(pattern[shown], -np.sort(-pattern)[:6], rtol=0, atol=3e-5)
    np.testing.assert_allclose([number(row[4]) for row in rows], 100 * pattern[shown], atol=0.052)
    norms = truth.value_norms(2)[0]
    sizes = [number(row[3]) for row in rows]
    np.testing.assert_allclose(sizes, norms[shown] / norms.max(), atol=0.0051)
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
        zero, step = 20 + high * scale, page.evaluate(f"$('{name}').width") / len(values)
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
    np.testing.assert_allclose([x["q"] for x in found], block.q[2, 20], rtol=0, atol=2e-4)
    np.testing.assert_allclose([x["k"] for x in found], block.k[2, 7], rtol=0, atol=2e-4)
    np.testing.assert_allclose([x["product"] for x in found], [x["q"] * x["k"] / 8 for x in found])


def test_carried_weights_are_weighted_by_what_the_head_writes(visit, golden_path, truth):
    page = visit(golden_path)
    for layer, head in (0, 1), (4, 3):
        norms = truth.value_norms(layer)[head]
        for i in 0, 9, 28:
            exact = truth.patterns[layer][head, i] * norms
            found = page.evaluate(f"[...patternOf({layer}, {head}, {i}, true)]")
            np.testing.assert_allclose(found, exact[: i + 1] / exact.sum(), rtol=0, atol=1e-4)
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
        column.evaluate_all("all => all.map(x => x.dataset.tip)"),
    ):
        p = gpt2.probabilities(truth.logits(x)[28])
        assert shown == page.evaluate(f"nameOf({p.argmax()})")
        assert abs(number(title.split(" ")[-2]) - 100 * p.max()) < 0.06


def test_why_compares_with_what_is_selected(visit, golden_path, truth, golden):
    """The comparison is with the runner-up, the mean of all tokens, nothing, or a candidate."""
    i = 20
    logits = truth.logits(truth.streams[-1])[i]
    for versus, reference in (0, 0), (1, None), (2, None), (5, 2):
        page = visit(golden_path, f"#token={i}&candidate=1&versus={versus}")
        ids = page.evaluate(f"candidatesAt({i}).map(x => x.id)")
        expected = logits[ids[1]] - (logits.mean() if versus == 1 else 0)
        if reference is not None:
            expected -= logits[ids[reference]]
        rows = rows_of(page, "#attribution-list")
        assert abs(number(rows[-1][1]) - expected) < 0.006
        assert rows[-1][0] == ("the logit" if versus == 2 else "sum")
        assert abs(sum(number(row[1]) for row in rows[:-1]) - expected) < 0.06


def bars_of(page, selector):
    """Return (class, start, length) of each bar of a table, the last two in percent."""
    script = """all => all.map(x => [
        x.className, parseFloat(x.style.marginLeft), parseFloat(x.style.width)])"""
    return page.locator(f"{selector} .bar div").evaluate_all(script)


def check_bars(bars, values, longest):
    """Check that bars start in the middle for positive values and end there for negative ones."""
    for (name, start, width), x in zip(bars, values):
        assert name == ("negative" if x < 0 else "positive")
        assert abs(width - min(50, 50 * abs(x) / longest)) < 0.5
        assert abs(start - (50 - width if x < 0 else 50)) < 1e-3
    assert len(bars) == len(values) and min(values) < 0 < max(values)


@pytest.mark.parametrize("versus", [0, 1])
def test_bars_of_attribution_show_what_speaks_for_and_against(versus, visit, golden_path):
    page = visit(golden_path, f"#token=25&candidate=1&versus={versus}")
    values = page.evaluate(f"attributionOf(25, 1, {[0, 10][versus]})")  # 10 is the mean
    longest = max(map(abs, values[:-1]))  # The last part is the biases.
    assert versus == 0 or abs(values[-1]) > 1.5 * longest
    values = sorted(values, key=abs, reverse=True)[:10]
    rows = rows_of(page, "#attribution-list")
    np.testing.assert_allclose([number(row[1]) for row in rows[:10]], values, rtol=0, atol=0.006)
    check_bars(bars_of(page, "#attribution-list"), values, longest)


def ablated_names():
    return [
        f"block {i} {part}" for i in range(6) for part in [*(f"head {j}" for j in range(4)), "MLP"]
    ]


def test_ablation_shows_what_speaks_for_the_token_and_against_it(
    visit, golden_path, golden, truth, shipped
):
    """Against nothing, the effect is that on the token's own log-probability."""
    i = 24
    page = visit(golden_path, f"#token={i}&versus=2")
    p = gpt2.probabilities(truth.logits(truth.streams[-1])[i]).max()
    effects = np.log(p / golden["knocked"][:, i])
    order = np.argsort(-abs(effects))[:10]
    rows = rows_of(page, "#ablation-list")
    shown = [number(row[1]) for row in rows]
    expected = [p, *golden["knocked"][order, i]]
    np.testing.assert_allclose(shown, 100 * np.array(expected), rtol=0, atol=0.06)
    np.testing.assert_allclose([number(row[2]) for row in rows[1:]], effects[order], atol=0.006)
    assert [row[0] for row in rows] == ["none", *(ablated_names()[part] for part in order)]
    check_bars(bars_of(page, "#ablation-list"), effects[order], max(abs(effects)))


def test_ablation_compares_with_the_rival(visit, golden_path, shipped, golden, truth):
    """The effect is the loss of the lead, which is the difference between two logits."""
    _, hparams, params = shipped
    i = 20
    page = visit(golden_path, f"#token={i}&candidate=1")
    logits = truth.logits(truth.streams[-1])[i]
    first, second = np.argsort(-logits)[:2]
    rows = {row[0]: row for row in rows_of(page, "#ablation-list")}
    n_compared = 0
    for layer, part in (0, "MLP"), (1, 2), (5, "MLP"), (3, 0), (5, 1), (4, "MLP"):
        name = f"block {layer} {part}" if part == "MLP" else f"block {layer} head {part}"
        if name in rows:
            one = Pass(golden["ids"], params, hparams, without=(layer, part))
            without = one.logits(one.streams[-1])[i]
            effect = logits[second] - logits[first] - (without[second] - without[first])
            assert abs(number(rows[name][2]) - effect) < 0.01
            n_compared += 1
    assert n_compared > 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_blue_speaks_for_a_token_in_both_maps(scheme, visit, golden_path, golden, truth):
    """Orange speaks against it. The charts of the stream have other colours."""
    i = 24
    page = visit(golden_path, f"#token={i}&versus=2", color_scheme=scheme)
    p = gpt2.probabilities(truth.logits(truth.streams[-1])[i]).max()
    last = len(golden["ids"]) - 1
    effects = np.log(p / golden["knocked"][:, i])
    best = golden["best"][i]
    written = [part for layer in range(6) for part in [*truth.written[layer], truth.mlp[layer]]]
    biases = [block["mlp"]["c_proj"]["b"] for block in truth.params["blocks"]]
    contributions = [truth.contribution(x)[i, best] for x in written]
    for layer in range(6):  # The page counts the bias of an MLP among the biases.
        contributions[5 * layer + 4] -= truth.contribution(
            np.broadcast_to(biases[layer], (last + 1, 256))
        )[i, best]
    for name, numbers in ("ablation-map", effects), ("attribution-map", contributions):
        for part in np.argsort(-np.abs(numbers))[:8].tolist():
            red, _, blue = pixel(page, name, *cell(page, name, part))
            assert (blue > red) == (numbers[part] > 0), (name, part)
    for name in "norms", "added":
        width = page.evaluate(f"$('{name}').width")
        step = width / (13 if name == "norms" else 12)
        for column in range(13 if name == "norms" else 12):
            red, green, blue = pixel(page, name, int((column + 0.4) * step), 135)
            assert not (blue > green + 20 and blue > red + 60), (name, column)  # not blue
            assert not (red > blue + 20), (name, column)  # not orange


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


def place_of(page, id_, x, y):
    """Scroll to a place on a canvas and return it in the window. x, y: in the canvas's pixels."""
    script = """([id, y]) => {
        scrollBy(0, $(id).getBoundingClientRect().top + y - innerHeight / 2);
        const {left, top} = $(id).getBoundingClientRect();
        return [left, top];
    }"""
    left, top = page.evaluate(script, [id_, y])
    return left + x, top + y


def click(page, *place):
    page.mouse.click(*place_of(page, *place))


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
        .filter(x => x.checkVisibility() && x.tabIndex >= 0).map(nameOfStop)"""
    name = "x.id || x.textContent || x.dataset.tip"
    page.evaluate(f"() => {{ window.nameOfStop = x => {name}; }}")
    stops = page.evaluate(script)
    expected, reached = set(stops), set()
    for _ in range(len(stops) + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("nameOfStop(document.activeElement)"))
    assert expected and expected <= reached


def test_keys_do_what_the_help_says(visit, drawn_path):
    page = visit(drawn_path, "#layer=5&head=0")
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
        np.testing.assert_allclose(row[largest], exact.patterns[3][1, i, largest], atol=3e-5)
    assert page.evaluate("patternOf(0, 0, 7, false)") is None
    # The lens at position 10 is in the third column, and its fourth row is after block 2.
    p = gpt2.probabilities(exact.logits(exact.streams[6])[10])
    assert page.evaluate("rowOf('lens_ids', 3, 2)[0]") == p.argmax()
    assert abs(page.evaluate("lensOf(3, 2)[0]") - p.max()) < 1e-4
    scores = page.evaluate("[8, 14].map(j => productsOf(3, 1, 14, j).map(x => x.product))")
    weights = exact.patterns[3][1, 14, [8, 14]]
    assert abs(sum(scores[1]) - sum(scores[0]) - np.log(weights[1] / weights[0])) < 0.005
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
    assert (found["versus"], found["candidate"], found["head"]) == (12, 9, 3)
    assert (found["top_p"], found["min_p"], found["temperature"]) == (1, 0, 100)
    assert (found["top_k"], found["carried"]) == (2048, False)
    assert page.locator("#versus").input_value() == "12"


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


# What is printed is right, and nothing hides it


WIDE = {"n_layer": 12, "n_head": 12, "n_embd": 96, "n_vocab": 560, "n_ctx": 64}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a model with the blocks and heads of 124M, and with long tokens."""
    directory = tmp_path_factory.mktemp("wide")
    vocabulary = learn_bpe(["low lower lowest, slow slower slowest"], 260).vocabulary
    vocabulary.ids.update({f"straightforward{i}": i for i in range(260, 560)})
    hparams = {**LETTERS, **WIDE}
    save_model(directory / "wide", hparams, random_params(3, **hparams), vocabulary)
    return directory / "wide"


@pytest.fixture(scope="module")
def wide_path(make_page, wide):
    return make_page("low lower, slow", "--model_size", wide, "--n_tokens_to_generate", "3")


@pytest.fixture(scope="module")
def long_path(make_page):
    text = "To be, or not to be: that is the question:\n" * 12
    return make_page(text, *SHIPPED, "--n_tokens_to_generate", "0")


def exact_scores(exact, layer):  # -> [h, n, n]
    """Return the products of queries and keys, divided by the square root of their length."""
    block = exact.params["blocks"][layer]
    y = gpt2_pico.layer_norm(exact.streams[2 * layer], **block["ln_1"], eps=exact.eps)
    q, k, _ = np.split(gpt2_pico.linear(y, **block["attn"]["c_attn"]), 3, axis=1)
    q, k = (np.stack(np.split(x, exact.n_head, axis=1)) for x in (q, k))
    return q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])


def check_percent(text, p):
    """Check that a text such as "15.5 %" is the nearest to a probability with these digits."""
    if text.startswith("<"):
        assert p < 1.001e-4
        return
    digits = len(re.search(r"\d\.?(\d*) %", text)[1])
    assert abs(number(text) - 100 * p) < 0.5 * 0.1**digits + 0.002, (text, p)
    assert digits == (1 if p > 0.0996 else 2) or 0.0994 < p < 0.0996 or p == 0


@pytest.mark.parametrize("model", ["golden", "wide"])
def test_printed_weights_and_scores_have_only_exact_digits(
    model, visit, golden_path, wide_path, wide, truth
):
    page, exact = visit(golden_path), truth
    if model == "wide":
        page = visit(wide_path)
        _, hparams, params = load_encoder_hparams_and_params(str(wide), "")
        exact = Pass(page.evaluate("ids"), params, hparams)
    page.locator("#map-table summary").click()
    last = page.evaluate("n") - 1
    for layer, head, i in (0, 0, last), (1, 3, last - 2), (3, 2, last), (5, 1, last - 5):
        page.evaluate(f"change({{layer: {layer}, head: {head}, token: {i}}})")
        rows = rows_of(page, "#map-table")
        pattern, scores = exact.patterns[layer][head, i], exact_scores(exact, layer)[head, i]
        assert [int(row[0]) for row in rows] == list(range(i + 1))
        for j, row in enumerate(rows):
            check_percent(row[3], pattern[j])
            assert abs(number(row[2]) - scores[j]) < 0.0055, (layer, head, i, j)
        for row in rows_of(page, "#looks"):
            check_percent(row[4], pattern[int(row[0])])
            assert abs(number(row[2]) - scores[int(row[0])]) < 0.0055


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("model", ["golden", "wide"])
def test_no_number_of_the_lens_is_clipped(model, width, visit, golden_path, wide_path):
    path = golden_path if model == "golden" else wide_path
    page = visit(path, viewport={"width": width, "height": 844})
    script = """all => all.map(cell => {
        const box = cell.getBoundingClientRect(), text = cell.querySelector("small");
        const words = document.createRange();
        words.selectNodeContents(text);
        const {left, right, top, bottom} = words.getBoundingClientRect();
        const name = cell.querySelector(".token").getBoundingClientRect();
        const inside = left >= box.left && right <= box.right && top >= box.top &&
            bottom <= box.bottom + 1;
        const free = name.right <= left + 0.5 && right - left > 20;
        return inside && free && name.width > 4 ? "" : text.textContent;
    })"""
    for i in range(0, page.evaluate("n"), 3):
        page.evaluate(f"change({{token: {i}}})")
        shown = page.locator("#lens-grid td.selected")
        assert shown.evaluate_all(script) == [""] * (13 if model == "golden" else 25)
        host = page.locator("#lens-grid")
        assert host.evaluate("x => x.scrollWidth - x.clientWidth") == 0


def test_links_inside_the_page_keep_the_selection(visit, drawn_path):
    page = visit(drawn_path, "#token=9&layer=2&head=1&candidate=3&temperature=0.5")
    before = page.evaluate("JSON.stringify(state)")
    titles = page.locator("h2, h3").all_inner_texts()
    page.locator("#next details summary").click()
    links = page.locator("main a[href^='#']").all()
    assert len(links) > 9
    for link in links:
        link.click()
        place = link.get_attribute("href")
        assert page.evaluate("location.hash") == place
        page.wait_for_timeout(30)
        assert page.evaluate("JSON.stringify(state)") == before
        box = page.locator(place).bounding_box()
        assert box["y"] < 800 and box["y"] + box["height"] > 0
    assert page.locator("h2, h3").all_inner_texts() == titles
    page.keyboard.press("]")
    assert "token=9&layer=2&head=2" in page.evaluate("location.hash")


def test_the_first_comparison_is_with_the_runner_up(visit, golden_path, golden):
    page = visit(golden_path)
    first, second = np.argsort(-golden["logits"])[:2].tolist()
    names = page.evaluate(f"[{first}, {second}].map(nameOf)")
    text = "x => x.selectedOptions[0].textContent"
    assert page.locator("#candidate").evaluate(text).startswith(f"{names[0]} ")
    assert page.locator("#versus").evaluate(text) == f"the runner-up, {names[1]}"
    page.keyboard.press("c")  # The runner-up is compared with the best token.
    assert page.locator("#candidate").evaluate(text).startswith(f"{names[1]} ")
    assert page.locator("#versus").evaluate(text) == f"the runner-up, {names[0]}"
    lead = golden["logits"][second] - golden["logits"][first]
    assert abs(number(rows_of(page, "#attribution-list")[-1][1]) - lead) < 0.006


def test_the_first_head_is_the_one_whose_ablation_changes_the_answer_most(
    visit, golden_path, golden
):
    page = visit(golden_path)
    p = gpt2.probabilities(golden["logits"].astype(np.float64)).max()
    effects = np.abs(np.log(golden["knocked"][:, -1] / p)).reshape(6, 5)[:, :4]
    expected = np.unravel_index(effects.argmax(), effects.shape)
    assert page.evaluate("[state.layer, state.head]") == [*map(int, expected)]
    assert (
        page.locator("#map-title")
        .inner_text()
        .endswith("block {}, head {}".format(*map(int, expected)))
    )


# Each cell says what it is


def hover(page, *place):
    """Move the mouse to a place on a canvas, and return what the page says."""
    page.mouse.move(*place_of(page, *place))
    return said(page)


def said(page):
    assert page.locator("#tip").is_visible()
    return page.locator("#tip").inner_text()


def percent_in(text):
    return text.rsplit(", ", 1)[1]


def test_each_cell_of_the_attention_maps_says_what_it_is(visit, golden_path, golden):
    page = visit(golden_path, "#token=20&layer=1&head=0")
    tokens = page.evaluate("ids.map(nameOf)")
    for layer, head in (0, 0), (3, 1), (5, 3):
        text = hover(page, "wall", *cell(page, "wall", layer * 4 + head, 4))
        weights = golden["weights"][layer, head, 20]
        best = tokens[weights.argmax()]
        assert text.startswith(f"block {layer}, head {head}: {tokens[20]} looks most at {best}, ")
        check_percent(percent_in(text), weights.max())
    left, side = map_geometry(page)
    for i, j in (20, 3), (28, 28), (9, 0):
        text = hover(page, "map", left + (j + 0.5) * side, left + (i + 0.5) * side)
        assert text.startswith(f"block 1, head 0: {tokens[i]} ({i}) looks at {tokens[j]} ({j}), ")
        check_percent(percent_in(text), golden["weights"][1, 0, i, j])
    page.mouse.move(1, 1)
    assert not page.locator("#tip").is_visible()


def test_each_column_of_the_charts_says_what_it_is(visit, golden_path, truth):
    page = visit(golden_path, "#token=11&layer=2&head=1&key=3")
    names = [f"block {i} {half}" for i in range(6) for half in ("attention", "MLP")]
    token, key = page.evaluate("[11, 3].map(tokenAt)")
    streams = np.stack(truth.streams)[:, 11]
    added = np.sqrt((np.diff(streams, axis=0) ** 2).sum(-1))
    charts = [
        (
            "norms",
            [f"{token} after {x}" for x in ["embedding", *names]],
            np.sqrt((streams**2).sum(-1)),
        ),
        ("added", [f"{token} after {x}" for x in names], added),
    ]
    for id_, expected, values in charts:
        step = page.evaluate(f"$('{id_}').width") / len(values)
        for column, (name, value) in enumerate(zip(expected, values)):
            what, shown = hover(page, id_, (column + 0.5) * step, 70).rsplit(": ", 1)
            assert what == name and abs(number(shown) - value) < 0.006
    block = truth.params["blocks"][2]
    y = gpt2_pico.layer_norm(truth.streams[4], **block["ln_1"], eps=truth.eps)
    q, k, _ = np.split(gpt2_pico.linear(y, **block["attn"]["c_attn"]), 3, axis=1)
    products = (q[11] * k[3])[64:128] / 8
    for dimension in 0, 17, 63:
        step = page.evaluate("$('products').width") / 64
        what, shown = hover(page, "products", (dimension + 0.5) * step, 70).rsplit(": ", 1)
        assert what == f"block 2, head 1, {token} looks at {key}, dimension {dimension}"
        assert abs(number(shown) - products[dimension]) < 0.006


def test_each_cell_of_the_maps_of_parts_says_what_it_is(visit, golden_path, golden, truth):
    i = 24
    page = visit(golden_path, f"#token={i}&versus=2")
    p = gpt2.probabilities(truth.logits(truth.streams[-1])[i]).max()
    for part in 0, 7, 14, 29:
        name = ablated_names()[part].replace(" head", ", head").replace(" MLP", ", MLP")
        what, shown = hover(page, "ablation-map", *cell(page, "ablation-map", part)).split(": ")
        effect = np.log(p / golden["knocked"][part, i])
        assert what == name and abs(number(shown) - effect) < 0.006
        what, shown = hover(page, "attribution-map", *cell(page, "attribution-map", part)).split(
            ": "
        )
        assert what == name
        if "head" in name:
            written = truth.written[part // 5][part % 5]
            assert abs(number(shown) - truth.contribution(written)[i, golden["best"][i]]) < 0.006


def test_each_cell_of_the_lens_and_each_bar_says_what_it_is(visit, golden_path, truth, golden):
    page = visit(golden_path, "#token=24&layer=2&head=1")
    first = page.evaluate("tokenAt(24)")
    cells = page.locator("#lens-grid tbody tr")
    tokens = page.locator("#lens-grid thead th").all_inner_texts()[1:]
    start = 24 - page.locator("#lens-grid thead th").evaluate_all(
        "all => all.slice(1).findIndex(x => x.className === 'selected')"
    )
    for row, name in (0, "embedding"), (5, "block 2 attention"), (12, "block 5 MLP"):
        for column in 0, 3, len(tokens) - 1:
            cells.nth(row).locator("td").nth(column).hover()
            p = gpt2.probabilities(truth.logits(truth.streams[row])[start + column])
            best = page.evaluate(f"nameOf({p.argmax()})")
            text = said(page)
            assert text.startswith(f"{name}, after {tokens[column]}: {best}, ")
            check_percent(percent_in(text), p.max())
    for selector, about in (
        ("#rivals", f"after {first}: rank 1, next token "),
        ("#choices", f"after {first}: token "),
        ("#looks", f"block 2, head 1: {first} looks at: position "),
        ("#neurons", f"MLP of block 2 at {first}: neuron "),
        ("#attribution-list", "for "),
        ("#ablation-list", "for "),
    ):
        bar = page.locator(f"{selector} td:has(.bar)").first
        bar.hover()
        text = said(page)
        row = page.locator(f"{selector} tr:has(.bar)").first.locator("td").all_inner_texts()
        assert text.startswith(about), text
        assert all(part in text for part in row), (text, row)


def test_the_cell_that_has_the_focus_says_what_it_is(visit, golden_path):
    page = visit(golden_path, "#token=20&layer=2&head=1")
    for id_ in "wall", "map", "products", "norms", "added", "attribution-map", "ablation-map":
        page.locator(f"#{id_}").focus()
        before = said(page)
        assert "block 2" in before and re.search(r"\d\.\d", before), id_
        page.keyboard.press("ArrowDown")
        assert "block 3" in said(page), id_
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    for selector in "#rivals", "#choices", "#looks", "#neurons", "#ablation-list", "#lens-grid":
        stops = page.locator(f"{selector} [data-tip][tabindex='0']")
        assert stops.count() == 1, selector
        stops.focus()
        first = said(page)
        page.keyboard.press("ArrowDown")
        second = said(page)
        assert first != second
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")  # There is nothing above the first cell.
        assert said(page) == first
        assert page.evaluate("state.layer") == 2
        described = page.evaluate("document.activeElement.getAttribute('aria-describedby')")
        assert described == "tip"


def test_each_chart_names_its_axes_and_has_a_number(visit, golden_path):
    page = visit(golden_path, "#token=20")
    page.evaluate("""() => {
        window.texts = {};
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...more) {
            (texts[this.canvas.id] ??= []).push(String(text));
            write.call(this, text, ...more);
        };
        show();
    }""")
    texts = page.evaluate("texts")
    for id_, names in {
        "wall": ["block", "head"],
        "map": ["looks ↓", "is looked at →"],
        "attribution-map": ["block", "head"],
        "ablation-map": ["block", "head"],
        "norms": ["length, from", "the embedding and the half blocks, up to block 5 →"],
        "added": ["length, from", "half blocks, from block 0 to block 5 →"],
        "products": ["product, from", "dimension, from 0 to 63 →"],
    }.items():
        for name in names:
            assert any(text.startswith(name) for text in texts[id_]), (id_, name)
        assert id_ == "map" or any(re.search(r"\d", text) for text in texts[id_])
    assert "from 0" in page.locator("#scale-text").inner_text()
    assert set(page.evaluate("ids.map(nameOf)")) <= set(texts["map"])


@pytest.mark.parametrize("hash", ["#token=10&layer=3&head=2", "#token=20&versus=1"])
def test_negative_numbers_have_a_minus_sign(hash, visit, golden_path):
    page = visit(golden_path, hash)
    page.evaluate("document.querySelectorAll('main details').forEach(x => { x.open = true; })")
    page.wait_for_timeout(200)
    text = page.locator("main").inner_text()
    assert "−" in text and not re.search(r"(^|\s)-\d", text)


# A reader who sees the page for the first time


def test_the_drawing_of_the_model_leads_to_each_panel(visit, drawn_path):
    page = visit(drawn_path)
    sections = page.locator("main section").evaluate_all("all => all.map(x => x.id)")
    links = page.locator("#model a").evaluate_all("all => all.map(x => x.getAttribute('href'))")
    assert sorted(links) == sorted(f"#{id_}" for id_ in sections) and len(sections) == 9
    names = page.locator("#model strong").all_inner_texts()
    assert names == ["token", "embedding", "attention", "MLP", "logits", "choice"]
    assert "× 6" in page.locator("#model .block").inner_text()
    order = [id_ for id_ in sections if id_ in ("attention", "stream", "mlp", "lens", "why")]
    assert order[0] == "attention" and order.index("attention") < order.index("lens")


def test_the_drawing_of_the_model_follows_the_selection(visit, golden_path, golden, truth):
    page = visit(golden_path)
    for i, layer, head in (3, 0, 2), (17, 4, 1):
        page.evaluate(f"change({{token: {i}, layer: {layer}, head: {head}}})")
        p = gpt2.probabilities(truth.logits(truth.streams[-1])[i])
        boxes = page.locator("#model a:has(strong) > span").all_inner_texts()
        token, best, following = page.evaluate(
            f"[ids[{i}], {p.argmax()}, ids[{i} + 1]].map(nameOf)"
        )
        assert boxes[0] == f"{token} {golden['ids'][i]}"
        assert boxes[1] == f"position {i}, 256 numbers"
        assert boxes[2:4] == [f"block {layer}, head {head}", f"block {layer}"]
        assert boxes[4].startswith(f"{best} ") and boxes[5] == following
        check_percent(boxes[4], p.max())


@pytest.mark.parametrize("where", ["drawn", "long"])
def test_the_strip_takes_a_fifth_of_a_phone_and_says_that_it_scrolls(
    where, visit, drawn_path, long_path
):
    path = drawn_path if where == "drawn" else long_path
    page = visit(path, viewport={"width": 390, "height": 844})
    scrolls = page.evaluate("$('tokens').scrollHeight > $('tokens').clientHeight")
    assert scrolls == (where == "long")
    last = page.evaluate("n") - 1
    for i in 0, last // 2, last:
        page.locator(f"#token-{i}").evaluate("x => x.click()")
        page.evaluate("scrollTo(0, 3000)")
        strip = page.locator("#strip").bounding_box()
        assert strip["y"] == 0 and strip["height"] <= 844 / 5
        assert ("The text scrolls." in page.locator("#chosen").inner_text()) == scrolls
        assert page.evaluate("$('chosen').scrollHeight - $('chosen').clientHeight") <= 1
        chip = page.locator(f"#token-{i}").bounding_box()
        tokens = page.locator("#tokens").bounding_box()
        assert tokens["y"] <= chip["y"]
        assert chip["y"] + chip["height"] <= tokens["y"] + tokens["height"]


@pytest.mark.parametrize("width", [390, 1280])
def test_targets_have_at_least_24_pixels(width, visit, golden_path, monkeypatch):
    page = visit(golden_path, viewport={"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('main details').forEach(x => { x.open = true; })")
    script = """all => all.filter(x => x.checkVisibility()).map(x => {
        const {width, height} = x.getBoundingClientRect();
        return [x.id || x.textContent, Math.round(width * 10) / 10, Math.round(height * 10) / 10];
    }).filter(([, width, height]) => width < 24 || height < 24)"""
    targets = page.locator("main :is(a, button, select, input, summary, .chip, .lens td)")
    assert targets.count() > 100 and targets.evaluate_all(script) == []


def test_a_wide_screen_has_two_columns_and_no_empty_half(visit, golden_path):
    page = visit(golden_path, viewport={"width": 1280, "height": 900})
    left, right = (page.locator(f"#{id_}").bounding_box() for id_ in ("next", "choosing"))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"] < 700
    left, right = (page.locator(f"#{id_}").bounding_box() for id_ in ("stream", "mlp"))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"] < 700
    script = """
        [...document.querySelectorAll("main :is(canvas, td, th, p, h2, h3, label, summary)")]
        .filter(x => x.checkVisibility() && (x.textContent.trim() || x.matches("canvas")))
        .map(x => {
            const range = document.createRange();
            range.selectNode(x);
            return (x.matches("canvas") ? x : range).getBoundingClientRect();
        }).filter(x => x.right > 0.6 * innerWidth).map(x => [x.top, x.bottom])"""
    spans = sorted(page.evaluate(script))
    height = page.evaluate("document.body.scrollHeight")
    end, gaps = 0, []
    for top, bottom in spans:
        gaps.append(top - end)
        end = max(end, bottom)
    assert max(gaps) < 400 and sum(gap for gap in gaps if gap > 0) < 0.35 * height
    page = visit(golden_path, viewport=PHONE)
    left, right = (page.locator(f"#{id_}").bounding_box() for id_ in ("next", "choosing"))
    assert left["y"] + left["height"] <= right["y"]


def test_the_text_reads_as_text_with_its_line_breaks(visit, golden_path, shipped, golden):
    page = visit(golden_path, viewport={"width": 1280, "height": 900})
    chips = page.locator("#tokens .chip")
    text = shipped[0].decode(golden["ids"].tolist())
    assert "".join(chips.all_inner_texts()) == text.replace(" ", "␣").replace("\n", "⏎")
    tops = chips.evaluate_all("all => all.map(x => x.getBoundingClientRect().top)")
    names = chips.all_inner_texts()
    break_ = names.index("⏎")
    assert len(set(tops[: break_ + 1])) == 1 == len(set(tops[break_ + 1 :]))
    assert tops[break_ + 1] > tops[break_] + 20
    gaps = chips.evaluate_all("""all => all.slice(1).map((x, i) =>
        x.getBoundingClientRect().left - all[i].getBoundingClientRect().right)""")
    assert max(gap for i, gap in enumerate(gaps) if i != break_) <= 2


def test_caveats_are_folded_and_hints_are_short(visit, golden_path):
    page = visit(golden_path)
    assert page.locator("main details").evaluate_all("all => all.every(x => !x.open)")
    assert page.locator(".caveat").evaluate_all("all => all.every(x => x.matches('details'))")
    hints = page.locator(".hint").evaluate_all("""all => all.map(x => {
        x = x.cloneNode(true);
        x.querySelectorAll(".step").forEach(step => step.remove());
        return x.textContent;
    })""")
    assert len(hints) >= 8
    for hint in hints:
        assert 1 <= len(re.findall(r"[.?](?=\s|$)", hint)) <= 2, hint


def test_the_first_rows_of_the_lens_do_not_outshine_the_rest(visit, golden_path, truth, golden):
    """The colour is the probability of the final guess, which the first rows do not know."""
    page = visit(golden_path, "#token=20")
    start = 20 - page.locator("#lens-grid thead th").evaluate_all(
        "all => all.slice(1).findIndex(x => x.className === 'selected')"
    )
    script = "all => all.map(x => Number(x.style.backgroundColor.match(/\\d+/)[0]))"
    rows = page.locator("#lens-grid tbody tr").all()
    reds = np.array([row.locator("td").evaluate_all(script) for row in rows])  # 255 is white
    n = reds.shape[1]
    final = golden["lens_ids"][-1, start : start + n, 0]
    p = []
    for stream in truth.streams:
        logits = truth.logits(stream)[start : start + n]
        exps = np.exp(logits - logits.max(-1, keepdims=True))
        p.append((exps / exps.sum(-1, keepdims=True))[np.arange(n), final])
    p = np.stack(p)
    darker = reds[:, :, None, None] < reds
    higher = p[:, :, None, None] > p + 0.05
    known = p > 0.2  # Then the final guess is among the five best, which the page contains.
    assert darker[higher & known[:, :, None, None]].all()
    assert reds[:2].mean() > reds[-1].mean() + 50 and reds[:2].min() > 180
