// Formulas that a reader types: read by the grammar below and never handed to the browser as code.
//
//   answer  = sum ("," sum)*, in brackets or without
//   sum     = product (("+" | "-") product)*
//   product = signed (("*" | "/") signed)*
//   signed  = ("+" | "-") signed | power
//   power   = atom (("^" | "**") signed)?        -x^2 is -(x^2), x^y^z is x^(y^z)
//   atom    = number | name | function "(" sum ("," sum)* ")" | "(" sum ")"
"use strict";

class FormulaError extends Error {}

const CONSTANTS = new Map([["pi", Math.PI], ["e", Math.E]]);

// name -> [function, number of its arguments]; 0 stands for one or more
const FUNCTIONS = new Map([
  ...["sqrt", "exp", "log", "log1p", "expm1", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh", "tanh", "abs", "floor", "ceil"].map(
    (name) => [name, [Math[name], 1]],
  ),
  ...["sin", "cos", "tan"].flatMap((name) => [`a${name}`, `arc${name}`].map((other) => [other, [Math[`a${name}`], 1]])),
  ["ln", [Math.log, 1]],
  ["atan2", [Math.atan2, 2]],
  ["min", [Math.min, 0]],
  ["max", [Math.max, 0]],
]);

const SIGNS = new Map([["−", "-"], ["·", "*"], ["×", "*"], ["π", "pi"]]);
const TOKEN = /\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?:(?:math|np)\.)?([A-Za-z_]\w*)|(\*\*|[-+*/^(),[\]]))/y;
const LONGEST = 1000;

function tokens(text) {
  const plain = text.replace(/[−·×π]/g, (sign) => SIGNS.get(sign)).trimEnd();
  if (plain.length > LONGEST) throw new FormulaError(`it has more than ${LONGEST} characters`);
  const found = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < plain.length) {
    const start = TOKEN.lastIndex;
    const match = TOKEN.exec(plain);
    if (match === null) throw new FormulaError(`it has ${plain.slice(start).trim()[0]}, which is not part of a formula`);
    const [, number, name, sign] = match;
    found.push({ number, name, sign: sign === "**" ? "^" : sign, text: match[0].trim() });
  }
  return found;
}

// The sums of an answer as functions of the arguments' values, in the order of `names`
function read(text, names) {
  const list = tokens(text);
  let at = 0;
  const next = (...signs) => at < list.length && signs.includes(list[at].sign) && list[at++].sign;
  const here = () => (at < list.length ? `${list[at].text} stands` : "it ends");
  const expect = (sign) => {
    if (!next(sign)) throw new FormulaError(`${here()} where ${sign} or an operator is needed`);
  };

  function chain(part, signs, join) {
    let left = part();
    for (let sign = next(...signs); sign; sign = next(...signs)) left = join(sign, left, part());
    return left;
  }
  function sum() {
    return chain(product, ["+", "-"], (sign, a, b) => (sign === "+" ? (v) => a(v) + b(v) : (v) => a(v) - b(v)));
  }
  function product() {
    return chain(signed, ["*", "/"], (sign, a, b) => (sign === "*" ? (v) => a(v) * b(v) : (v) => a(v) / b(v)));
  }
  function signed() {
    const sign = next("+", "-");
    if (!sign) return power();
    const part = signed();
    return sign === "-" ? (v) => -part(v) : part;
  }
  function power() {
    const base = atom();
    if (!next("^")) return base;
    const exponent = signed();
    return (v) => base(v) ** exponent(v);
  }
  function atom() {
    if (next("(")) {
      const inner = sum();
      expect(")");
      return inner;
    }
    const token = list[at];
    if (token === undefined || token.sign) throw new FormulaError(`${here()} where a number or a name is needed`);
    at += 1;
    return token.number ? () => Number(token.number) : named(token.name);
  }
  function named(name) {
    const place = names.indexOf(name);
    if (place >= 0) return (v) => v[place];
    if (FUNCTIONS.has(name)) return called(name, ...FUNCTIONS.get(name));
    if (CONSTANTS.has(name)) return () => CONSTANTS.get(name);
    const known = names.length ? `${names.join(", ")}, pi, e` : "pi, e";
    throw new FormulaError(`${name} is none of ${known} and no function`);
  }
  function called(name, formula, count) {
    if (!next("(")) throw new FormulaError(`${name} is a function and needs its value in round brackets`);
    const parts = sums();
    expect(")");
    if (count && parts.length !== count) {
      throw new FormulaError(`${name} takes ${count} ${count === 1 ? "value" : "values"}, got ${parts.length}`);
    }
    return (v) => formula(...parts.map((part) => part(v)));
  }
  function sums() {
    const parts = [sum()];
    while (next(",")) parts.push(sum());
    return parts;
  }

  // [a, b] and (a, b) are a, b
  const square = next("[");
  const round = !square && isTuple(list) && next("(");
  const parts = sums();
  if (square) expect("]");
  if (round) expect(")");
  if (at < list.length) throw new FormulaError(`${here()} where the formula should end or go on with an operator`);
  return parts;
}

// Whether the first bracket ends with the last one and has a comma of its own inside
function isTuple(list) {
  let depth = 0;
  let comma = false;
  for (const [place, { sign }] of list.entries()) {
    if (sign === "(") depth += 1;
    if (sign === ")") depth -= 1;
    if (depth === 0) return comma && place === list.length - 1;
    if (sign === "," && depth === 1) comma = true;
  }
  return false;
}

// As Python's format(value, ".3g")
function general(value, digits = 3) {
  if (value === 0 || !Number.isFinite(value)) return value === 0 ? "0" : Number.isNaN(value) ? "nan" : "inf";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  if (Number(exponent) >= -4 && Number(exponent) < digits) return Number(value.toPrecision(digits)).toString();
  return `${Number(mantissa)}e${padded(exponent)}`;
}

function padded(exponent) {
  return exponent[0] + exponent.slice(1).padStart(2, "0");
}

function power10(value) {
  const [mantissa, exponent] = value.toExponential(0).split("e");
  return `${mantissa}e${padded(exponent)}`;
}

// The sentence of `grade` for what a reader typed: max |yours - right| / max(1, |right|) over all cases
function verdict(exercise, text) {
  if (!text.trim()) return "not answered yet";
  let parts;
  try {
    parts = read(text, exercise.arguments);
  } catch (error) {
    if (error instanceof FormulaError) return `cannot be read: ${error.message}`;
    throw error;
  }
  const wanted = exercise.cases[0].values.length;
  if (parts.length !== wanted) return `not right yet: the answer must have ${wanted} parts, got ${parts.length}`;
  let [worst, where] = [-1, ""];
  for (const { given, values, shown } of exercise.cases) {
    for (const [entry, right] of values.entries()) {
      const error = Math.abs(parts[entry](given) - right) / Math.max(1, Math.abs(right));
      const place = shown && ` for ${shown}${wanted > 1 ? `, entry ${entry}` : ""}`;
      if (Number.isNaN(error)) return `not right yet${place}: the formula is not a number there`;
      if (error > worst) [worst, where] = [error, place];
    }
  }
  if (worst <= exercise.tolerance) return `right (largest difference ${power10(worst)})`;
  return `not right yet${where}: largest difference ${general(worst)}, allowed ${power10(exercise.tolerance)}`;
}

if (typeof module !== "undefined") module.exports = { FormulaError, read, verdict, general };
