// The lengths of the residual stream, and the neurons that add most to it.

function drawStream() {
  const i = state.token;
  const atToken = name => range(arrays[name].shape[0]).map(step => rowOf(name, step)[i]);
  const norms = atToken("resid_norms"), added = atToken("added_norms");
  const names = ["--plain", ...added.map((_, step) => (step % 2 ? "--mlp" : "--attention"))];
  const colours = names.map(themed);
  const steps = norms.map((_, step) => `${tokenAt(i)} after ${stepName(step)}`);
  const chosen = 2 * state.layer + 1;
  const last = `block ${n_layer - 1}`;
  columns("norms", norms, colours, ["length", `the embedding and the half blocks, up to ${last} →`],
    steps, chosen);
  columns("added", added, colours.slice(1), ["length", `half blocks, from block 0 to ${last} →`],
    steps.slice(1), chosen - 1);
  $("embedding-text").textContent = `The stream begins as the sum of two rows, one for the token and ` +
    `one for its position; its length is ${norms[0].toFixed(2)}. Each half block reads a copy that ` +
    "layer norm has scaled to a standard size, so growing streams do no harm.";
  tableIn("norms-table", () => table(["after", "length of the stream", "length of what was added"],
    norms.map((x, step) =>
      [stepName(step), x.toFixed(2), step ? added[step - 1].toFixed(2) : "–"])));
  drawNeurons(i);
}

let rowOfNeuron = null;  // a Map from block * width + neuron to the row in promoted_tokens

function drawNeurons(i) {
  const {layer} = state, width = facts.hparams.n_inner ?? 4 * n_embd;
  const numbers = Array.from(arrays.promoting_neurons.values);
  rowOfNeuron ??= new Map(numbers.map((number, row) => [number, row]));
  const activations = rowOf("activations", layer, i);
  const lengths = Array.from(rowOf("neuron_norms", layer, i), numberOf);
  const rows = Array.from(rowOf("top_neurons", layer, i), (neuron, c) => {
    const row = rowOfNeuron.get(layer * width + neuron), tokens = make("span", {class: "tokens"});
    if (row === undefined) tokens.append("not computed for this neuron");
    else rowOf("promoted_tokens", row).forEach(id => tokens.append(token(nameOf(id)), " "));
    return [String(neuron), signed(activations[c]), bar(lengths[c] / (lengths[0] || 1)), tokens];
  });
  $("neurons-title").replaceChildren(
    `MLP of block ${layer}: the neurons that add most at `, token(tokenAt(i)));
  $("neurons").replaceChildren(
    bars(["neuron", "activation", "adds", "makes more likely"], rows,
      `MLP of block ${layer} at ${tokenAt(i)}`));
}
