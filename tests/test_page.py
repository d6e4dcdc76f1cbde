"""The page of explain.py in a real browser: its numbers, pictures, controls, and what it asks for.

Needs playwright and axe-playwright-python (requirements-dev.txt) and a Chromium: see find_browser.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, LETTERS, ROOT, model_options, random_params, run

import explain
import gpt2
from encoder import learn_bpe
from model_files.directory import save_model
from page import data
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
    """Whichever there is: chromium or google-chrome of the system, or playwright's own."""
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
    """-> function: arguments of explain.py -> path of the page"""

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
def drawn_path(make_page):
    """A prompt and a continuation that was drawn."""
    return make_page("To be, or not to", *SHIPPED, "--n_tokens_to_generate", "12", "--seed", "4")


@pytest.fixture
def visit(browser):
    """-> function: path -> the page, opened offline; at the end nothing may have gone wrong."""
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
    """An array as the page holds it."""
    values, shape = page.evaluate(f"[Array.from(arrays.{name}.values), arrays.{name}.shape]")
    return np.array(values).reshape(shape)


# Its numbers


def test_it_asks_for_nothing_and_may_not(visit, golden_path):
    page = visit(golden_path)
    text = golden_path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "://" not in text
    assert page.title().endswith("GPT-2 explained") and not page.locator("#lack").count()


def test_another_script_or_a_request_would_be_refused(browser, golden_path, tmp_path):
    """What the page's policy is worth: the one thing that visit does not look for."""
    path = tmp_path / "page.html"
    text = golden_path.read_text(encoding="utf-8")
    more = "<script>window.foreign = 1</script><img src='https://localhost/x.png'></body>"
    path.write_text(text.replace("</body>", more), encoding="utf-8")
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate("window.foreign") is None
    assert sum("Content Security Policy" in text for text in said) == 2
    page.close()


def test_attention_is_that_of_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    n_layer, n_head, n, _ = golden["weights"].shape
    found = np.zeros_like(golden["weights"])
    rows = page.evaluate(
        "range(n_layer).map(layer => range(n_head).map(head => "
        "range(n).map(i => [...weightsOf(layer, head, i)])))"
    )
    for layer, heads in enumerate(rows):
        for head, lines in enumerate(heads):
            for i, line in enumerate(lines):
                found[layer, head, i, : i + 1] = line
    assert page.evaluate("ids") == golden["ids"].tolist()
    np.testing.assert_allclose(found, golden["weights"], rtol=0, atol=0.004)


def test_the_lens_is_that_of_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    assert np.mean(array(page, "lens_ids")[..., 0] == golden["lens_ids"][..., 0]) > 0.999
    p = (array(page, "lens_p")[..., 0] / 65535) ** 2
    np.testing.assert_allclose(p, golden["lens_p"][..., 0], rtol=0, atol=1e-4)


def test_shares_sum_to_the_logit_of_transformers(visit, golden_path, golden):
    page = visit(golden_path)
    n = len(golden["ids"])
    for c in range(10):
        sum_ = page.evaluate(f"sharesOf({n - 1}, {c}, null).reduce((a, b) => a + b)")
        candidate = page.evaluate(f"candidatesAt({n - 1})[{c}]")
        assert abs(sum_ - golden["logits"][candidate["id"]]) < 1e-4
        assert abs(candidate["logit"] - golden["logits"][candidate["id"]]) < 1e-4


def test_knock_outs_are_passes_of_transformers_without_that_part(visit, golden_path, golden):
    page = visit(golden_path)
    found = np.array(page.evaluate("range(n).map(i => knockedOf(i, 0))")).T
    np.testing.assert_allclose(found, golden["knocked"], rtol=0, atol=1e-4)
    names = page.evaluate("knockedNames()")
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
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    logits = gpt2.gpt2(ids, **model)[-1]
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
        # behind the prompt all logits are there; elsewhere a limit may cut a bin in two
        error = max(abs(x - p[id_]) for id_, x in named.items())
        assert error < (1e-4 if at_the_prompt else 2e-3), options
        rest = sum(x["p"] * x["kept"] for x in found if x["id"] is None)
        assert abs(sum(named.values()) + rest - 1) < 1e-9
        assert abs(rest - (1 - p[list(named)].sum())) < (1e-9 if at_the_prompt else 1e-2), options
        if at_the_prompt:
            assert sum(x["kept"] for x in found) == np.count_nonzero(p)


