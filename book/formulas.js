// The formulas of the explorers, without a page. A test compares each with the library on a grid.
"use strict";

// sin(theta), kept at least sqrt(machine epsilon), as in reprolib.losses.margins
function safeSine(cosine) {
  return Math.sqrt(Math.max((1 - cosine) * (1 + cosine), 2 ** -52));
}

// phi(theta) = cos(m1 theta + m2) - m3
function target(theta, m1, m2, m3) {
  return Math.cos(m1 * theta + m2) - m3;
}

// D = d phi / d cos(theta) = m1 sin(m1 theta + m2) / sin(theta)
function slope(theta, m1, m2, m3) {
  const cosine = Math.cos(theta);
  const sine = safeSine(cosine);
  return (m1 * Math.sin(m1 * Math.atan2(sine, cosine) + m2)) / sine;
}

// p = 1 / (1 + (C - 1) e^(-s phi)): C - 1 rivals at 90 degrees, whose logits are 0
function probability(theta, m1, m2, m3, s, C) {
  return 1 / (1 + (C - 1) * Math.exp(-s * target(theta, m1, m2, m3)));
}

// s (1 - p) sin(theta) |D| = s (1 - p) m1 |sin(m1 theta + m2)|, which is no 0/0 at the ends
function pull(theta, m1, m2, m3, s, C) {
  const p = probability(theta, m1, m2, m3, s, C);
  return s * (1 - p) * m1 * Math.abs(Math.sin(m1 * theta + m2));
}

// theta2 on the boundary of class 1, phi(theta1) = cos(theta2); null where no angle is that far or that near
function boundary(theta, m1, m2, m3) {
  const value = target(theta, m1, m2, m3);
  return Math.abs(value) <= 1 ? Math.acos(value) : null;
}

// theta12 - 2 t1 with phi(t1) = cos(theta12 - t1); null where the class weight itself is not on its own side
function gap(theta12, m1, m2, m3) {
  const inside = (t) => target(t, m1, m2, m3) >= Math.cos(theta12 - t);
  if (!inside(0)) return null;
  let low = 0;
  let high = theta12;
  for (let step = 0; step < 200; step += 1) {
    const middle = (low + high) / 2;
    if (inside(middle)) low = middle;
    else high = middle;
  }
  return theta12 - 2 * low;
}

// log(1 + (n - 1) e^(-s n / (n - 1))), NormFace Prop. 2
function lossFloor(n, s) {
  return Math.log1p((n - 1) * Math.exp((-s * n) / (n - 1)));
}

// (C - 1)/C log((C - 1) p / (1 - p))
function simplexScale(C, p) {
  return ((C - 1) / C) * Math.log(((C - 1) * p) / (1 - p));
}

// log(p (C - 2) / (1 - p)), the paper's "lower bound" on alpha
function alphaLow(C, p) {
  return Math.log((p * (C - 2)) / (1 - p));
}

// e^a / (e^a + e^-a + C - 2)
function crossPolytope(C, alpha) {
  return 1 / (1 + Math.exp(-2 * alpha) + (C - 2) * Math.exp(-alpha));
}

// 1 / sum_k e^(s (cos(2 pi k / C) - 1)), C directions in the plane
function polygon(C, s) {
  let sum = 0;
  for (let k = 0; k < C; k += 1) sum += Math.exp(s * (Math.cos((2 * Math.PI * k) / C) - 1));
  return 1 / sum;
}

// 1 - (least possible largest cosine of n directions in d dimensions), where it is known in closed form, else null
function largestMargin(n, d) {
  if (n <= d + 1) return n / (n - 1);
  if (d === 2) return 1 - Math.cos((2 * Math.PI) / n);
  return n <= 2 * d ? 1 : null;
}

// Shares above the lower end of step k: a pair is accepted if its score is above the threshold -1 + 2 k / steps.
function acceptedAt(counts) {
  const accepted = new Array(counts.length + 1).fill(0);
  for (let k = counts.length - 1; k >= 0; k -= 1) accepted[k] = accepted[k + 1] + counts[k];
  return accepted.map((number) => number / accepted[0]);
}

// Where FAR = FRR, interpolated between neighbouring thresholds
function equalErrorRate(genuine, impostor) {
  const tar = acceptedAt(genuine);
  const far = acceptedAt(impostor);
  for (let k = 0; k < genuine.length; k += 1) {
    const here = far[k] - (1 - tar[k]);
    const next = far[k + 1] - (1 - tar[k + 1]);
    if (here >= 0 && next <= 0) {
      const share = here === next ? 0 : here / (here - next);
      return far[k] + share * (far[k + 1] - far[k]);
    }
  }
  return null;
}

const FORMULAS = {
  target, slope, probability, pull, boundary, gap, lossFloor, simplexScale, alphaLow, crossPolytope, polygon,
  largestMargin, acceptedAt, equalErrorRate,
};
if (typeof module !== "undefined") module.exports = FORMULAS;
