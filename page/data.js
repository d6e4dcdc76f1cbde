"use strict";
// What data.py has packed, and the questions that the panels ask of it. Everything here is global
// to the script of the page: facts are the small things, arrays the large ones, by data.py's names.

const facts = JSON.parse(document.getElementById("data").textContent);
const arrays = {};
const ids = facts.ids, n = ids.length, {n_layer, n_head, n_embd, n_vocab} = facts.hparams;
const TYPES = {
  u1: Uint8Array, i1: Int8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array,
};
let wordStarts;

async function unpack({type, shape, step, data}) {
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
  let values = new Type(bytes.buffer);
  if (step) values = Float64Array.from(values, x => x * step);
  return {values, shape};
}

async function unpackAll() {
  const names = Object.keys(facts.arrays);
  const all = await Promise.all(names.map(name => unpack(facts.arrays[name])));
  names.forEach((name, i) => { arrays[name] = all[i]; });
  facts.arrays = null;
  wordStarts = new Uint32Array(n_vocab + 1);
  arrays.word_lengths.values.forEach((length, id) => {
    wordStarts[id + 1] = wordStarts[id] + length;
  });
}

// The last axis of an array at a place on the others.
function line(name, ...place) {
  const {values, shape} = arrays[name];
  const length = shape[shape.length - 1];
  const index = place.reduce((sum, x, axis) => sum * shape[axis] + x, 0);
  return values.subarray(index * length, (index + 1) * length);
}

// Tokens

function bytesOf(id) {
  return arrays.word_bytes.values.subarray(wordStarts[id], wordStarts[id + 1]);
}

const hex = (x, length) => x.toString(16).toUpperCase().padStart(length, "0");
const hexOf = bytes => Array.from(bytes, x => hex(x, 2));

// A token so that all of it can be seen: " be" is "␣be", part of a character "⟨E2 98⟩".
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

// Which positions of a long text have this? fits: [first, behind the last one]

function placeOf(kind, i) {
  const [start, stop] = facts.fits[kind];
  return i >= start && i < stop ? i - start : -1;
}

// Attention

// How token i of a head shares its attention: a number from 0 to 1 for each token up to itself,
// or null where it is left out. carried: weighed by the size of the values, and again a whole.
function weightsOf(layer, head, i, carried) {
  const place = placeOf("weights", i);
  if (place < 0) return null;
  const weights = new Float32Array(i + 1), {values, shape} = arrays.weights;
  if (facts.fits.strongest) {
    const found = line("weights", layer, head, place);
    const at = line("weight_places", layer, head, place);
    found.forEach((x, j) => { if (at[j] <= i) weights[at[j]] = (x / 255) ** 2; });
  } else {
    const start = (layer * n_head + head) * shape[2] + i * (i + 1) / 2;
    for (let j = 0; j <= i; j++) weights[j] = (values[start + j] / 255) ** 2;
  }
  if (!carried) return weights;
  const sizes = line("carried", layer, head);
  let sum = 0;
  weights.forEach((x, j) => { sum += weights[j] = x * (sizes[j] / 255) ** 2; });
  return sum ? weights.map(x => x / sum) : weights;
}

// Query and key of a pair, number by number, and their products divided by the root of their count.
function productsOf(layer, head, i, j) {
  const a = placeOf("products", i), b = placeOf("products", j);
  if (a < 0 || b < 0) return null;
  const scale = name => line(`${name}_scale`, layer, head);
  const q = Array.from(line("q", layer, head, a), (x, d) => x * scale("q")[d]);
  const k = Array.from(line("k", layer, head, b), (x, d) => x * scale("k")[d]);
  return q.map((x, d) => ({q: x, k: k[d], product: x * k[d] / Math.sqrt(q.length)}));
}

// What may come next

function candidatesAt(i) {
  const logits = line("logits", i), sum = arrays.log_sum.values[i];
  return Array.from(line("candidates", i), (id, c) =>
    ({id, place: c, logit: logits[c], p: Math.exp(logits[c] - sum)}));
}

function probabilityOf(i, id) {
  return candidatesAt(i).find(x => x.id === id)?.p;
}

// The distribution after token i: {id, logit, count}, the likeliest first. After the prompt it is
// all of the vocabulary; elsewhere its best tokens, and the others in groups without an id.
function distributionAt(i) {
  const penalty = facts.sampling.repetition_penalty ?? 1;
  const there = penalty === 1 ? null : new Set(ids.slice(0, i + 1));
  const penalized = (id, logit) =>
    there?.has(id) ? (logit < 0 ? logit * penalty : logit / penalty) : logit;
  let all;
  if (i === facts.n_prompt - 1) {
    all = Array.from(arrays.full.values, (x, id) => ({id, logit: penalized(id, x), count: 1}));
  } else {
    const logits = line("best_logits", i);
    all = Array.from(line("best", i), (id, c) => ({id, logit: penalized(id, logits[c]), count: 1}));
    const [start, stop] = arrays.bin_starts.values.subarray(i, i + 2);
    for (let bin = start; bin < stop; bin++) {
      const count = arrays.bin_counts.values[bin];
      const below = bin - start + (arrays.bin_means.values[bin] + 0.5) / 256;
      const logit = logits[logits.length - 1] - below / facts.fits.bins;
      if (count) all.push({id: null, logit, count});
    }
  }
  return all.sort((a, b) => b.logit - a.logit);
}

// gpt2.probabilities, for a distribution with groups: adds to each how many are left (kept) and
// the probability of one of them (p).
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

// Shares and knock-outs: what the parts are called, in data.py's order

function sharesOf(i, candidate, versus) {
  const place = placeOf("shares", i);
  if (place < 0) return null;
  const shares = Array.from(line("shares", place, candidate));
  if (versus === null) return shares;
  const others = line("shares", place, versus);
  return shares.map((x, part) => x - others[part]);
}

function shareNames() {
  const names = ["token embedding", "position"];
  for (let layer = 0; layer < n_layer; layer++) {
    for (let head = 0; head < n_head; head++) names.push(`block ${layer} head ${head}`);
    names.push(`block ${layer} MLP`);
  }
  return [...names, "biases"];
}

// The probability of a candidate without each part, or null.
function knockedOf(i, candidate) {
  const place = placeOf("shares", i);
  if (place < 0 || !arrays.knocked) return null;
  const [parts, m, c] = arrays.knocked.shape;
  return Array.from({length: parts}, (_, part) =>
    (arrays.knocked.values[(part * m + place) * c + candidate] / 65535) ** 2);
}

function knockedNames() {
  if (!facts.fits.whole_layers) return shareNames().slice(2, -1);
  return Array.from({length: 2 * n_layer}, (_, part) =>
    `block ${part >> 1} ${part % 2 ? "MLP" : "attention"}`);
}

// Steps of the lens: 0 is the embedding, 2i + 1 the attention of block i, 2i + 2 its MLP.
const stepName = (step, attention = "attention") =>
  step ? `block ${(step - 1) >> 1} ${step % 2 ? attention : "MLP"}` : "embedding";
