// Runs the networks, beside the page, so that it stays responsive: {load: name, url, bytes} and {run: name, ...}.
import * as ort from "../vendor/ort.wasm.min.mjs";

const RUNTIME = new URL("../vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href;
const sessions = new Map();
ort.env.wasm.numThreads = 1; // pages without isolation headers get no more
ort.env.logLevel = "error";

async function fetchAll(url, bytes, report) {
  const name = url.split("/").pop();
  const response = await fetch(url).catch(() => {
    throw new Error(`${name} could not be loaded. Is the connection up? Choose again to try again.`);
  });
  if (!response.ok) throw new Error(`${name} could not be loaded: the server answers ${response.status}.`);
  const parts = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    report(Math.min(1, (received += value.length) / bytes));
  }
  const content = new Uint8Array(received);
  parts.reduce((at, part) => (content.set(part, at), at + part.length), 0);
  return content;
}

async function load({ load: name, url, bytes, runtimeBytes }) {
  if (sessions.has(name)) return {};
  const report = (share) => postMessage({ progress: share });
  const all = ort.env.wasm.wasmBinary ? bytes : bytes + runtimeBytes;
  if (!ort.env.wasm.wasmBinary) {
    const runtime = await fetchAll(RUNTIME, runtimeBytes, (share) => report((share * runtimeBytes) / all));
    ort.env.wasm.wasmBinary = runtime.buffer;
  }
  const file = await fetchAll(url, bytes, (share) => report(1 - ((1 - share) * bytes) / all));
  sessions.set(name, await ort.InferenceSession.create(file, { executionProviders: ["wasm"] }));
  return {};
}

async function run({ run: name, size, images, query }) {
  const session = sessions.get(name);
  const tensor = (values) => new ort.Tensor("float32", values, [1, 3, size, size]);
  const feeds = { images: tensor(images) };
  if (session.inputNames.includes("query")) feeds.query = tensor(query ?? images);
  const outputs = await session.run(feeds);
  const maps = {};
  for (const [output, { dims, data }] of Object.entries(outputs)) {
    if (output.startsWith("map_")) maps[output.slice(4)] = { height: dims[1], width: dims[2], values: data };
  }
  return { logits: outputs.logits.data, maps };
}

let last = Promise.resolve(); // one thing at a time, in order
onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      postMessage({ id: data.id, result: await (data.load ? load(data) : run(data)) });
    } catch (error) {
      postMessage({ id: data.id, error: String(error.message ?? error) });
    }
  });
};
