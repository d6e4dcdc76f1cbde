// The logit lens, with as many columns around the selected token as fit.

function drawLens() {
  const {steps, lens: [start, stop]} = facts.fits, host = $("lens-grid"), i = state.token;
  const narrow = host.clientWidth < 500, selected = indexIn("lens", i), m = stop - start;
  const room = narrow ? (host.clientWidth - 100) / 62 : (host.clientWidth - 130) / 84;
  const count = limit(Math.floor(room), 1, m);
  const first = limit(limit(i - start, 0, m - 1) - (count >> 1), 0, m - count);
  const shown = range(count).map(c => first + c);
  const best = (step, at) => rowOf("lens_ids", step, at)[0];
  const last = steps.length - 1;
  const header = at => make("th", {scope: "col", class: at === selected ? "selected" : ""},
    token(tokenAt(start + at)));
  const cell = (step, at) => {
    const p = lensOf(step, at)[0], final = best(step, at) === best(last, at);
    const rank = rowOf("lens_ids", step, at).indexOf(best(last, at));
    const rgb = colour("one", rank < 0 ? 0 : Math.sqrt(lensOf(step, at)[rank]));
    const td = make("td", {
      class: `${final ? "final" : ""} ${at === selected ? "selected" : ""}`,
      onclick: () => change({token: start + at, ...blockOf(steps[step])}),
    }, make("div", {}, token(nameOf(best(step, at))), make("small", {}, percent(p))));
    explain(td, `${stepName(steps[step])}, after ${tokenAt(start + at)}: ` +
      `${nameOf(best(step, at))}, ${percent(p)}`, at === selected);
    td.style.backgroundColor = css(rgb);
    td.style.color = ink(rgb);
    return td;
  };
  const blockOf = step => (step ? {layer: layerOf(step)} : {});  // The embedding is not in a block.
  host.replaceChildren(make("table", {class: "lens"},
    make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "after"), ...shown.map(header))),
    make("tbody", {}, ...steps.map((name, step) => make("tr", {},
      make("th", {scope: "row"}, stepName(name, narrow ? "att." : "attention")),
      ...shown.map(at => cell(step, at)))))));
  enter(host);
  drawLensText(selected, steps, best);
}

// Return the probabilities of the five best guesses.
const lensOf = (step, at) => Array.from(rowOf("lens_p", step, at), numberOf);

function drawLensText(selected, steps, best) {
  const last = steps.length - 1;
  if (selected < 0) {
    const [start, stop] = facts.fits.lens;
    $("lens-text").textContent =
      `The page contains the lens for positions ${start} to ${stop - 1} only.`;
  } else {
    const final = best(last, selected);
    let since = last;
    while (since > 0 && best(since - 1, selected) === final) since--;
    $("lens-text").replaceChildren("After ", token(tokenAt(state.token)), ", the model predicts ",
      token(nameOf(final)), ". This has been the best guess in every row from ",
      make("strong", {}, stepName(steps[since])), " on.");
  }
  tableIn("lens-table", () => {
    if (selected < 0) return "–";
    const rows = steps.map((name, step) => [stepName(name),
      ...Array.from(rowOf("lens_ids", step, selected), (id, c) =>
        make("span", {}, token(nameOf(id)), ` ${percent(lensOf(step, selected)[c])}`))]);
    return table(["after", ...range(rows[0].length - 1).map(c => `${c + 1}.`)], rows);
  });
}
