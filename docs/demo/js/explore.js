// The first part: choose, drop or take a picture, see answer and maps, cover parts of it.
import { state as asked } from "./ask.js";
import { create, element, fillGallery, fillSelect, percent } from "./choices.js";
import { drawBar, drawOver, entropy, softmax, strongest, TICKS, times } from "./maps.js";
import { attend, isReady } from "./network.js";
import { cover, cropSquare, meanColor, readAddress, readFile, show, toInput } from "./pictures.js";

const UNSURE = 0.5; // an answer below is marked: the other classes together are more probable
const SIZES = [32, 64, 96];
const SHOWN = 256; // pixels of the canvases

const state = {
  picture: null, // what was chosen: an entry of data.json, or {name} of one's own photo
  full: null, // the picture as it was read
  shown: null, // its middle square on the page
  input: null, // its middle square as the network reads it, uncovered
  network: "",
  strokes: [],
  uncovered: null, // {input, network, output} without strokes
  output: null, // what is shown: logits, maps, and the network that gave them
  cursor: { x: 0.5, y: 0.5 },
};
let choice = 0; // counts the pictures that were chosen: one that is read late must not replace a newer one
let data = null;
let running = false; // one computation at a time; what changed meanwhile is computed next
let again = false;

export async function startExploring(loaded) {
  data = loaded;
  const choose = (picture) => choosePicture(picture).catch(fail);
  fillGallery(element("photos"), "picture", data.pictures.filter((one) => one.kind === "photo"), choose);
  fillGallery(element("drawn"), "picture", data.pictures.filter((one) => one.kind === "drawn"), choose);
  fillSelect(element("network"), data.explore.map((name) => [name, data.networks[name].label]));
  fillSelect(element("size"), SIZES.map((size) => [size, `${size} x ${size}`]));
  fillSelect(element("colors"), Object.keys(data.colors).map((name) => [name, name]));
  element("ticks").append(...TICKS.map((tick) => create("span", {}, tick)));
  connect();
  await showFirst();
  if (new URLSearchParams(location.search).has("test")) window.ltpa = { state, asked, input: () => coveredInput() };
}

/** The first picture with the answer that was computed when the page was built: no network is loaded for it. */
async function showFirst() {
  const { picture, network, size, logits, maps } = data.first;
  element("network").value = state.network = network;
  element("size").value = size;
  const entry = data.pictures.find((one) => one.id === picture);
  document.querySelector(`input[name=picture][value="${picture}"]`).checked = true;
  setPicture(entry, await readAddress(entry.file));
  state.output = { logits, maps, network };
  state.uncovered = { input: state.input, network, output: state.output };
  draw();
  state.firstMap = performance.now();
  const megabytes = (data.networks[network].bytes + data.runtimeBytes) / 1e6;
  say(`This first answer was computed when the page was made. With your first choice the network is loaded, ${megabytes.toFixed(0)} MB with its runtime.`);
}

function connect() {
  for (const id of ["file", "camera"]) {
    element(id).addEventListener("change", ({ target }) => {
      const [file] = target.files;
      target.value = "";
      if (file) takePhoto(file);
    });
  }
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) takePhoto(file);
    else say("Drop a picture from a folder: addresses of other pages are not fetched.", true);
  });
  element("network").addEventListener("change", ({ target }) => {
    state.network = target.value;
    compute();
  });
  element("size").addEventListener("change", () => {
    state.input = cropSquare(state.full, size());
    compute();
  });
  for (const id of ["colors", "scaling", "strength", "seen"]) element(id).addEventListener("input", draw);
  element("uncover").addEventListener("click", () => {
    state.strokes = [];
    compute();
  });
  connectPainting(element("picture"));
}

function connectPainting(canvas) {
  const paint = (event) => {
    const box = canvas.getBoundingClientRect();
    state.cursor = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    addStroke();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    paint(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && paint(event));
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) {
      const [x, y] = moves[event.key];
      const within = (value) => Math.min(1, Math.max(0, value));
      state.cursor = { x: within(state.cursor.x + x / 16), y: within(state.cursor.y + y / 16) };
      draw();
    } else if (event.key === " ") {
      addStroke();
    } else if (event.key === "Backspace") {
      state.strokes.pop();
      compute();
    } else {
      return;
    }
    event.preventDefault();
  });
}

