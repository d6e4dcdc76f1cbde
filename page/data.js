"use strict";
// The data of the page, unpacked, and the functions with which the panels read it. All scripts of
// the page share one global scope. facts come from explain.py, and arrays from record.py.

const facts = JSON.parse(document.getElementById("data").textContent);
const arrays = {};
const ids = facts.ids, n = ids.length, {n_layer, n_head, n_embd, n_vocab} = facts.hparams;
const TYPES = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array,
};
let tokenStarts;  // for each id, the index of its first byte in token_bytes

async function unpack({type, shape, data}) {
  const text = atob(data), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const Type = TYPES[type], size = Type.BYTES_PER_ELEMENT, length = planes.length / size;
  const bytes = size === 1 ? planes : new Uint8Array(planes.length);
  if (size > 1) {
    for (let plane = 0; plane < size; plane++)
      for (let i = 0; i < length; i++) bytes[i * size + plane] = planes[plane * length + i];
  }
  return {values: new Type(bytes.buffer), shape};
}

async function unpackAll() {
  const names = Object.keys(facts.arrays);
  const all = await Promise.all(names.map(name => unpack(facts.arrays[name])));
  names.forEach((name, i) => { arrays[name] = all[i]; });
  facts.arrays = null;
  tokenStarts = new Uint32Array(n_vocab + 1);
  arrays.token_lengths.values.forEach((length, id) => {
    tokenStarts[id + 1] = tokenStarts[id] + length;
  });
}

// Return the numbers along the last axis of an array, for one index of each other axis.
function rowOf(name, ...indices) {
  const {values, shape} = arrays[name];
  const length = shape[shape.length - 1];
  const row = indices.reduce((sum, index, axis) => sum * shape[axis] + index, 0);
  return values.subarray(row * length, (row + 1) * length);
}

// Undo quantize_root in data.py: return a number from 0 to 1.
const numberOf = root => (root / 65535) ** 2;

// Tokens

function bytesOf(id) {
  return arrays.token_bytes.values.subarray(tokenStarts[id], tokenStarts[id + 1]);
}

const hex = (x, length) => x.toString(16).toUpperCase().padStart(length, "0");
const hexOf = bytes => Array.from(bytes, x => hex(x, 2));

// Return a token with all characters visible: " be" as "␣be", part of a character as "⟨E2 98⟩".
function nameOf(id) {
  const bytes = bytesOf(id);
  if (!bytes.length) return "⟨no token⟩";
  let text;
  try {
    text = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);
  } catch {
    return `⟨${hexOf(bytes).join(" ")}⟩`;
  }
  text = text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  text = text.replace(/[\p{C}\p{Z}\u034F\u115F\u1160\u3164]/gu, char =>
    `⟨U+${hex(char.codePointAt(0), 4)}⟩`);
  return /^\p{M}/u.test(text) ? `◌${text}` : text;
}

const tokenAt = i => nameOf(ids[i]);
const nextId = i => (i + 1 < n ? ids[i + 1] : facts.beyond[0]);

// If the text is long, some arrays contain only the positions from start to stop. Return the index
// of position i in such an array, or -1.
function indexIn(kind, i) {
  const [start, stop] = facts.fits[kind];
  return i >= start && i < stop ? i - start : -1;
}

// Attention

// Return the attention weights of token i in one head, one for each token up to i, or null if the
// page does not contain them. carried: multiply them by the sizes of the values, and scale the
// results so that their sum is 1 again.
function patternOf(layer, head, i, carried) {
  const index = indexIn("pattern", i);
  if (index < 0) return null;
  const pattern = new Float32Array(i + 1), {values, shape} = arrays.pattern;
  if (facts.fits.strongest) {
    const keys = rowOf("pattern_keys", layer, head, index);
    rowOf("pattern", layer, head, index).forEach((x, j) => {
      if (keys[j] <= i) pattern[keys[j]] = numberOf(x);
    });
  } else {
    const start = (layer * n_head + head) * shape[2] + i * (i + 1) / 2;
    for (let j = 0; j <= i; j++) pattern[j] = numberOf(values[start + j]);
  }
  if (!carried) return pattern;
  const norms = rowOf("value_norms", layer, head);
  let sum = 0;
  pattern.forEach((x, j) => { sum += pattern[j] = x * numberOf(norms[j]); });
  return sum ? pattern.map(x => x / sum) : pattern;
}

// Return the numbers of a query and a key, and their products divided by the square root of the
// length. The sum of the divided products is the score.
function productsOf(layer, head, i, j) {
  const indices = [indexIn("qk", i), indexIn("qk", j)];
  if (Math.min(...indices) < 0) return null;
  const [q, k] = indices.map((index, which) => {
    const steps = rowOf("qk_step", layer, which, head);
    return Array.from(rowOf("qk", layer, which, head, index), (x, d) => x * steps[d]);
  });
  return q.map((x, d) => ({q: x, k: k[d], product: x * k[d] / Math.sqrt(q.length)}));
}

