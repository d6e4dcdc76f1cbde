// Attention: the patterns of all heads and of the selected one, and a product of query and key.

// Return a head's pattern as size x size bytes. If weights share a pixel, it shows the largest.
function mapOf(layer, head, size, carried) {
  const bytes = new Uint8Array(size * size);
  for (let i = 0; i < n; i++) {
    const pattern = patternOf(layer, head, i, carried), y = Math.floor(i * size / n);
    for (let j = 0; pattern && j <= i; j++) {
      const pixel = y * size + Math.floor(j * size / n);
      bytes[pixel] = Math.max(bytes[pixel], Math.round(255 * Math.sqrt(pattern[j])));
    }
  }
  return bytes;
}

// Return the position of the selected key, which is by default the one with the largest weight.
function keyOf() {
  const pattern = patternOf(state.layer, state.head, state.token, state.carried) ?? [1];
  return state.key ?? pattern.indexOf(Math.max(...pattern));
}

const wall = {key: "", side: 0, picture: document.createElement("canvas")};

// Draw the maps of all heads, a row for each block. The page can react to input after each row.
async function drawWall() {
  const room = roomFor("wall") - MARGIN, key = [room, state.carried, dark.matches].join();
  if (key === wall.key) return frameWall();
  Object.assign(wall, {key, side: Math.max(6, Math.min(96, Math.floor(room / n_head)))});
  const inner = wall.side - (wall.side > 12 ? 3 : 1), size = Math.min(n, 2 * inner);
  const ratio = window.devicePixelRatio || 1, side = wall.side * ratio, colours = palette();
  Object.assign(wall.picture, {width: side * n_head, height: side * n_layer});
  const context = wall.picture.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (let layer = 0; layer < n_layer; layer++) {
    for (let head = 0; head < n_head; head++) {
      const picture = pixels(mapOf(layer, head, size, state.carried), size, size, colours);
      context.drawImage(picture, head * side, layer * side, inner * ratio, inner * ratio);
    }
    frameWall();
    await new Promise(done => setTimeout(done));
    if (key !== wall.key) return;
  }
  document.documentElement.dataset.drawn = "";
}

function frameWall() {
  const {side, picture} = wall;
  const context = canvas("wall", side * n_head + MARGIN, side * n_layer + MARGIN);
  context.drawImage(picture, MARGIN, MARGIN, side * n_head, side * n_layer);
  axes(context, range(n_layer), range(n_head), side);
  frame(context, MARGIN + state.head * side - 1, MARGIN + state.layer * side - 1, side, side);
  const text = (layer, head) => {
    const pattern = patternOf(layer, head, state.token, state.carried) ?? [0];
    const most = pattern.indexOf(Math.max(...pattern));
    return `block ${layer}, head ${head}: ${tokenAt(state.token)} looks most at ${tokenAt(most)}, ` +
      percent(pattern[most]);
  };
  const at = (x, y) => cellAt(x, y, side, n_head);
  describeCells("wall", (x, y) => text(...at(x, y)), text(state.layer, state.head));
  $("wall").onclick = event => {
    const [layer, head] = at(event.offsetX, event.offsetY);
    change({layer, head});
  };
}