function addStroke() {
  const stroke = { ...state.cursor, radius: element("brush").value / 200 };
  const last = state.strokes.at(-1);
  if (last && last.radius === stroke.radius && Math.hypot(last.x - stroke.x, last.y - stroke.y) < stroke.radius / 3) return;
  state.strokes.push(stroke);
  showPicture();
  compute();
}

async function choosePicture(entry) {
  const number = ++choice;
  const full = await readAddress(entry.file);
  if (number === choice) await take(entry, full, entry.network);
}

async function takePhoto(file) {
  const number = ++choice;
  try {
    const full = await readFile(file);
    if (number !== choice) return;
    const checked = document.querySelector("input[name=picture]:checked");
    if (checked) checked.checked = false;
    await take({ id: "own", name: file.name, kind: "photo" }, full, data.explore[0]);
  } catch (error) {
    fail(error);
  }
}

function take(picture, full, network) {
  setPicture(picture, full);
  element("network").value = state.network = network;
  return compute();
}

function setPicture(picture, full) {
  Object.assign(state, { picture, full, strokes: [], output: null, shown: cropSquare(full, SHOWN) });
  if (picture.kind === "drawn") element("size").value = SIZES[0];
  state.input = cropSquare(full, size());
  showPicture();
}

const size = () => Number(element("size").value);
const coveredInput = () => cover(state.input, state.strokes, meanColor(state.input));

/** Compute answer and maps for what is chosen now, and show them. */
async function compute() {
  again = true;
  if (running) return;
  running = true;
  element("stage").setAttribute("aria-busy", "true");
  try {
    while (again) {
      again = false;
      const { network, input } = state;
      if (!isReady(network)) say(`Loading the network for ${data.networks[network].label} ...`);
      const output = await answer(network, input, [...state.strokes]);
      if (input !== state.input || network !== state.network) continue; // what is chosen now has asked again
      state.output = { ...output, network };
      document.body.dataset.milliseconds = Math.round(output.milliseconds);
      draw();
      say("");
    }
  } catch (error) {
    fail(error);
  } finally {
    running = false;
    element("stage").removeAttribute("aria-busy");
    document.body.dataset.computed = Number(document.body.dataset.computed ?? 0) + 1;
  }
}

async function answer(network, input, strokes) {
  if (state.uncovered?.input !== input || state.uncovered.network !== network) {
    state.uncovered = { input, network, output: await attend(network, toInput(input), input.width) };
  }
  if (!strokes.length) return state.uncovered.output;
  return attend(network, toInput(cover(input, strokes, meanColor(input))), input.width);
}

function draw() {
  showPicture();
  if (!state.output) return;
  const looks = {
    colors: element("colors").value,
    strength: element("strength").value / 100,
    scaling: element("scaling").value,
  };
  const below = element("seen").checked ? coveredInput() : coveredShown();
  const figures = Object.entries(state.output.maps).map(([level, map]) => {
    const canvas = create("canvas", { width: SHOWN, height: SHOWN });
    const best = strongest(map);
    const strong = `${times(best.share)} times the even share, ${best.where}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map of ${level}: entropy ${entropy(map).toFixed(2)}; strongest position ${strong}`);
    drawOver(canvas, below, map, looks);
    const caption = create("figcaption", {}, create("strong", {}, level), create("span", {}, `${map.height} x ${map.width}`));
    return create("figure", {}, caption, canvas, create("p", {}, `entropy ${entropy(map).toFixed(2)}`), create("p", { className: "hint" }, `up to ${strong}`));
  });
  element("maps").replaceChildren(...figures);
  drawBar(element("bar"), looks);
  const share = looks.scaling === "share";
  element("ticks").style.visibility = share ? "visible" : "hidden";
  element("scale-words").textContent = share
    ? "times the even share: 1 = as much weight as every position would get if the network did not choose"
    : "from 0 to the maximum of each map";
  showAnswer();
  describe();
}