// What may come next

function candidatesAt(i) {
  const logits = rowOf("candidate_logits", i), sum = arrays.log_sum_exp.values[i];
  return Array.from(rowOf("candidates", i), (id, c) =>
    ({id, logit: logits[c], p: Math.exp(logits[c] - sum)}));
}

// Return the distribution after token i as a list of {id, logit, count}, the most likely first. At
// the end of the prompt it contains all tokens. Elsewhere it contains the most likely tokens, and
// groups of other tokens with similar logits, whose id is null.
function distributionAt(i) {
  const penalty = facts.sampling.repetition_penalty ?? 1;
  const earlier = new Set(ids.slice(0, i + 1));
  const penalized = (id, logit) => {
    if (penalty === 1 || !earlier.has(id)) return logit;
    return logit < 0 ? logit * penalty : logit / penalty;
  };
  const one = (id, logit) => ({id, logit: penalized(id, logit), count: 1});
  let all;
  if (i === facts.n_prompt - 1) {
    all = Array.from(arrays.prompt_logits.values, (logit, id) => one(id, logit));
  } else {
    const logits = rowOf("best_logits", i), last = logits[logits.length - 1];
    all = Array.from(rowOf("best", i), (id, c) => one(id, logits[c]));
    const means = rowOf("bin_means", i);
    rowOf("bin_counts", i).forEach((count, bin) => {
      const below = (bin + (means[bin] + 0.5) / 256) / facts.fits.bins;
      if (count) all.push({id: null, logit: last - below, count});
    });
  }
  return all.sort((a, b) => b.logit - a.logit);
}

// Do what gpt2.probabilities does, for a distribution with groups. Each group gets kept, the number
// of its tokens that remain, and p, the probability of one of them.
function probabilities(distribution, {temperature, top_k, top_p, min_p}) {
  const best = distribution[0].logit;
  if (!temperature) return [{...distribution[0], kept: 1, p: 1}];
  let left = distribution.map(x =>
    ({...x, kept: x.count, p: Math.exp((x.logit - best) / temperature)}));
  const keep = rule => {
    left = left.map((x, rank) => ({...x, kept: rule(x, rank)})).filter(x => x.kept && x.p);
    const sum = left.reduce((total, x) => total + x.kept * x.p, 0);
    left.forEach(x => { x.p /= sum; });
  };
  let before = 0, last = null;
  keep(x => {
    const room = Math.max(0, (top_k ?? Infinity) - before);
    const kept = x.logit === last ? x.count : Math.min(x.count, room);
    if (kept) last = x.logit;
    before += x.count;
    return kept;
  });
  if (top_p < 1) {
    before = 0;
    keep((x, rank) => {
      const kept = Math.min(x.kept, Math.max(rank === 0, Math.ceil((top_p - before) / x.p)));
      before += x.kept * x.p;
      return kept;
    });
  }
  if (min_p > 0) {
    const limit = min_p * left[0].p;
    keep(x => (x.p < limit ? 0 : x.kept));
  }
  return left;
}

// Attribution and ablation, with the parts of the model in the order of record.py

// Return what each part contributes to the logit of a candidate, or with versus to the difference
// between the logits of two candidates. Return null if the page does not contain it.
function attributionOf(i, candidate, versus) {
  const index = indexIn("attribution", i);
  if (index < 0) return null;
  const contributions = Array.from(rowOf("attribution", index, candidate));
  if (versus === null) return contributions;
  const others = rowOf("attribution", index, versus);
  return contributions.map((x, part) => x - others[part]);
}

function partNames() {
  const names = ["token embedding", "position"];
  for (let layer = 0; layer < n_layer; layer++) {
    for (let head = 0; head < n_head; head++) names.push(`block ${layer} head ${head}`);
    names.push(`block ${layer} MLP`);
  }
  return [...names, "biases"];
}

// Return the probability of a candidate without each of the ablated parts, or null.
function ablationOf(i, candidate) {
  const index = indexIn("attribution", i);
  if (index < 0 || !arrays.ablation) return null;
  return range(arrays.ablation.shape[0]).map(part =>
    numberOf(rowOf("ablation", part, index)[candidate]));
}

function ablatedNames() {
  if (!facts.fits.whole_layers) return partNames().slice(2, -1);
  return range(n_layer).flatMap(layer => [`block ${layer} attention`, `block ${layer} MLP`]);
}

// Steps of the residual stream: 0 is the embedding, 2i + 1 follows the attention of block i, and
// 2i + 2 follows its MLP.
const layerOf = step => Math.floor((step - 1) / 2);
const stepName = (step, attention = "attention") =>
  step ? `block ${layerOf(step)} ${step % 2 ? attention : "MLP"}` : "embedding";
