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
  const runnerUp = candidate === 0 ? Math.min(1, candidates.length - 1) : 0;
  const rivals = [runnerUp, candidates.length, null, ...range(candidates.length)];
  const names = [`the runner-up, ${nameOf(candidates[runnerUp].id)}`, "the mean of all tokens",
    "nothing (the logit itself)", ...candidates.map(x => nameOf(x.id))];
  options($("candidate"), candidates.map(x => `${nameOf(x.id)} ${percent(x.p)}`), candidate);
  options($("versus"), names, Math.min(state.versus, names.length - 1));
  const versus = rivals[state.versus], rival = candidates[versus] ? versus : null;
  drawAttribution(attributionOf(i, candidate, versus), candidates[candidate], names[state.versus]);
  drawAblation(i, candidates, candidate, rival, names[state.versus]);
}

// Return the parts with the largest values, as rows of a table with bars to both sides. The longest
// bar is that of a part which is in the map: the biases are not.
function largest(values, names, count, ...texts) {
  const size = part => Math.abs(values[part]);
  const order = range(values.length).sort((a, b) => size(b) - size(a));
  const most = size(order.find(part => names[part] !== "biases")) || 1;
  return order.slice(0, count).map(part =>
    [names[part], ...texts.map(text => text(part)), bar(values[part] / most, true)]);
}

function drawAttribution(contributions, candidate, other) {
  const names = partNames(), sum = contributions.reduce((a, b) => a + b, 0);
  const inBlocks = contributions.slice(2, -1), most = Math.max(...inBlocks.map(Math.abs)) || 1;
  grid("attribution-map", [...range(n_head), "M"], inBlocks, most, state.head);
  $("attribution-text").textContent =
    "Each row is a block, with its heads and M, its MLP. Blue parts speak for the token, orange " +
    `parts against it. The strongest colour is a contribution of ${most.toFixed(2)}.`;
  const rows = largest(contributions, names, 10, part => signed(contributions[part]));
  const rest = sum - rows.reduce((total, row) => total + parseFloat(row[1].replace("−", "-")), 0);
  const what = `for ${nameOf(candidate.id)} rather than ${other}`;
  $("attribution-list").replaceChildren(bars(["part", "contribution", ""], [
    ...rows, ["all others", signed(rest), ""],
    mark([state.versus === 2 ? "the logit" : "sum", signed(sum), ""], "next")], what));
  tableIn("attribution-table", () =>
    table(["part", what], names.map((name, part) => [name, decimal(contributions[part], 5)])));
}

// How far the model prefers the candidate to its rival: the difference of their logits.
const leadOf = (p, rival) => Math.log(p) - (rival === null ? 0 : Math.log(rival));

function drawAblation(i, candidates, candidate, rival, other) {
  const ablated = ablationOf(i, candidate);
  for (const id of ["ablation-map", "ablation-table"]) $(id).hidden = !ablated;
  if (!ablated) {
    $("ablation-text").textContent = "Not computed: this model and text would take too long.";
    return $("ablation-list").replaceChildren();
  }
  const rivals = rival === null ? null : ablationOf(i, rival), {id, p} = candidates[candidate];
  const lead = leadOf(p, rivals && candidates[rival].p), names = ablatedNames();
  const effects = ablated.map((x, part) => lead - leadOf(x, rivals && rivals[part]));
  const most = Math.max(...effects.map(Math.abs)) || 1;
  const columns = facts.fits.whole_layers ? ["A", "M"] : [...range(n_head), "M"];
  grid("ablation-map", columns, effects, most, facts.fits.whole_layers ? 0 : state.head);
  $("ablation-text").textContent = (facts.fits.whole_layers
    ? "Each row is a block: A is all its heads (one by one would take too long), M its MLP. "
    : "The rows and columns are those of the other map. ") +
    "Without a blue part, the token would lose lead, and without an orange part gain it. " +
    `The strongest colour is a change of ${most.toFixed(2)}.`;
  $("ablation-list").replaceChildren(bars(["part left out", "probability", "speaks for it", ""], [
    mark(["none", percent(p), "", ""], "next"),
    ...largest(effects, names, 10, part => percent(ablated[part]), part => signed(effects[part])),
  ], `for ${nameOf(id)} rather than ${other}`));
  tableIn("ablation-table", () => table(
    ["part left out", `probability of ${nameOf(id)}`, "how much the part speaks for it"],
    names.map((name, part) =>
      [name, `${(100 * ablated[part]).toFixed(3)} %`, decimal(effects[part], 5)])));
}
