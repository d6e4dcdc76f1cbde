// The state of the page, which its address keeps. Each change draws the panels again.

const START = {
  token: facts.n_prompt - 1, layer: n_layer - 1, head: 0, key: null, carried: false,
  candidate: 0, versus: 0,
  temperature: facts.sampling.temperature || 1, top_k: facts.sampling.top_k,
  top_p: facts.sampling.top_p ?? 1, min_p: facts.sampling.min_p ?? 0,
};
const state = {...START};

function tidy() {
  state.token = limit(state.token, 0, n - 1);
  state.layer = limit(state.layer, 0, n_layer - 1);
  state.head = limit(state.head, 0, n_head - 1);
  if (state.key !== null) state.key = limit(state.key, 0, state.token);
  const count = arrays.candidates.shape[1];
  state.candidate = limit(state.candidate, 0, count - 1);
  state.versus = limit(state.versus, 0, count + 1);
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
  tidy();
  const kept = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const address = kept.map(([name, value]) => `${name}=${value ?? "all"}`).join("&");
  history.replaceState(null, "", `#${address}`);
  show(changes);
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
  tidy();
}

const SLIDERS = ["temperature", "top_k", "top_p", "min_p"];

function show(changes = null) {
  if (changes && Object.keys(changes).every(name => SLIDERS.includes(name))) return drawChoosing();
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
  if (!action || typing || scrolls || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function listen() {
  document.addEventListener("keydown", pressed);
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
  addEventListener("hashchange", () => { readAddress(); show(); });
  addEventListener("resize", () => show());
  dark.addEventListener("change", () => { drawScale(); show(); });
}

// What the page leaves out of a long text, see what_fits in data.py.
function notesOnLimits() {
  const {steps, strongest, best, neurons, whole_layers, passes} = facts.fits, notes = [];
  const note = (condition, text) => { if (condition) notes.push(text); };
  const positions = (kind, what) => {
    const [start, stop] = facts.fits[kind];
    note(stop - start < n, `${what} for positions ${start} to ${stop - 1} only, of ${n}`);
  };
  note(steps.length < 2 * n_layer + 1, "the lens after whole blocks, not half blocks");
  positions("lens", "the lens");
  note(strongest, `of each token's attention the ${strongest} largest weights`);
  positions("pattern", "attention");
  positions("qk", "queries and keys");
  note(best < 200, `of each distribution the ${best} best tokens one by one`);
  note(neurons < 16, `of each block and token the ${neurons} strongest neurons`);
  positions("attribution", "shares and knock-outs");
  note(whole_layers, passes
    ? "knock-outs of whole layers: of single heads they take longer than a minute"
    : "no knock-outs: they take longer than five minutes");
  return notes;
}

function tell() {
  const {n_prompt, sampling, ended} = facts, n_beyond = facts.beyond.length;
  const chosen = sampling.seed === null ? "the most likely token each time"
    : `draws at temperature ${sampling.temperature}, seed ${sampling.seed}`;
  const ends = {"end of text": "Then the model ended the text.", stop: "Then came a stop."};
  $("about").replaceChildren(make("strong", {}, facts.model),
    `, a GPT-2 of ${n_layer} blocks with ${n_head} heads, ${n_embd} numbers for each token, ` +
    `${thousands(n_vocab)} tokens to choose from. ${thousands(n_prompt)} ` +
    `${n_prompt === 1 ? "token" : "tokens"} of prompt, ${thousands(n - n_prompt + n_beyond)} of ` +
    `continuation (${chosen}). ${ends[ended] ?? ""}`);
  const notes = notesOnLimits();
  if (facts.n_cut) {
    notes.unshift(`the end of the prompt: its first ${facts.n_cut} tokens are more than the model ` +
      "sees at once, and are left out");
  }
  if (n_beyond) {
    notes.unshift(`the first ${n} tokens, as many as the model sees at once; ${n_beyond} more ` +
      "were written with a window that had moved on, and are grey in the strip");
  }
  $("holds").textContent = notes.length
    ? "To keep the file small and its making short, it holds not all, but:"
    : "Everything, at every position; numbers are rounded, but less than a picture shows.";
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
    $("lack").textContent = `This browser lacks ${lacking.join(" and ")}, which this page needs: ` +
      "Chromium 103, Firefox 113, Safari 16.4 or newer have it.";
    return;
  }
  $("lack").textContent = "One moment: the numbers are being unpacked.";
  await unpackAll();
  readAddress();
  $("page").hidden = false;
  $("lack").remove();
  makeStrip();
  tell();
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