def test_the_lesson_is_linked_where_the_project_has_an_address(
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
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    p = gpt2.probabilities(gpt2.gpt2(ids, **model)[-1], temperature=0.5, min_p=0.2)
    shown = page.locator("#choices tbody tr").count()
    assert shown == np.count_nonzero(p)
    first = page.locator("#choices tbody tr").first.inner_text()
    assert f"{100 * p.max():.1f} %" in first
    page.locator("#draw").click()
    assert page.locator("#drawn").inner_text().startswith("Drawn: ")
    page.locator("#temperature").fill("0")
    assert page.locator("#choices tbody tr").count() == 1


SETTINGS = ["--temperature", "0.8", "--top_k", "50", "--seed", "3"], ["--repetition_penalty", "1.3"]


@pytest.mark.parametrize("options", SETTINGS)
def test_the_continuation_is_that_of_the_command(options, visit, make_page, shipped):
    args = ["ROMEO:", *SHIPPED, "--n_tokens_to_generate", "20", *options]
    page = visit(make_page(*args))
    said = json.loads(run("gpt2.py", *args, "--json").stdout)
    n_prompt = page.evaluate("facts.n_prompt")
    assert page.evaluate("ids")[n_prompt:] == said["ids"]
    if "--repetition_penalty" in options:
        _, hparams, params = shipped
        ids = page.evaluate("ids.slice(0, facts.n_prompt)")
        model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
        exact = gpt2.penalize(gpt2.gpt2(ids, **model)[-1], ids, 1.3)
        found = page.evaluate("distributionAt(facts.n_prompt - 1)")
        np.testing.assert_allclose([x["logit"] for x in found], -np.sort(-exact), atol=1e-4)
    # what was taken is among what the sliders, where the command had them, leave
    for i, id_ in enumerate(said["ids"]):
        left = page.evaluate(f"probabilities(distributionAt({n_prompt - 1 + i}), state)")
        assert id_ in [x["id"] for x in left if x["p"] > 0]
        if "--seed" not in options:
            assert left[0]["id"] == id_


# Its pictures


def pixel(page, id_, x, y):
    script = "([id, x, y]) => [...$(id).getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    return page.evaluate(script, [id_, x, y])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pixels_have_the_colour_of_their_value(scheme, visit, golden_path, golden):
    page = visit(golden_path, "#layer=4&head=3", color_scheme=scheme)
    n = len(golden["ids"])
    width = page.evaluate("$('map').width")
    colours = np.array(page.evaluate("palette()"))
    left = 90 if (width - 90) % n == 0 else 0
    side = (width - left) / n
    rng = np.random.default_rng(0)
    for i, j in rng.integers(0, n, size=(60, 2)).tolist():
        if i == n - 1:  # the selected row has frames
            continue
        byte = round(255 * golden["weights"][4, 3, i, j] ** 0.5)
        found = pixel(page, "map", left + (j + 0.5) * side, left + (i + 0.5) * side)
        near = colours[max(0, byte - 1) : byte + 2]
        assert found in near.tolist(), (i, j)
    # the wall: a head's map is there at its place, smaller
    side, margin = page.evaluate("[wall.side, MARGIN]")
    picture = [pixel(page, "wall", margin + side * 3 + 2, margin + side * 4 + 2)]
    assert picture[0] == colours[255].tolist()  # the first token can only look at itself
    grid_side = (page.evaluate("$('shares').width") - margin) / 5
    share = page.evaluate("sharesOf(n - 1, 0, candidatesAt(0).length)")
    largest = max(map(abs, share[2:-1]))
    for part in 0, 7, 19:
        expected = page.evaluate(f"colour('two', {share[2 + part] / largest})")
        x, y = (part % 5 + 0.5) * grid_side, (part // 5 + 0.5) * grid_side
        assert pixel(page, "shares", margin + x, margin + y) == expected


@pytest.mark.parametrize(
    "name, picture",
    [
        ("weights", "map"),
        ("weights", "wall"),
        ("q", "products"),
        ("norms", "norms"),
        ("added", "added"),
        ("shares", "shares"),
        ("knocked", "knocked"),
    ],
)
def test_other_numbers_make_another_picture(name, picture, visit, golden_path):
    page = visit(golden_path)
    shot = f"$('{picture}').toDataURL()"
    before = page.evaluate(shot)
    page.evaluate("wall.key = ''; delete document.documentElement.dataset.drawn; show()")
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate(shot) == before
    page.evaluate(f"arrays.{name}.values.reverse(); wall.key = ''")
    page.evaluate("delete document.documentElement.dataset.drawn; show()")
    page.wait_for_selector("html[data-drawn]")
    assert page.evaluate(shot) != before


@pytest.mark.parametrize(
    "name, place",
    [
        ("lens_ids", "lens-grid"),
        ("candidates", "rivals"),
        ("fired", "neurons"),
        ("carried", "looks"),
        ("pushed", "neurons"),
        ("full", "choices"),
    ],
)
def test_other_numbers_make_another_table(name, place, visit, golden_path):
    page = visit(golden_path, "#carried=true")
    before = page.locator(f"#{place}").inner_text()
    page.evaluate(f"arrays.{name}.values.reverse(); distributionToken = -1; show()")
    assert page.locator(f"#{place}").inner_text() != before


# Its controls


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


def test_where_motion_is_unwelcome_play_takes_one_step(visit, drawn_path):
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
def test_a_damaged_address_is_no_trouble(hash_, visit, drawn_path):
    page = visit(drawn_path, hash_)
    assert page.locator("#rivals tbody tr").count() == 10


# Who reads it


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
    for _ in range(n_prompt + 3):
        page.keyboard.press("ArrowLeft")
    assert page.evaluate("state.token") == 0


def test_half_a_character_is_shown_as_bytes(visit, make_page):
    page = visit(make_page("☃", *SHIPPED, "--n_tokens_to_generate", "0"))
    chips = page.locator("#tokens .chip bdi").all_inner_texts()
    assert "".join(chips).replace("⟩⟨", " ") == "⟨E2 98 83⟩"


@pytest.mark.parametrize("n_words, n_more", [(1, 3), (16, 4), (60, 0), (60, 6)])
def test_a_model_it_has_never_seen_and_the_end_of_its_context(
    n_words, n_more, models_dir, tiny, visit, make_page
):
    """2 blocks, 2 heads of 8, 260 tokens, a context of 32: the window, and what is beyond it."""
    text = "low " * n_words
    options = *model_options(models_dir), "--temperature", "1", "--seed", "1"
    page = visit(make_page(text, *options, "--n_tokens_to_generate", n_more))
    n_prompt = min(32, len(tiny[0].encode(text)))
    n_beyond = max(0, n_prompt + n_more - 32)
    assert page.evaluate("n") == min(32, n_prompt + n_more)
    assert page.evaluate("facts.beyond.length") == n_beyond
    assert page.locator(".chip.beyond").count() == n_beyond
    assert ("with a window that had moved on" in page.locator("#notes").inner_text()) == (
        n_beyond > 0
    )
    n_cut = max(0, len(tiny[0].encode(text)) - 32)
    assert (f"its first {n_cut} tokens" in page.locator("#notes").inner_text()) == (n_cut > 0)
    if n_beyond:  # what the last token was followed by is still said
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
    sums = page.evaluate("range(n).map(i => sharesOf(i, 2, null).reduce((a, b) => a + b))")
    logits = page.evaluate("range(n).map(i => candidatesAt(i)[2].logit)")
    np.testing.assert_allclose(sums, logits, rtol=0, atol=1e-4)


def test_what_is_thinned_out_is_said_and_the_rest_is_right(tmp_path, monkeypatch, visit, shipped):
    """The limits of a long text, met by a short one."""
    encoder, hparams, params = shipped
    for name, limit in {
        "N_WEIGHTS": 3000,
        "N_STRONGEST": 6 * 4 * 4 * 10,
        "N_BEST": 20 * 60,
        "N_BINS": 20 * 4,
        "N_PRODUCTS": 2 * 6 * 256 * 7,
        "N_LENS": 70,
        "N_SHARES": 11 * 33 * 5,
        "N_FIRED": 6 * 20 * 3,
        "A_MINUTE": 1e6,
    }.items():
        monkeypatch.setattr(data, name, limit)
    monkeypatch.setattr(explain, "N_NEURONS", 12)
    ids = encoder.encode("To be, or not to be: that is the question: whether it is nobler")[:20]
    arrays, fits, notes = explain.record(ids, 9, None, params, hparams)
    arrays["knocked"] = np.zeros((12, 5, 10), np.uint16)
    facts = {"model": "x", "ids": ids, "n_cut": 0, "beyond": [], "n_prompt": 9, "ended": "length"}
    facts |= {
        "hparams": hparams,
        "fits": fits,
        "notes": notes,
        "sampling": {"seed": None, "top_k": None},
    }
    path = tmp_path / "page.html"
    path.write_bytes(data.build(facts, arrays, encoder))
    page = visit(path)
    assert page.locator("#left-out li").count() == len(notes) >= 6
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    exact = [seen.weights for seen in explain.look(ids, **model)]
    start, stop = fits["weights"].start, fits["weights"].stop
    assert (start, stop) == (8, 18) and fits["strongest"] == 4
    assert (fits["best"], fits["bins"]) == (60, 4)
    i = 12  # elsewhere than at the prompt's end: best tokens and coarse bins
    p = gpt2.probabilities(gpt2.gpt2(ids[: i + 1], **model)[-1], temperature=0.9)
    options = {"temperature": 0.9, "top_k": None, "top_p": 1, "min_p": 0}
    found = page.evaluate(f"probabilities(distributionAt({i}), {json.dumps(options)})")
    error = [abs(x["p"] - p[x["id"]]) for x in found if x["id"] is not None]
    assert len(error) == 60 and max(error) < 1e-3
    for i in range(start, stop):
        row = np.array(list(page.evaluate(f"[...weightsOf(3, 1, {i}, false)]")))
        largest = np.sort(exact[3][1, i])[-4:]
        np.testing.assert_allclose(
            np.sort(row)[-4:], np.sort(largest)[-len(row) :][-4:], atol=0.004
        )
        assert np.count_nonzero(row) <= 4
    assert page.evaluate(f"weightsOf(0, 0, {start - 1}, false)") is None
    for i in 0, 8, 19:
        page.locator(f"#token-{i}").click()
        assert page.locator("main").inner_text()
    text = page.locator("main").inner_text()
    assert "are kept for positions" in text and "Go to position" in text


def test_a_browser_without_a_part_is_told(browser, drawn_path):
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