function coveredShown() {
  return state.strokes.length ? cover(state.shown, state.strokes, meanColor(state.input)) : state.shown;
}

function showPicture() {
  const canvas = element("picture");
  const picture = element("seen").checked ? coveredInput() : coveredShown();
  show(canvas, picture);
  element("name").textContent = state.picture.name;
  element("uncover").disabled = !state.strokes.length;
  canvas.setAttribute("aria-label", `${state.picture.alt ?? state.picture.name}. ${state.strokes.length ? "Parts are covered." : ""}`);
  if (document.activeElement !== canvas || !canvas.matches(":focus-visible")) return;
  const pen = canvas.getContext("2d");
  for (const [color, wide] of [["black", 4], ["white", 2]]) {
    Object.assign(pen, { strokeStyle: color, lineWidth: wide });
    pen.beginPath();
    pen.arc(state.cursor.x * SHOWN, state.cursor.y * SHOWN, (element("brush").value / 200) * SHOWN, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function showAnswer() {
  const { classes } = data.networks[state.output.network];
  const probabilities = softmax(state.output.logits);
  const uncovered = softmax(state.uncovered.output.logits);
  const covered = state.strokes.length > 0;
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  if (covered) {
    const before = uncovered.indexOf(Math.max(...uncovered));
    if (!order.includes(before)) order[4] = before;
  }
  element("bars").replaceChildren(
    ...order.map((i) => {
      const numbers = covered ? `${percent(uncovered[i])} → ${percent(probabilities[i])}` : percent(probabilities[i]);
      const line = create("div", { className: "line" }, create("span", {}, classes[i]), create("span", {}, numbers));
      const value = create("div", { className: "value" });
      value.style.width = `${100 * probabilities[i]}%`;
      const track = create("div", { className: "track" }, value);
      track.setAttribute("aria-hidden", "true");
      if (covered) {
        const mark = create("div", { className: "before" });
        mark.style.left = `${100 * uncovered[i]}%`;
        track.append(mark);
      }
      return create("li", {}, line, track);
    }),
  );
  const unsure = probabilities[order[0]] < UNSURE;
  const truth = state.picture.truth;
  const none = state.picture.kind === "photo" && state.picture.id !== "own" && !truth;
  element("sure").textContent = [
    unsure ? "Unsure: the other classes together are more probable." : "",
    none ? "The picture shows none of its ten classes." : truth ? `It shows: ${truth}.` : "",
    covered ? "The line marks the answer without the cover." : "",
  ].filter(Boolean).join(" ");
}

function describe() {
  const head = create("tr", {}, ...["layer", "map", "entropy", "strongest position"].map((text) => create("th", { textContent: text })));
  const rows = Object.entries(state.output.maps).map(([level, map]) => {
    const best = strongest(map);
    const cells = [
      level,
      `${map.height} x ${map.width}`,
      entropy(map).toFixed(2),
      `row ${best.row}, column ${best.column} (${best.where}): ${times(best.share)} times the even share`,
    ];
    return create("tr", {}, ...cells.map((text) => create("td", { textContent: text })));
  });
  element("words").replaceChildren(
    create("table", {}, create("thead", {}, head), create("tbody", {}, ...rows)),
    create("p", { className: "hint" }, "Entropy: 1 = the weight is spread evenly over all positions, 0 = it lies on one."),
  );
  const { classes, accuracy, trained, notes } = data.networks[state.output.network];
  element("limits").replaceChildren(
    create("p", {}, `This network knows ${classes.length} words: ${classes.join(", ")}. It must choose one of them, whatever it is shown, and cannot say “none”. `
      + `${trained} It names ${(100 * accuracy).toFixed(1)} % of its test pictures right.`),
    ...notes.map((note) => create("p", {}, note)),
  );
}

function say(text, wrong = false) {
  element("message").className = wrong ? "message wrong" : "message";
  element("message").textContent = text;
}

function fail(error) {
  element("loading").hidden = true;
  say(error.message, true);
}
