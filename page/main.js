// The state of the page, which is also kept in its address. Each change draws the panels again.

const START = {
  token: facts.n_prompt - 1, layer: n_layer - 1, head: 0, key: null, carried: false,
  candidate: 0, versus: 0,
  temperature: facts.sampling.temperature || 1, top_k: facts.sampling.top_k,
  top_p: facts.sampling.top_p ?? 1, min_p: facts.sampling.min_p ?? 0,
};
const state = {...START};

function clampState() {
  state.token = limit(state.token, 0, n - 1);
  state.layer = limit(state.layer, 0, n_layer - 1);
  state.head = limit(state.head, 0, n_head - 1);
  if (state.key !== null) state.key = limit(state.key, 0, state.token);
  const count = arrays.candidates.shape[1];
  state.candidate = limit(state.candidate, 0, count - 1);
  state.versus = limit(state.versus, 0, count + 2);
  state.temperature = limit(state.temperature, 0, 100);
  state.top_p = limit(state.top_p, 0, 1);
  state.min_p = limit(state.min_p, 0, 1);
  if (state.top_k !== null) state.top_k = limit(Math.round(state.top_k), 1, n_vocab);
}

function change(changes) {
  if ("token" in changes && changes.token !== state.token) {
    changes = {candidate: 0, key: null, ...changes};
    $("drawn").textContent = "";
  }
  Object.assign(state, changes);
  clampState();
  const kept = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const address = kept.map(([name, value]) => `${name}=${value ?? "all"}`).join("&");
  history.replaceState(null, "", `#${address}`);
  show(changes);
}

// Select the head without which the best guess at the end of the prompt loses or gains most.
function selectStrongestHead() {
  const ablated = facts.fits.whole_layers ? null : ablationOf(START.token, 0);
  if (!ablated) return;
  const best = candidatesAt(START.token)[0].p;
  const effect = part => Math.abs(Math.log(ablated[part] / best));
  const isHead = part => part % (n_head + 1) < n_head;
  const [part] = range(ablated.length).filter(isHead).sort((a, b) => effect(b) - effect(a));
  Object.assign(START, {layer: Math.floor(part / (n_head + 1)), head: part % (n_head + 1)});
}

function readAddress() {
  Object.assign(state, START);
  for (const part of location.hash.slice(1).split("&")) {
    const [name, text] = part.split("=");
    if (!Object.hasOwn(START, name) || text === undefined) continue;
    if (name === "top_k" && text === "all") state.top_k = null;
    else if (name === "carried") state.carried = text === "true";
    else if (text !== "" && Number.isFinite(+text)) {
      state[name] = ["temperature", "top_p", "min_p"].includes(name) ? +text : Math.trunc(+text);
    }
  }
  clampState();
}

const SLIDERS = ["temperature", "top_k", "top_p", "min_p"];

function show(changes = null) {
  if (changes && Object.keys(changes).every(name => SLIDERS.includes(name))) return drawChoosing();
  drawModel();
  drawStrip();
  drawNext();
  drawLens();
  drawLooks();
  drawMap();
  drawWall();
  drawProducts();
  drawStream();
  drawWhy();
  drawChoosing();
}

const KEYS = {
  ArrowLeft: () => change({token: state.token - 1}),
  ArrowRight: () => change({token: state.token + 1}),
  Home: () => change({token: 0}),
  End: () => change({token: n - 1}),
  ArrowUp: () => change({layer: state.layer - 1}),
  ArrowDown: () => change({layer: state.layer + 1}),
  "[": () => change({head: state.head - 1}),
  "]": () => change({head: state.head + 1}),
  ",": () => change({key: keyOf() - 1}),
  ".": () => change({key: keyOf() + 1}),
  c: () => change({candidate: (state.candidate + 1) % arrays.candidates.shape[1]}),
  w: () => change({carried: !state.carried}),
  p: play,
  d: draw,
  "?": () => $("help").showModal(),
};

