// The second part: the global feature of a query scores the positions of a scene of two objects, in three networks.
import { create, element, fillGallery, fillSelect, percent } from "./choices.js";
import { drawOver, entropy, shareOn, softmax, strongest, times } from "./maps.js";
import { attend, prepare } from "./network.js";
import { readAddress, toInput } from "./pictures.js";

const SIDE = 32;
export const state = { scene: null, query: null, pictures: {}, shown: null }; // shown: {scene, query, outputs}
let data = null;
let scenes = [];
let running = false;
let again = false;

export function startAsking(loaded) {
  data = loaded;
  const megabytes = data.asking.reduce((sum, { network }) => sum + data.networks[network].bytes, 0) / 1e6;
  const button = element("start-asking");
  button.textContent = `Load the three networks (${megabytes.toFixed(1)} MB)`;
  button.addEventListener("click", async () => {
    button.disabled = true;
    say("Loading ...");
    try {
      for (const { network } of data.asking) await prepare(network);
      scenes = await (await fetch("scenes.json")).json();
    } catch (error) {
      button.disabled = false;
      return say(error.message, true);
    }
    button.parentElement.hidden = true;
    element("asking").hidden = false;
    say("");
    fillSelect(element("level"), data.networks[data.asking[0].network].levels.map((level) => [level, level]));
    element("level").value = data.askLevel;
    element("level").addEventListener("change", draw);
    fillGallery(element("scenes"), "scene", scenes, chooseScene);
    document.querySelector("input[name=scene]").checked = true;
    await chooseScene(scenes[0]);
  });
}

async function chooseScene(scene) {
  state.scene = scene;
  const own = { id: "own", name: "the scene itself", caption: "its own", file: scene.file };
  fillGallery(element("queries"), "query", [own, ...scene.queries], chooseQuery);
  document.querySelector(`input[name=query][value="${scene.queries[0].id}"]`).checked = true;
  await chooseQuery(scene.queries[0]);
}

async function chooseQuery(query) {
  state.query = query;
  await compute();
}

async function input(file) {
  state.pictures[file] ??= await readAddress(file);
  return toInput(state.pictures[file]);
}

async function compute() {
  again = true;
  if (running) return;
  running = true;
  try {
    while (again) {
      again = false;
      const { scene, query } = state;
      const [images, asking] = [await input(scene.file), await input(query.file)];
      const outputs = {};
      for (const { network } of data.asking) {
        outputs[network] = await attend(network, images, SIDE, query.id === "own" ? null : asking);
      }
      state.shown = { scene, query, outputs };
    }
    draw();
  } catch (error) {
    say(error.message, true);
  } finally {
    running = false;
    document.body.dataset.asked = Number(document.body.dataset.asked ?? 0) + 1;
  }
}

function draw() {
  const level = element("level").value;
  const { scene, query, outputs } = state.shown;
  element("trio").replaceChildren(...data.asking.map((entry) => panel(entry, outputs[entry.network], level, scene, query)));
  const asked = query.id === "own" ? "The scene asks itself." : `The query shows: ${query.name}.`;
  element("ask-words").textContent =
    `${asked} ${scene.why} The bars show how much of the map lies on each object; together the two cover ${percent(scene.area)} of the picture.`;
}

function panel({ network, title, words }, output, level, scene, query) {
  const map = output.maps[level];
  const canvas = create("canvas", { width: 256, height: 256 });
  drawOver(canvas, state.pictures[scene.file], map, { colors: "viridis", strength: 0.5, scaling: "share" });
  const best = strongest(map);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map of ${level}: strongest position ${best.where}, ${times(best.share)} times the even share`);
  const { classes, facts } = data.networks[network];
  const probabilities = softmax(output.logits);
  const answer = probabilities.indexOf(Math.max(...probabilities));
  const bars = scene.objects.flatMap((name, i) => {
    const share = shareOn(map, Array.from(scene.masks[i], Number), SIDE);
    const bar = create("i");
    bar.style.width = `${100 * share}%`;
    const asked = query.object === i;
    return [create("span", {}, asked ? `${name} (asked)` : name), bar, create("span", {}, percent(share))];
  });
  const { queried, absent } = facts.answers;
  const measured =
    `Over ${facts.scenes} scenes: at ${level} the map goes to the queried object in ${percent(facts.follows[level])} of the cases (50 % is chance); ` +
    `the answer is the queried object in ${percent(queried)}, and in ${percent(absent)} when the query shows something that is not there.`;
  return create(
    "figure",
    {},
    create("h3", {}, title),
    canvas,
    create("div", { className: "shares" }, ...bars),
    create("p", {}, `answer: ${classes[answer]}, ${percent(probabilities[answer])}; entropy ${entropy(map).toFixed(2)}`),
    create("p", { className: "hint" }, `${words} ${measured}`),
  );
}

function say(text, wrong = false) {
  element("ask-message").className = wrong ? "message wrong" : "message";
  element("ask-message").textContent = text;
  if (text === "" || wrong) element("loading").hidden = true;
}
