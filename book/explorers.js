// Sliders and drawings of the explorers; the formulas are in formulas.js, the scores in scores.js.
"use strict";

const DEGREES = 180 / Math.PI;

function element(kind, attributes, parent, text) {
  const svg = ["svg", "path", "line", "text", "rect"].includes(kind);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function shown(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 1e-3;
  return small || Math.abs(value) >= 1e6 ? value.toExponential(2) : Number(value.toPrecision(digits)).toString();
}

// A slider with its name and its value; `move` is called with every change.
function slider(parent, name, options, move) {
  const row = element("label", {}, parent);
  element("span", {}, row, name);
  const input = element("input", { type: "range", "aria-label": name, ...options }, row);
  const output = element("output", {}, row);
  input.addEventListener("input", move);
  return {
    get value() { return Number(input.value); },
    say(text) { output.textContent = text; },
  };
}

// An empty drawing with axes; `curve` takes points [x, y] or null, which breaks the line.
function drawing(parent, title, x, y) {
  const [width, height, left, bottom, top, right] = [320, 230, 46, 36, 24, 12];
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, parent);
  const across = (value) => left + ((value - x.low) / (x.high - x.low)) * (width - left - right);
  const up = (value) => height - bottom - ((value - y.low) / (y.high - y.low)) * (height - top - bottom);
  element("text", { x: left, y: 15, class: "title" }, svg, title);
  const ticks = (axis) => Array.from({ length: 5 }, (_, k) => axis.low + (k * (axis.high - axis.low)) / 4);
  for (const tick of ticks(x)) {
    const text = { x: across(tick), y: height - bottom + 14, "text-anchor": "middle" };
    element("text", text, svg, shown(tick, 3));
  }
  for (const tick of ticks(y)) {
    element("line", { x1: left, x2: width - right, y1: up(tick), y2: up(tick), class: "grid" }, svg);
    element("text", { x: left - 5, y: up(tick) + 4, "text-anchor": "end" }, svg, shown(tick, 3));
  }
  element("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, svg, x.name);
  return {
    curve(points, kind) {
      let path = "";
      let pen = "M";
      for (const point of points) {
        if (point === null || point[1] === null || !Number.isFinite(point[1])) { pen = "M"; continue; }
        const height_ = Math.min(Math.max(point[1], y.low), y.high);
        path += `${pen}${across(point[0]).toFixed(1)} ${up(height_).toFixed(1)}`;
        pen = "L";
      }
      element("path", { d: path, class: `curve ${kind}` }, svg);
    },
    upright(value, kind) {
      element("line", { x1: across(value), x2: across(value), y1: up(y.low), y2: up(y.high), class: `curve ${kind}` }, svg);
    },
  };
}

function begin(id) {
  const place = document.getElementById(id);
  if (place === null) return null;
  place.replaceChildren();
  const controls = element("div", { class: "controls" }, place);
  return { controls, legend: element("p", { class: "legend" }, place), drawings: element("div", { class: "drawings" }, place), table: element("table", {}, place) };
}

function fill(table, rows) {
  table.replaceChildren();
  for (const [name, value] of rows) {
    const row = element("tr", {}, table);
    element("th", { scope: "row" }, row, name);
    element("td", {}, row, value);
  }
}

function legend(place, names) {
  place.replaceChildren();
  names.forEach(([kind, name]) => element("span", { class: `key ${kind}` }, place, name));
}

function grid(low, high, steps) {
  return Array.from({ length: steps + 1 }, (_, k) => low + (k * (high - low)) / steps);
}

function marginExplorer() {
  const parts = begin("margin-explorer");
  if (parts === null) return;
  const draw = () => {
    const [m1, m2, m3, s] = [one.value, two.value, three.value, scale.value];
    const [C, apart] = [Math.round(10 ** classes.value), between.value / DEGREES];
    one.say(shown(m1)); two.say(`${shown(m2)} rad`); three.say(shown(m3)); scale.say(shown(s));
    classes.say(C.toString()); between.say(`${between.value}°`);
    parts.drawings.replaceChildren();
    const angles = grid(0, Math.PI, 180);
    const axis = { low: 0, high: 180, name: "θ in degrees" };
    const both = (board, formula) => {
      board.curve(angles.map((t) => [t * DEGREES, formula(t, 1, 0, 0)]), "plain");
      board.curve(angles.map((t) => [t * DEGREES, formula(t, m1, m2, m3)]), "first");
    };
    both(drawing(parts.drawings, "target function φ(θ)", axis, { low: -2, high: 1 }), target);
    both(drawing(parts.drawings, "slope dφ/dcos θ", axis, { low: -4, high: 8 }), slope);
    const strongest = Math.max(s, ...angles.map((t) => pull(t, m1, m2, m3, s, C)));
    both(drawing(parts.drawings, "pull s(1 − p) sin θ |D|", axis, { low: 0, high: strongest }), (t, a, b, c) => pull(t, a, b, c, s, C));
    const plane = drawing(parts.drawings, "boundaries in the plane of θ₁ and θ₂", { low: 0, high: 180, name: "θ₁ in degrees" }, { low: 0, high: 180 });
    plane.curve([[0, 0], [180, 180]], "plain");
    // beyond m1 theta + m2 = pi the target function turns
    const falling = angles.filter((t) => m1 * t + m2 <= Math.PI);
    const ends = falling.map((t) => [t, boundary(t, m1, m2, m3)]);
    plane.curve(ends.map(([t, end]) => (end === null ? null : [t * DEGREES, end * DEGREES])), "first");
    plane.curve(ends.map(([t, end]) => (end === null ? null : [end * DEGREES, t * DEGREES])), "second");
    legend(parts.legend, [["plain", "no margin"], ["first", "with this margin; class 1"], ["second", "class 2"]]);
    const found = gap(apart, m1, m2, m3);
    const turned = m1 * Math.PI + m2 > Math.PI ? `${shown(((Math.PI - m2) / m1) * DEGREES)}°` : "nowhere";
    fill(parts.table, [
      [`gap between two classes whose weights are ${between.value}° apart`, found === null ? "infeasible" : `${shown(found * DEGREES)}°`],
      ["φ, D and pull at θ = 45°", [target, slope].map((f) => shown(f(Math.PI / 4, m1, m2, m3))).join(", ") + `, ${shown(pull(Math.PI / 4, m1, m2, m3, s, C))}`],
      ["φ turns at", turned],
    ]);
  };
  const one = slider(parts.controls, "m₁", { min: 1, max: 4, step: 0.05, value: 1 }, () => draw());
  const two = slider(parts.controls, "m₂", { min: 0, max: 1.5, step: 0.01, value: 0.5 }, () => draw());
  const three = slider(parts.controls, "m₃", { min: 0, max: 1, step: 0.01, value: 0 }, () => draw());
  const scale = slider(parts.controls, "scale s", { min: 1, max: 64, step: 0.5, value: 32 }, () => draw());
  const classes = slider(parts.controls, "classes C", { min: 0.3, max: 6, step: 0.1, value: 4 }, () => draw());
  const between = slider(parts.controls, "angle of the weights", { min: 5, max: 180, step: 1, value: 90 }, () => draw());
  draw();
}

function boundExplorer() {
  const parts = begin("bound-explorer");
  if (parts === null) return;
  const draw = () => {
    const [C, d, s, p] = [Math.max(3, Math.round(10 ** classes.value)), Math.round(2 ** dimension.value), scale.value, wanted.value];
    classes.say(C.toString()); dimension.say(d.toString()); scale.say(shown(s)); wanted.say(shown(p));
    parts.drawings.replaceChildren();
    const scales = grid(0.1, 64, 160);
    const board = drawing(parts.drawings, "bound on the probability against the scale", { low: 0, high: 64, name: "scale s" }, { low: 0, high: 1 });
    board.curve(scales.map((t) => [t, Math.exp(-lossFloor(C, t))]), "first");
    if (C <= 2 * d) board.curve(scales.map((t) => [t, crossPolytope(C, t)]), "second");
    if (d === 2) board.curve(scales.map((t) => [t, polygon(Math.min(C, 100000), t)]), "third");
    board.upright(s, "plain");
    const floor = drawing(parts.drawings, "floor of the softmax loss", { low: 0, high: 64, name: "scale s" }, { low: 0, high: Math.log(C) });
    floor.curve(scales.map((t) => [t, lossFloor(C, t)]), "first");
    floor.upright(s, "plain");
    const names = [["first", "bound; the simplex attains it"]];
    if (C <= 2 * d) names.push(["second", "coordinate directions ±e"]);
    if (d === 2) names.push(["third", "regular polygon"]);
    legend(parts.legend, names);
    const margin = largestMargin(C, d);
    fill(parts.table, [
      ["simplex possible, C ≤ d + 1", C <= d + 1 ? "yes: the bound is attained" : "no: the bound is not attained"],
      ["no arrangement gives all classes more than p =", shown(Math.exp(-lossFloor(C, s)))],
      ["no arrangement has a smaller mean loss than", shown(lossFloor(C, s))],
      [`no smaller scale reaches p = ${shown(p)}`, shown(simplexScale(C, p))],
      ["the paper's “lower bound” on α for this p", shown(alphaLow(C, p))],
      ["largest margin of CosFace", margin === null ? "no closed form for this C and d" : shown(margin)],
    ]);
  };
  const classes = slider(parts.controls, "classes C", { min: 0.5, max: 6, step: 0.05, value: 2 }, () => draw());
  const dimension = slider(parts.controls, "dimensions d", { min: 1, max: 10, step: 1, value: 6 }, () => draw());
  const scale = slider(parts.controls, "scale s", { min: 0.5, max: 64, step: 0.5, value: 10 }, () => draw());
  const wanted = slider(parts.controls, "wanted p", { min: 0.5, max: 0.999, step: 0.001, value: 0.9 }, () => draw());
  draw();
}

function thresholdExplorer() {
  const parts = begin("threshold-explorer");
  if (parts === null || typeof SCORES === "undefined") return;
  const row = element("label", {}, parts.controls);
  element("span", {}, row, "loss");
  const choice = element("select", { "aria-label": "loss" }, row);
  for (const name of Object.keys(SCORES.losses)) element("option", { value: name }, choice, name);
  choice.value = "arcface";
  const draw = () => {
    const { genuine, impostor, EER, TAR } = SCORES.losses[choice.value];
    const steps = genuine.length;
    const k = Math.round(((at.value + 1) / 2) * steps);
    const [tar, far] = [acceptedAt(genuine), acceptedAt(impostor)];
    at.say(shown(at.value, 3));
    parts.drawings.replaceChildren();
    const total = (counts) => counts.reduce((sum, one) => sum + one, 0);
    const shares = (counts) => counts.map((one, step) => [-1 + (2 * step + 1) / steps, (one * steps) / 2 / total(counts)]);
    // the genuine scores crowd near 1: what is higher than three times the impostors' peak is cut off
    const highest = 3 * Math.max(...shares(impostor).map(([, y]) => y));
    const humps = drawing(parts.drawings, "density of the scores, cut off above", { low: -1, high: 1, name: "cosine of a pair" }, { low: 0, high: highest });
    humps.curve(shares(impostor), "second");
    humps.curve(shares(genuine), "first");
    humps.upright(at.value, "plain");
    const lowest = -6;
    const errors = drawing(parts.drawings, "errors, powers of ten", { low: -1, high: 1, name: "threshold" }, { low: lowest, high: 0 });
    const power = (rate) => (rate > 0 ? Math.max(Math.log10(rate), lowest) : null);
    errors.curve(far.map((rate, step) => [-1 + (2 * step) / steps, power(rate)]), "second");
    errors.curve(tar.map((rate, step) => [-1 + (2 * step) / steps, power(1 - rate)]), "first");
    errors.upright(at.value, "plain");
    legend(parts.legend, [["first", "genuine; false rejects"], ["second", "impostor; false accepts"], ["plain", "threshold"]]);
    const percent = (rate) => `${shown(100 * rate, 4)} %`;
    fill(parts.table, [
      ["false accepts (FAR)", `${percent(far[k])}: ${Math.round(far[k] * total(impostor))} of ${total(impostor)} pairs of two people`],
      ["false rejects (FRR)", `${percent(1 - tar[k])}: ${Math.round((1 - tar[k]) * total(genuine))} of ${total(genuine)} pairs of one person`],
      ["true accepts (TAR)", percent(tar[k])],
      ["equal error rate, over all thresholds", percent(EER)],
      ...Object.entries(TAR).map(([rate, value]) => [`TAR at FAR ${rate}, over all thresholds`, percent(value)]),
    ]);
  };
  const at = slider(parts.controls, "threshold", { min: -1, max: 1, step: 0.005, value: 0.65 }, () => draw());
  choice.addEventListener("change", draw);
  draw();
}

document.addEventListener("DOMContentLoaded", () => {
  marginExplorer();
  boundExplorer();
  thresholdExplorer();
});
