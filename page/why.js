// What each part of the model contributes to a logit, and the probability without that part.

function drawWhy() {
  const i = state.token, candidates = candidatesAt(i), kept = indexIn("attribution", i) >= 0;
  $("why-parts").hidden = !kept;
  $("why-not").replaceChildren();
  if (!kept) {
    const [start, stop] = facts.fits.attribution;
    $("why-not").append(`The page explains positions ${start} to ${stop - 1} only. `,
      make("button", {onclick: () => change({token: start})}, `Go to position ${start}`));
    return;
  }
  const candidate = Math.min(state.candidate, candidates.length - 1);
  const others = [
    "the mean of all tokens", "nothing (the logit itself)", ...candidates.map(x => nameOf(x.id)),
  ];
  options($("candidate"), candidates.map(x => `${nameOf(x.id)} ${percent(x.p)}`), candidate);
  options($("versus"), others, Math.min(state.versus, others.length - 1));
  const versus = [candidates.length, null, ...range(candidates.length)][state.versus];
  drawAttribution(attributionOf(i, candidate, versus), candidates[candidate], others[state.versus]);
  drawAblation(ablationOf(i, candidate), candidates[candidate]);
}

// Return the parts with the largest values, as rows of a table with bars to both sides.
function largest(values, names, count, text) {
  const size = part => Math.abs(values[part]);
  const order = range(values.length).sort((a, b) => size(b) - size(a)).slice(0, count);
  const most = size(order[0]) || 1;
  return order.map(part => [names[part], text(part), bar(values[part] / most, true)]);
}

function drawAttribution(contributions, candidate, other) {
  const names = partNames(), sum = contributions.reduce((a, b) => a + b, 0);
  const inBlocks = contributions.slice(2, -1), most = Math.max(...inBlocks.map(Math.abs)) || 1;
  grid("attribution-map", [...range(n_head), "M"], inBlocks.map(x => x / most), state.head);
  $("attribution-text").textContent =
    "Each row is a block, with its heads and M, its MLP. Blue parts speak for the token, orange " +
    `parts against it. The deepest colour is a contribution of ${most.toFixed(2)}.`;
  const rows = largest(contributions, names, 10, part => signed(contributions[part]));
  const rest = sum - rows.reduce((total, row) => total + parseFloat(row[1].replace("−", "-")), 0);
  $("attribution-list").replaceChildren(table(["part", "contribution", ""], [
    ...rows, ["all others", signed(rest), ""],
    mark([state.versus === 1 ? "the logit" : "sum", signed(sum), ""], "next")], "bars"));
  tableIn("attribution-table", () => table(["part", `for ${nameOf(candidate.id)} rather than ${other}`],
    names.map((name, part) => [name, contributions[part].toFixed(5)])));
}

function drawAblation(ablated, candidate) {
  for (const id of ["ablation-map", "ablation-table"]) $(id).hidden = !ablated;
  if (!ablated) {
    $("ablation-text").textContent = "Not computed: this model and text would take too long.";
    return $("ablation-list").replaceChildren();
  }
  const names = ablatedNames(), changes = ablated.map(p => p - candidate.p);
  const most = Math.max(...changes.map(Math.abs)) || 1;
  const columns = facts.fits.whole_layers ? ["A", "M"] : [...range(n_head), "M"];
  grid("ablation-map", columns, changes.map(x => x / most), facts.fits.whole_layers ? 0 : state.head);
  $("ablation-text").textContent = (facts.fits.whole_layers
    ? "Each row is a block: A is all its heads (one by one would take too long), M its MLP. "
    : "The rows and columns are those of the other map. ") +
    "Without an orange part the token is less likely, without a blue part more likely.";
  $("ablation-list").replaceChildren(table(["part left out", "probability", ""], [
    mark(["none", percent(candidate.p), ""], "next"),
    ...largest(changes, names, 10, part => percent(ablated[part]))], "bars"));
  tableIn("ablation-table", () => table(["part left out", `probability of ${nameOf(candidate.id)}`],
    names.map((name, part) => [name, `${(100 * ablated[part]).toFixed(3)} %`])));
}