function pressed(event) {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const typing = event.target.closest("select, input") || $("help").open;
  const scrolls = event.target.closest(".scroll") && event.key.startsWith("Arrow");
  if (event.key === "Escape") say("");
  if (goToCell(event)) return event.preventDefault();
  if (!action || typing || scrolls || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function listen() {
  document.addEventListener("keydown", pressed);
  listenToCells();
  $("first").onclick = () => change({token: facts.n_prompt - 1});
  $("back").onclick = KEYS.ArrowLeft;
  $("forward").onclick = KEYS.ArrowRight;
  $("play").onclick = play;
  $("keys").onclick = KEYS["?"];
  $("close").onclick = () => $("help").close();
  $("draw").onclick = draw;
  for (const name of ["layer", "head", "key", "candidate", "versus"])
    $(name).onchange = event => change({[name]: +event.target.value});
  $("carried").onchange = event => change({carried: event.target.checked});
  for (const name of SLIDERS) {
    $(name).oninput = event => {
      const x = +event.target.value;
      change({[name]: name === "top_k" ? topKOfSlider(x) : x});
    };
  }
  addEventListener("hashchange", () => {
    if (location.hash && !location.hash.includes("=")) return;  // a link to a place in the page
    readAddress();
    show();
  });
  addEventListener("resize", () => show());
  dark.addEventListener("change", () => { drawScale(); show(); });
}

// List what the page contains if the text is too long for all of it: see what_fits in data.py.
function notesOnLimits() {
  const {steps, strongest, best, neurons, whole_layers, passes} = facts.fits, notes = [];
  const note = (condition, text) => { if (condition) notes.push(text); };
  const positions = (kind, what) => {
    const [start, stop] = facts.fits[kind];
    note(stop - start < n, `${what} for positions ${start} to ${stop - 1} only, out of ${n}`);
  };
  note(steps.length < 2 * n_layer + 1, "the logit lens after whole blocks, not after half blocks");
  positions("lens", "the logit lens");
  note(strongest, `the ${strongest} largest attention weights of each token in each head`);
  positions("pattern", "attention");
  positions("qk", "queries and keys");
  note(best < 200, `the exact logits of the ${best} most likely tokens at each position`);
  note(neurons < 16, `the ${neurons} strongest neurons for each token in each block`);
  positions("attribution", "direct logit attribution and ablation");
  note(whole_layers, passes
    ? "ablation of whole attention layers and MLPs: for single heads it takes more than a minute"
    : "no ablation: it takes more than five minutes");
  return notes;
}

function describe() {
  const {n_prompt, sampling, ended} = facts, n_beyond = facts.beyond.length;
  const chosen = sampling.seed === null ? "always the most likely one"
    : `drawn at temperature ${sampling.temperature} with seed ${sampling.seed}`;
  const ends = {"end of text": "Then the model ended the text.", stop: "Then came a stop text."};
  $("about").replaceChildren(make("strong", {}, facts.model),
    ` is a GPT-2 model with ${n_layer} blocks of ${n_head} heads each, ${n_embd} numbers per ` +
    `token, and a vocabulary of ${thousands(n_vocab)} tokens. It has read a prompt of ` +
    `${thousands(n_prompt)} ${n_prompt === 1 ? "token" : "tokens"}, and continued it with ` +
    `${thousands(n - n_prompt + n_beyond)} (${chosen}). ${ends[ended] ?? ""}`);
  const notes = notesOnLimits();
  if (facts.n_cut) {
    notes.unshift(`the end of the prompt, without its first ${facts.n_cut} tokens: they do not ` +
      "fit in the model's context");
  }
  if (n_beyond) {
    notes.unshift(`the first ${n} tokens, which fill the model's context: it wrote the other ` +
      `${n_beyond}, shown in grey at the top, after its window had moved on`);
  }
  $("holds").textContent = notes.length
    ? "The page would be too large, or take too long to make, with everything in it. It contains:"
    : "Everything, at every position. The numbers are rounded, but not visibly.";
  $("left-out").replaceChildren(...notes.map(text => make("li", {}, text)));
  for (const step of document.querySelectorAll(".step")) {
    const name = step.dataset.step, text = `Lesson, step ${parseInt(name, 10)}.`;
    step.replaceChildren(facts.address
      ? make("a", {href: `${facts.address}/lesson/README.md#${name}`}, text) : text);
  }
}

async function begin() {
  const lacking = ["DecompressionStream", "HTMLDialogElement"].filter(name => !(name in window));
  if (lacking.length) {
    $("lack").textContent = `This page needs ${lacking.join(" and ")}, which this browser does ` +
      "not have. Use Chromium 103, Firefox 113, Safari 16.4 or a newer version.";
    return;
  }
  $("lack").textContent = "The numbers are being unpacked.";
  await unpackAll();
  selectStrongestHead();
  readAddress();
  $("page").hidden = false;
  $("lack").remove();
  makeStrip();
  describe();
  drawScale();
  listen();
  show();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

begin().catch(error => {
  const lack = $("lack") ?? document.body.appendChild(make("p", {id: "lack", role: "alert"}));
  lack.textContent = `This page could not be shown: ${error.message}`;
  throw error;
});
