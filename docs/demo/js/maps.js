// What maps say: the scale in multiples of the even share, entropy, and the colors over a picture. A map is
// {height, width, values}, and its values sum to 1.
import { paintPixels } from "./pictures.js";

export const [LOWEST, HIGHEST] = [1 / 4, 32]; // ends of the color scale, in multiples of the even share
export const TICKS = ["1/4", "1/2", "1", "2", "4", "8", "16", "32"];
const tables = {};

/** Keep the color tables: name -> 256 colors of six hexadecimal digits each. */
export function setColors(colors) {
  for (const [name, digits] of Object.entries(colors)) {
    tables[name] = Array.from({ length: 256 }, (_, i) =>
      [0, 2, 4].map((at) => parseInt(digits.substr(6 * i + at, 2), 16)),
    );
  }
}

/** Weights in multiples of the even share: 1 = no preference. */
export function shares(map) {
  const sum = map.values.reduce((a, b) => a + b, 0);
  return Float64Array.from(map.values, (value) => (value * map.values.length) / sum);
}

/** Normalized entropy: 0 = one position, 1 = uniform. */
export function entropy(map) {
  const count = map.values.length;
  return shares(map).reduce((sum, share) => sum - (share > 0 ? (share / count) * Math.log(share / count) : 0), 0) / Math.log(count);
}

/** Places of the weights on the color scale, 0 to 1: by logarithms of the share, or linear up to the maximum. */
export function places(map, scaling) {
  const values = shares(map);
  if (scaling === "maximum") {
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    return values.map((value) => value / most);
  }
  const range = Math.log(HIGHEST / LOWEST);
  return values.map((value) => Math.log(Math.min(HIGHEST, Math.max(LOWEST, value)) / LOWEST) / range);
}

/** Draw a map over a gray copy of the picture; the strength goes from 0 (only the picture) to 1 (only the map). */
export function drawOver(canvas, picture, map, { colors, strength, scaling }) {
  const table = tables[colors];
  const numbers = places(map, scaling).map((place) => Math.round(255 * place));
  const { width, height } = canvas;
  paintPixels(canvas, (x, y) => {
    const at = (Math.floor((y * picture.height) / height) * picture.width + Math.floor((x * picture.width) / width)) * 3;
    const gray = 0.299 * picture.data[at] + 0.587 * picture.data[at + 1] + 0.114 * picture.data[at + 2];
    const color = table[numbers[Math.floor((y * map.height) / height) * map.width + Math.floor((x * map.width) / width)]];
    return color.map((value) => (1 - strength) * gray + strength * value);
  });
}

/** Draw the color scale over white above and black below. */
export function drawBar(canvas, { colors, strength }) {
  const table = tables[colors];
  paintPixels(canvas, (x, y) => {
    const gray = 255 * (1 - y / (canvas.height - 1));
    return table[Math.round((255 * x) / (canvas.width - 1))].map((value) => (1 - strength) * gray + strength * value);
  });
}

/** A share in words: "14 times". */
export function times(share) {
  return share >= 10 ? share.toFixed(0) : share >= 1 ? share.toFixed(1) : share.toFixed(2);
}

/** The strongest position: its share, row and column from 1, and its part of the picture in words. */
export function strongest(map) {
  const values = shares(map);
  let best = 0;
  values.forEach((value, i) => (best = value > values[best] ? i : best));
  const [row, column] = [Math.floor(best / map.width), best % map.width];
  const vertical = ["top", "middle", "bottom"][Math.floor((3 * (row + 0.5)) / map.height)];
  const horizontal = ["left", "center", "right"][Math.floor((3 * (column + 0.5)) / map.width)];
  const where = vertical === "middle" && horizontal === "center" ? "center" : `${vertical} ${horizontal}`;
  return { share: values[best], row: row + 1, column: column + 1, where };
}

/** How much of a map's weight lies on a mask of `side` x `side` pixels, from 0 to 1. */
export function shareOn(map, mask, side) {
  let on = 0;
  let all = 0;
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const value = map.values[Math.floor((y * map.height) / side) * map.width + Math.floor((x * map.width) / side)];
      all += value;
      if (mask[y * side + x]) on += value;
    }
  }
  return on / all;
}

export function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
