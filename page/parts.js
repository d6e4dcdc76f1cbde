// What several panels use: elements, tables with bars, colours, small charts.

const $ = id => document.getElementById(id);
const range = length => Array.from({length}, (_, i) => i);
const limit = (x, low, high) => Math.max(low, Math.min(high, x));
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const token = name => make("bdi", {class: "token"}, name);
const percent = p => (p === undefined ? "–" : p >= 0.0995 ? `${(100 * p).toFixed(1)} %`
  : p >= 0.0001 ? `${(100 * p).toFixed(2)} %` : p > 0 ? "< 0.01 %" : "0 %");
const thousands = x => x.toLocaleString("en");
const decimal = (x, digits = 2) => x.toFixed(digits).replace("-", "−");
const signed = x => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

// Return a bar for a number up to 1. With twoSided it points left or right from the middle.
function bar(x, twoSided = false) {
  const inner = make("div", {class: x < 0 ? "negative" : "positive"});
  const length = Math.min(1, Math.abs(x)) * (twoSided ? 50 : 100);
  inner.style.width = `${length}%`;
  if (twoSided) inner.style.marginLeft = `${x < 0 ? 50 - length : 50}%`;
  return make("div", {class: "bar", "aria-hidden": "true"}, inner);
}

// Return a table. rows: arrays of cells, which are texts or elements; mark gives a row a class.
function table(head, rows, className = "") {
  const titles = head.map(x => (x ? make("th", {scope: "col"}, x) : make("td")));
  return make("table", {class: className},
    make("thead", {}, make("tr", {}, ...titles)),
    make("tbody", {}, ...rows.map(row =>
      make("tr", {class: row.mark}, ...row.map(x => make("td", {}, x))))));
}

// Return a table with bars. Each bar says what it is: about, then the texts of its row.
function bars(head, rows, about) {
  const made = table(head, rows, "bars");
  for (const bar of made.querySelectorAll(".bar")) {
    const texts = [...bar.closest("tr").cells].map((cell, c) =>
      (head[c] && cell.textContent ? `${head[c]} ${cell.textContent.trim()}` : cell.textContent));
    explain(bar.parentElement, `${about}: ${texts.filter(text => text).join(", ")}`);
  }
  enter(made);
  return made;
}

const mark = (row, name) => Object.assign(row, {mark: name});

// Build a table inside <details> when the reader opens it, and again when the selection changes.
function tableIn(id, build) {
  const details = $(id), old = details.querySelector(".scroll");
  details.ontoggle = () => tableIn(id, build);
  if (old) old.remove();
  if (details.open) {
    const label = details.querySelector("summary").textContent;
    const attributes = {class: "scroll", tabindex: "0", role: "region", "aria-label": label};
    details.append(make("div", attributes, build()));
  }
}

function options(select, names, chosen) {
  const values = names.map(x => (typeof x === "string" ? x : x.join("\t"))).join("\n");
  if (select.dataset.values !== values) {
    select.dataset.values = values;
    select.replaceChildren(...names.map((name, i) => make("option", {value: i}, name)));
  }
  select.value = chosen;
}

// Colours for numbers from 0 to 1 (one), and from -1, orange, to 1, blue (two). Brightness changes
// steadily along the first ramp, and from the middle of the second one to its ends.

const RAMPS = {
  light: {
    one: [[255, 255, 255], [198, 219, 239], [66, 133, 190], [8, 48, 107]],
    two: [[150, 70, 0], [240, 160, 80], [255, 255, 255], [100, 160, 215], [10, 60, 125]],
  },
  dark: {
    one: [[23, 25, 30], [30, 76, 124], [80, 163, 224], [236, 247, 255]],
    two: [[255, 190, 120], [160, 90, 25], [23, 25, 30], [40, 100, 160], [150, 205, 255]],
  },
};

