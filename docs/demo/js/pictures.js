// Pictures: {width, height, data} with RGB bytes, read, cropped and scaled as ltpa does (Pillow's bilinear filter).
const LONGEST = 2048; // of a photo's sides; phones cannot unpack more in a canvas

/** Decode a file; an error says in words what is wrong. */
export async function readFile(file) {
  if (!file.size) throw new Error(`${file.name}: the file is empty.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const heic = /\.hei[cf]$/i.test(file.name);
    const hint = heic
      ? "this browser cannot read HEIC photos. Save it as JPEG first."
      : "this is not a picture that the browser can read. Choose a JPEG, PNG, WebP or GIF file.";
    throw new Error(`${file.name}: ${hint}`);
  }
  return fromBitmap(bitmap);
}

export async function readAddress(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address.split("/").pop()}: the server answers ${response.status}.`);
  return fromBitmap(await createImageBitmap(await response.blob(), { colorSpaceConversion: "none" }));
}

function fromBitmap(bitmap) {
  const factor = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * factor));
  const height = Math.max(1, Math.round(bitmap.height * factor));
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white"; // under transparent parts
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = pen.getImageData(0, 0, width, height);
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width, height, data: rgb };
}

/** The middle square, scaled to `size` pixels: `ltpa.data.images.crop_square`. */
export function cropSquare(picture, size) {
  const side = Math.min(picture.width, picture.height);
  const left = Math.floor((picture.width - side) / 2);
  const top = Math.floor((picture.height - side) / 2);
  const square = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < side; y++) {
    const start = ((top + y) * picture.width + left) * 3;
    square.set(picture.data.subarray(start, start + side * 3), y * side * 3);
  }
  return scale({ width: side, height: side, data: square }, size);
}

function scale(square, size) {
  if (square.width === size) return square;
  const weights = filter(square.width, size);
  const rows = new Uint8ClampedArray(size * square.height * 3);
  for (let y = 0; y < square.height; y++) {
    for (let x = 0; x < size; x++) {
      blend(square.data, y * square.width * 3, 3, weights[x], rows, (y * size + x) * 3);
    }
  }
  const data = new Uint8ClampedArray(size * size * 3);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) blend(rows, x * 3, size * 3, weights[y], data, (y * size + x) * 3);
  }
  return { width: size, height: size, data };
}

function blend(source, start, step, { first, shares }, target, at) {
  for (let channel = 0; channel < 3; channel++) {
    let sum = 0.5;
    for (let i = 0, from = start + first * step + channel; i < shares.length; i++, from += step) {
      sum += shares[i] * source[from];
    }
    target[at + channel] = Math.floor(sum);
  }
}

/** For each pixel of the result: the first pixel of the source that counts, and the shares of it and its neighbors. */
function filter(from, to) {
  const step = from / to;
  const reach = Math.max(1, step);
  return Array.from({ length: to }, (_, number) => {
    const center = (number + 0.5) * step;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(from, Math.trunc(center + reach + 0.5));
    const shares = [];
    for (let i = first; i < end; i++) shares.push(Math.max(0, 1 - Math.abs(i - center + 0.5) / reach));
    const sum = shares.reduce((a, b) => a + b, 0);
    return { first, shares: shares.map((share) => share / sum) };
  });
}

/** Mean color of a picture, three bytes. */
export function meanColor({ data }) {
  const sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) sums[i % 3] += data[i];
  return sums.map((sum) => Math.round((3 * sum) / data.length));
}

/** A copy in which the pixels within a stroke have one color; strokes are circles {x, y, radius} in parts of a side. */
export function cover(picture, strokes, color) {
  const { width, height } = picture;
  const data = picture.data.slice();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [px, py] = [(x + 0.5) / width, (y + 0.5) / height];
      if (strokes.some((s) => (px - s.x) ** 2 + (py - s.y) ** 2 <= s.radius ** 2)) data.set(color, (y * width + x) * 3);
    }
  }
  return { width, height, data };
}

/** What a network reads: values in [0, 1], all of red, then green, then blue. */
export function toInput({ width, height, data }) {
  const count = width * height;
  const values = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    for (let channel = 0; channel < 3; channel++) values[channel * count + i] = data[3 * i + channel] / 255;
  }
  return values;
}

/** The picture, scaled to a canvas. */
export function show(canvas, picture) {
  paintPixels(canvas, (x, y) => {
    const at = (Math.floor((y * picture.height) / canvas.height) * picture.width + Math.floor((x * picture.width) / canvas.width)) * 3;
    return [picture.data[at], picture.data[at + 1], picture.data[at + 2]];
  });
}

/** Set every pixel of a canvas to `color(x, y)`, three bytes. */
export function paintPixels(canvas, color) {
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(canvas.width, canvas.height);
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, at += 4) {
      [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2]] = color(x, y);
      pixels.data[at + 3] = 255;
    }
  }
  pen.putImageData(pixels, 0, 0);
}
