// How a token is chosen from the logits: the same steps as in gpt2.py.

const FULL = 100;  // The right end of the slider for top-k means no limit.

const sliderOfTopK = k => (k === null ? FULL
  : Math.min(FULL - 1, Math.round(FULL * Math.log(k) / Math.log(n_vocab))));
const topKOfSlider = x => (x >= FULL ? null : Math.max(1, Math.round(n_vocab ** (x / FULL))));

let distribution = null, distributionToken = -1;

function drawChoosing() {
  const {token: i, temperature, top_k, top_p, min_p} = state;
  const values = {temperature, top_k: sliderOfTopK(top_k), top_p, min_p};
  const texts = {
    temperature: temperature || "0: the best", top_k: top_k ?? "all",
    top_p: top_p < 1 ? top_p : "all", min_p: min_p || "all",
  };
  for (const [name, value] of Object.entries(values)) {
    $(name).value = value;
    $(name).nextElementSibling.textContent = String(texts[name]);
  }
  if (distributionToken !== i) {
    distribution = distributionAt(i);
    distributionToken = i;
  }
  const left = probabilities(distribution, state), kept = left.reduce((sum, x) => sum + x.kept, 0);
  const named = left.filter(x => x.id !== null).slice(0, 12), best = left[0].p;
  const rest = 1 - named.reduce((sum, x) => sum + x.p, 0), others = kept - named.length;
  const rows = named.map(x => mark(
    [token(nameOf(x.id)), String(x.id), percent(x.p), bar(x.p / best)],
    x.id === nextId(i) ? "next" : ""));
  if (others > 0) rows.push([`${thousands(others)} others`, "", percent(Math.max(0, rest)), ""]);
  $("choices").replaceChildren(bars(["token", "id", "probability", ""], rows,
    `after ${tokenAt(i)}`));
  const exact = i === facts.n_prompt - 1;
  const penalty = facts.sampling.repetition_penalty ?? 1;
  $("choosing-text").replaceChildren("After ", token(tokenAt(i)),
    `, ${thousands(kept)} of ${thousands(n_vocab)} tokens can be drawn. `,
    facts.sampling.temperature === 0
      ? "The command always took the most likely token, as with temperature 0. "
      : "The sliders start at the command's settings. ",
    penalty !== 1 ? `The command's repetition penalty of ${penalty} is applied. ` : "",
    exact ? "" : `Here the page contains the logits of the best ${arrays.best.shape[1]} tokens ` +
      "exactly and the others rounded. At the end of the prompt it contains all of them exactly.");
}

function draw() {
  const left = probabilities(distributionAt(state.token), state);
  let x = Math.random();
  const drawn = left.find(one => (x -= one.p * one.kept) < 0) ?? left[left.length - 1];
  $("drawn").replaceChildren("Drawn: ", ...(drawn.id === null ? ["another token"]
    : [token(nameOf(drawn.id)), ` (${percent(drawn.p)})`]));
}
