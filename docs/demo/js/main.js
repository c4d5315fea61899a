// The page: reads data.json, which the build writes, and starts its two parts.
import { startAsking } from "./ask.js";
import { startExploring } from "./explore.js";
import { setColors } from "./maps.js";
import { setUp } from "./network.js";

const element = (id) => document.getElementById(id);

async function main() {
  const response = await fetch("data.json");
  if (!response.ok) throw new Error("data.json is missing: this page is made by `nox -s demo`, see CONTRIBUTING.md.");
  const data = await response.json();
  setColors(data.colors);
  setUp(data.networks, data.runtimeBytes, (share) => {
    element("loading").hidden = share >= 1;
    element("loading").value = share;
  });
  element("sources").append(
    ...data.pictures.filter((picture) => picture.source).flatMap(({ name, source, license, address }, i) => {
      const link = document.createElement("a");
      link.href = address;
      link.textContent = name;
      return [i ? "; " : "", link, `, ${source} (${license})`];
    }),
    "; all others are drawn by code.",
  );
  await startExploring(data);
  startAsking(data);
  document.body.dataset.state = "ready";
}

main().catch((error) => {
  element("message").className = "message wrong";
  element("message").textContent = error.message;
});
