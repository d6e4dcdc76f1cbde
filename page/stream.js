// The lengths of the residual stream, and the neurons that add most to it.

function drawStream() {
  const i = state.token;
  const atToken = name => range(arrays[name].shape[0]).map(step => rowOf(name, step)[i]);
  const norms = atToken("resid_norms"), added = atToken("added_norms");
  const names = ["--plain", ...added.map((_, step) => (step % 2 ? "--mlp" : "--attention"))];
  const colours = names.map(themed);
  columns("norms", norms, colours);
  columns("added", added, colours.slice(1));
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
  const lengths = Array.from(rowOf("neuron_norms", layer, i), x => x * x);
  const rows = Array.from(rowOf("top_neurons", layer, i), (neuron, c) => {
    const row = rowOfNeuron.get(layer * width + neuron), tokens = make("span", {class: "tokens"});
    if (row === undefined) tokens.append("not computed for this neuron");
    else rowOf("promoted_tokens", row).forEach(id => tokens.append(token(nameOf(id)), " "));
    return [String(neuron), signed(activations[c]), bar(lengths[c] / (lengths[0] || 1)), tokens];
  });
  $("neurons-title").replaceChildren(
    `MLP of block ${layer}: the neurons that add most at `, token(tokenAt(i)));
  $("neurons").replaceChildren(
    table(["neuron", "activation", "adds", "makes more likely"], rows, "bars"));
}
