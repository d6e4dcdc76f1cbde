// The model, drawn as boxes; the tokens of the text; what the model predicts after the selected one.

// Draw the way of the selected token through the model. Each box leads to its panel.
function drawModel() {
  const {token: i, layer, head} = state, [best] = candidatesAt(i);
  const box = (place, name, ...about) =>
    make("a", {href: `#${place}`}, make("strong", {}, name), make("span", {}, ...about));
  $("model").replaceChildren(
    box("strip", "token", token(tokenAt(i)), ` ${ids[i]}`), "→",
    box("stream", "embedding", `position ${i}, ${n_embd} numbers`), "→",
    make("span", {class: "block"}, box("attention", "attention", `block ${layer}, head ${head}`), "→",
      box("mlp", "MLP", `block ${layer}`), `× ${n_layer}`), "→",
    box("next", "logits", token(nameOf(best.id)), ` ${percent(best.p)}`), "→",
    box("choosing", "choice", i + 1 < n ? token(tokenAt(i + 1)) : ""),
    make("span", {class: "closer"}, "Look closer: ",
      ...[["lens", "logit lens"], ["why", "why this token?"], ["notes", "what this page contains"]]
        .map(([place, name]) => make("a", {href: `#${place}`}, name))));
}

function makeStrip() {
  const list = $("tokens");
  ids.forEach((id, i) => {
    const chip = make("span", {
      id: `token-${i}`, role: "option", class: i < facts.n_prompt ? "chip prompt" : "chip",
      "aria-selected": "false", onclick: () => change({token: i}),
    }, token(nameOf(id)), make("i", {"aria-hidden": "true"}));
    list.append(chip);
    if (nameOf(id).endsWith("⏎")) list.append(make("span", {class: "break", "aria-hidden": "true"}));
  });
  facts.beyond.forEach(id => list.append(make("span", {
    class: "chip beyond", "aria-hidden": "true", title: "after the part that the page shows",
  }, token(nameOf(id)))));
}

function drawStrip() {
  const {token: i, layer, head, carried} = state, list = $("tokens");
  const pattern = patternOf(layer, head, i, carried) ?? [], most = Math.max(...pattern);
  ids.forEach((_, j) => {
    const chip = $(`token-${j}`);
    chip.setAttribute("aria-selected", String(i === j));
    chip.lastChild.style.width = `${100 * (pattern[j] ?? 0) / most}%`;
  });
  list.setAttribute("aria-activedescendant", `token-${i}`);
  const chip = $(`token-${i}`);  // Its scrollIntoView() would scroll the page, too.
  const above = chip.offsetTop - list.scrollTop;
  if (above < 0 || above + chip.offsetHeight > list.clientHeight)
    list.scrollTop = chip.offsetTop - list.clientHeight / 2;
  const hex = hexOf(bytesOf(ids[i]));
  $("chosen").replaceChildren(
    make("strong", {}, "Selected: ", token(tokenAt(i))),
    `, position ${i}, id ${ids[i]}, `,
    `${hex.length === 1 ? "byte" : "bytes"} ${hex.slice(0, 12).join(" ")}`,
    `${hex.length > 12 ? " …" : ""}. Blue bars: what it looks at in block ${layer}, head ${head}.`,
    list.scrollHeight > list.clientHeight ? " ↕ The text scrolls." : "");
}

function drawNext() {
  const i = state.token, next = nextId(i), candidates = candidatesAt(i);
  const best = candidates[0].p, drawn = i >= facts.n_prompt - 1;
  const rows = candidates.map(x => {
    const what = x.id === next ? (drawn ? "was chosen" : "is in the prompt") : "";
    const rank = rowOf("best", i).indexOf(x.id) + 1 || `> ${arrays.best.shape[1]}`;
    const row = [`${rank}`, token(nameOf(x.id)), String(x.id), percent(x.p), bar(x.p / best), what];
    return mark(row, x.id === next ? "next" : "");
  });
  const head = ["rank", "next token", "id", "probability", "", ""];
  $("rivals").replaceChildren(bars(head, rows, `after ${tokenAt(i)}`));
  $("play").textContent = playing ? "Stop" : "Play";
  $("play").setAttribute("aria-pressed", String(Boolean(playing)));
  $("next-title").replaceChildren("What comes after ", token(tokenAt(i)));
}

// Playing starts at the end of the prompt, or at the selected token if that comes later.
let playing = null;

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
    return show();
  }
  const i = state.token, last = facts.n_prompt - 1, start = i >= last && i < n - 1 ? i + 1 : last;
  if (!reducedMotion.matches) {
    playing = setInterval(() => {
      if (state.token < n - 1) change({token: state.token + 1});
      if (state.token === n - 1 && playing) play();
    }, 1200);
  }
  change({token: Math.min(start, n - 1)});  // With reduced motion, each click is one step.
}
