// Lengths along the residual stream, and the neurons that wrote most.

function drawStream() {
  const i = state.token, at = name => range(arrays[name].shape[0]).map(step => line(name, step)[i]);
  const norms = at("norms"), added = at("added");
  const names = ["--plain", ...added.map((_, step) => (step % 2 ? "--mlp" : "--attention"))];
  const colours = names.map(themed);
  columns("norms", norms, colours);
  columns("added", added, colours.slice(1));
  behind("norms-table", () => table(["after", "length of the stream", "length of what was added"],
    norms.map((x, step) =>
      [stepName(step), x.toFixed(2), step ? added[step - 1].toFixed(2) : "–"])));
  drawNeurons(i);
}

let pushedBy = null;  // block * width + neuron -> row

function drawNeurons(i) {
  const {layer} = state, width = facts.hparams.n_inner ?? 4 * n_embd;
  pushedBy ??= new Map(Array.from(arrays.pushers.values, (number, row) => [number, row]));
  const fired = line("fired_by", layer, i);
  const written = Array.from(line("written", layer, i), x => x * x);
  const rows = Array.from(line("fired", layer, i), (neuron, c) => {
    const row = pushedBy.get(layer * width + neuron), tokens = make("span", {class: "tokens"});
    if (row === undefined) tokens.append("not worked out for this one");
    else line("pushed", row).forEach(id => tokens.append(token(nameOf(id)), " "));
    return [String(neuron), signed(fired[c]), bar(written[c] / (written[0] || 1)), tokens];
  });
  $("neurons-title").replaceChildren(
    `Block ${layer}: the neurons that wrote most at `, token(tokenAt(i)));
  $("neurons").replaceChildren(
    table(["neuron", "fired", "wrote", "makes more likely"], rows, "bars"));
}