function colour(kind, number) {
  const stops = RAMPS[dark.matches ? "dark" : "light"][kind];
  const x = Math.max(0, Math.min(1, kind === "one" ? number : (number + 1) / 2)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((from, c) => Math.round(from + (stops[i + 1][c] - from) * (x - i)));
}

const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

// Return black or white, whichever contrasts more with a colour, by the definition of WCAG 2.
function ink(rgb) {
  const [r, g, b] = rgb.map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

const palette = () => range(256).map(i => colour("one", i / 255));
const themed = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Set the size of a canvas, in pixels of the page, and return its drawing context.
function canvas(id, width, height) {
  const element = $(id), ratio = window.devicePixelRatio || 1;
  element.width = Math.round(width * ratio);
  element.height = Math.round(height * ratio);
  element.style.width = `${width}px`;
  element.style.height = `${height}px`;
  const context = element.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  return context;
}

const roomFor = id => Math.floor($(id).parentElement.clientWidth);

// Return a picture with one pixel for each number from 0 to 255. It can be drawn at any size.
function pixels(values, width, height, colours) {
  const picture = document.createElement("canvas");
  Object.assign(picture, {width, height});
  const context = picture.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = colours[values[i]][c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return picture;
}

// Show a text at a place of the window, or nothing.
function say(text, x = 0, y = 0) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = !text;
  tip.style.left = `${limit(x, 0, innerWidth - tip.offsetWidth)}px`;
  tip.style.top = `${limit(y, 0, innerHeight - tip.offsetHeight)}px`;
}

// Say what is under the pointer, or what is selected while the canvas has the focus.
function describeCells(id, textAt, selected) {
  const element = $(id);
  element.tabIndex = 0;
  element.setAttribute("aria-describedby", "tip");
  element.onpointermove = event =>
    say(textAt(event.offsetX, event.offsetY), event.clientX + 12, event.clientY + 16);
  element.onfocus = () => {
    const box = element.getBoundingClientRect();
    say(selected, box.left, box.top + 4);
  };
  element.onpointerleave = element.onblur = () => say("");
  if (document.activeElement === element) element.onfocus();
}

// The cells of a chart that is a table are one stop for the key Tab. The arrow keys go up and down.
function explain(cell, text, isStop = true) {
  cell.dataset.tip = text;
  if (isStop) cell.tabIndex = -1;
}

const reachable = chart => [...chart.querySelectorAll("[data-tip][tabindex]")];

function enter(chart) {
  const [first] = reachable(chart);
  if (first) first.tabIndex = 0;
}

function goToCell(event) {
  const step = {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (!step || !event.target.dataset.tip) return false;
  const cells = reachable(event.target.closest("table"));
  cells[cells.indexOf(event.target) + step]?.focus();
  return true;
}

function listenToCells() {
  const show = event => {
    const cell = event.target.closest("[data-tip]");
    if (!cell) return;
    const {left, bottom} = cell.getBoundingClientRect();
    cell.setAttribute("aria-describedby", "tip");
    say(cell.dataset.tip, left, bottom + 4);
  };
  const hide = event => {
    const cell = event.target.closest("[data-tip]");
    if (!cell) return;
    cell.removeAttribute("aria-describedby");
    say("");
  };
  for (const name of ["pointerover", "focusin"]) $("page").addEventListener(name, show);
  for (const name of ["pointerout", "focusout"]) $("page").addEventListener(name, hide);
}

// Draw a column for each value, up or down from a line, with a colour for each. axes: the names of
// the numbers and of the columns; names: what each column is; chosen: the selected one.
function columns(id, values, colours, axes, names, chosen) {
  const width = roomFor(id), height = 120, label = 18;
  const context = canvas(id, width, height + 2 * label);
  const high = Math.max(0, ...values), low = Math.min(0, ...values);
  const scale = (height - 4) / (high - low || 1);
  const zero = label + 2 + high * scale, step = width / values.length;
  values.forEach((x, i) => {
    context.fillStyle = colours[i];
    const top = x > 0 ? zero - x * scale : zero;
    context.fillRect(i * step, top, Math.max(1, step - (step > 4 ? 1 : 0)), Math.abs(x) * scale);
  });
  context.fillStyle = themed("--ink");
  context.fillRect(0, Math.round(zero), width, 1);
  context.font = "12px system-ui, sans-serif";
  context.fillText(`${axes[0]}, from ${decimal(low)} to ${decimal(high)}`, 0, 12);
  context.fillText(axes[1], 0, height + 2 * label - 4, width);
  const text = at => `${names[at]}: ${decimal(values[at])}`;
  describeCells(id, x => text(limit(Math.floor(x / step), 0, values.length - 1)), text(chosen));
}

function frame(context, x, y, width, height) {
  context.strokeStyle = themed("--accent");
  context.lineWidth = 2;
  context.strokeRect(x, y, Math.max(2, width), Math.max(2, height));
}

const MARGIN = 36;  // for the labels of rows and columns, and the names of the axes, in pixels

// Write the labels of blocks on the left and of heads at the top, as many as fit.
function axes(context, rows, names, side) {
  context.fillStyle = themed("--soft");
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  const every = Math.ceil(16 / side), middle = i => MARGIN + (i + 0.5) * side;
  context.textAlign = "right";
  for (let i = 0; i < rows.length; i += every) context.fillText(rows[i], MARGIN - 5, middle(i));
  context.textAlign = "center";
  for (let i = 0; i < names.length; i += every) context.fillText(names[i], middle(i), MARGIN - 10);
  context.textAlign = "left";
  context.fillText("head", MARGIN, 7);
  context.rotate(-Math.PI / 2);
  context.textAlign = "right";
  context.fillText("block", -MARGIN, 7);
  context.rotate(Math.PI / 2);
}

// Return the block and the column of the cell at a place of a map.
function cellAt(x, y, side, width) {
  const index = (at, count) => limit(Math.floor((at - MARGIN) / side), 0, count - 1);
  return [index(y, n_layer), index(x, width)];
}

// Draw cells coloured by their numbers, a row for each block. most: the size of the largest number.
// chosen: the framed column.
function grid(id, names, numbers, most, chosen) {
  const width = names.length, room = roomFor(id) - MARGIN;
  const side = Math.max(4, Math.min(36, Math.floor(room / width))), inner = side - (side > 6);
  const context = canvas(id, side * width + MARGIN, side * n_layer + MARGIN);
  numbers.forEach((number, i) => {
    context.fillStyle = css(colour("two", number / most));
    const x = i % width, y = Math.floor(i / width);
    context.fillRect(MARGIN + x * side, MARGIN + y * side, inner, inner);
  });
  axes(context, range(n_layer), names, side);
  frame(context, MARGIN + chosen * side, MARGIN + state.layer * side, inner, inner);
  const titles = {A: "attention", M: "MLP"};
  const text = (layer, column) => `block ${layer}, ` +
    `${titles[names[column]] ?? `head ${names[column]}`}: ${signed(numbers[layer * width + column])}`;
  describeCells(id, (x, y) => text(...cellAt(x, y, side, width)), text(state.layer, chosen));
  $(id).onclick = event => {
    const [layer, head] = cellAt(event.offsetX, event.offsetY, side, width);
    change(head < n_head && width > n_head ? {layer, head} : {layer});
  };
}