// Draw the map of the selected head, with the tokens on two sides if there is room for them.
function drawMap() {
  const {token: i, layer, head, carried} = state, key = keyOf();
  const room = Math.min(roomFor("map"), 640);
  const named = (room - 90) / n >= 9, left = 90;
  const side = named ? Math.floor((room - left) / n) : (room - left) / n, width = side * n;
  const isNamed = j => named || j === i || j === key;  // at least the two that are selected
  const context = canvas("map", left + width, left + width);
  const picture = pixels(mapOf(layer, head, n, carried), n, n, palette());
  context.drawImage(picture, left, left, width, width);
  context.fillStyle = themed("--ink");
  context.font = `${named ? Math.min(11, side) : 11}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (let j = 0; j < n; j++) {
    if (!isNamed(j)) continue;
    const label = nameOf(ids[j]), middle = left + (j + 0.5) * side;
    context.textAlign = "right";
    context.fillText(label, left - 4, middle, left - 6);
    context.save();
    context.translate(middle, left - 4);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(label, 0, 0, left - 6);
    context.restore();
  }
  context.fillStyle = themed("--soft");
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.fillText("is looked at →", left - 4, 12);
  context.fillText("looks ↓", left - 4, left - 12);
  frame(context, left, left + i * side, (i + 1) * side, side);
  frame(context, left + key * side, left + i * side, side, side);
  $("map-title").textContent = `Attention pattern of block ${layer}, head ${head}`;
  const index = x => limit(Math.floor((x - left) / side), 0, n - 1);
  const text = (query, at) => {
    const weight = patternOf(layer, head, query, carried)?.[at];
    return `block ${layer}, head ${head}: ${tokenAt(query)} (${query}) looks at ` +
      `${tokenAt(at)} (${at}), ${percent(weight ?? 0)}`;
  };
  describeCells("map", (x, y) => text(index(y), index(x)), text(i, key));
  $("map").onclick = event => {
    const query = index(event.offsetY);
    change({token: query, key: Math.min(index(event.offsetX), query)});
  };
}

function drawScale() {
  const context = canvas("scale", 160, 12), colours = palette();
  context.drawImage(pixels(Uint8Array.from(range(256)), 256, 1, colours), 0, 0, 160, 12);
  $("scale-text").replaceChildren("Weights from 0 ", $("scale"),
    " to 1. The colour shows the square root, so that small weights are visible.");
}

function drawLooks() {
  const {token: i, layer, head, carried} = state, key = keyOf();
  const pattern = patternOf(layer, head, i, carried);
  options($("layer"), range(n_layer).map(String), layer);
  options($("head"), range(n_head).map(String), head);
  options($("key"), range(i + 1).map(j => `${j} ${tokenAt(j)}`), key);
  $("carried").checked = carried;
  tableIn("map-table", () => (pattern ? table(["position", "token", "score", "weight"],
    Array.from(pattern, (x, j) =>
      [String(j), token(tokenAt(j)), scoreOf(layer, head, i, j), percent(x)])) : "–"));
  if (!pattern) {
    const [start, stop] = facts.fits.pattern;
    $("looks").textContent =
      `The page contains attention for positions ${start} to ${stop - 1} only.`;
    return;
  }
  const norms = rowOf("value_norms", layer, head);
  const largest = range(i + 1).sort((a, b) => pattern[b] - pattern[a]).slice(0, 6);
  const rows = largest.map(j => mark([String(j), token(tokenAt(j)), scoreOf(layer, head, i, j),
    numberOf(norms[j]).toFixed(2), percent(pattern[j]), bar(pattern[j])], j === key ? "next" : ""));
  $("looks").replaceChildren(
    make("p", {}, token(tokenAt(i)), carried ? " takes in most from:" : " looks most at:"),
    bars(["position", "token", "score", "value", "weight", ""], rows,
      `block ${layer}, head ${head}: ${tokenAt(i)} looks at`),
    make("p", {class: "legend"}, "value: the size of the token's value, 1 for the largest of this head"));
}

// Return the score of a query and a key as text, before softmax makes a weight of it.
function scoreOf(layer, head, i, j) {
  const products = productsOf(layer, head, i, j);
  return products ? signed(products.reduce((sum, x) => sum + x.product, 0)) : "–";
}

function drawProducts() {
  const {token: i, layer, head} = state, key = keyOf(), products = productsOf(layer, head, i, key);
  $("products-title").replaceChildren(
    "Why does ", token(tokenAt(i)), " look at ", token(tokenAt(key)), "?");
  $("products").hidden = !products;
  tableIn("products-table", () => (products ? table(["dimension", "query", "key", "divided product"],
    products.map(({q, k, product}, d) =>
      [String(d), decimal(q, 3), decimal(k, 3), signed(product)])) : "–"));
  if (!products) {
    const [start, stop] = facts.fits.qk;
    $("products-text").textContent =
      `The page contains queries and keys for positions ${start} to ${stop - 1} only.`;
    return;
  }
  const values = products.map(x => x.product), sum = values.reduce((a, b) => a + b, 0);
  const names = values.map((_, d) => `block ${layer}, head ${head}, ${tokenAt(i)} looks at ` +
    `${tokenAt(key)}, dimension ${d}`);
  const axes = ["product", `dimension, from 0 to ${values.length - 1} →`];
  const colours = values.map(x => css(colour("two", x < 0 ? -0.6 : 0.6)));
  columns("products", values, colours, axes, names, 0);
  const weight = patternOf(layer, head, i, false)?.[key];
  $("products-text").textContent =
    `The score is ${signed(sum)}, the sum of ${values.length} products. Softmax turns all scores ` +
    `of the token into weights that add up to 1. The weight here is ${percent(weight)}.`;
}
