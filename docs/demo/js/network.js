// Networks that run in a worker: `prepare(name)` brings one, `attend(name, images, size, query)` asks it.
let worker = null;
let count = 0;
const waiting = new Map();
const ready = new Map();
const known = { networks: {}, runtimeBytes: 0, report: () => {} };

export function setUp(networks, runtimeBytes, report) {
  Object.assign(known, { networks, runtimeBytes, report });
}

function send(message) {
  if (!worker) {
    worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      if ("progress" in data) return known.report(data.progress);
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.result);
    };
    worker.onerror = () => {
      for (const { reject } of waiting.values()) reject(new Error("the runtime could not be started in this browser"));
      waiting.clear();
    };
  }
  const id = ++count;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ ...message, id });
  });
}

export function isReady(name) {
  return ready.get(name) === true;
}

export async function prepare(name) {
  if (!ready.has(name)) {
    const { file, bytes } = known.networks[name];
    const url = new URL(`../${file}`, import.meta.url).href;
    const loading = send({ load: name, url, bytes, runtimeBytes: known.runtimeBytes });
    ready.set(name, loading);
    loading.then(
      () => ready.set(name, true),
      () => ready.delete(name),
    );
  }
  await ready.get(name);
}

/** Logits, maps and the time of one square image: `images` holds 3 * size * size values in [0, 1], red, green, blue. */
export async function attend(name, images, size, query = null) {
  await prepare(name);
  const started = performance.now();
  const output = await send({ run: name, images, size, query });
  return { ...output, milliseconds: performance.now() - started };
}
