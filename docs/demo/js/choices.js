// Small parts of the page that both of its halves use.
export const element = (id) => document.getElementById(id);

export function create(tag, properties = {}, ...children) {
  const { className, ...others } = properties;
  const made = Object.assign(document.createElement(tag), others);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Fill a fieldset with one radio button for each picture; `choose(picture)` is called with the chosen one. */
export function fillGallery(fieldset, name, pictures, choose) {
  for (const label of fieldset.querySelectorAll("label")) label.remove();
  for (const picture of pictures) {
    const radio = create("input", { type: "radio", name, value: picture.id });
    radio.setAttribute("aria-label", picture.caption ?? picture.name);
    radio.addEventListener("change", () => choose(picture));
    const image = create("img", { src: picture.file, alt: "", title: picture.name, width: 64, height: 64, decoding: "async" });
    fieldset.append(create("label", {}, radio, image, ...(picture.caption ? [create("span", {}, picture.caption)] : [])));
  }
}

export function fillSelect(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => create("option", { value, textContent: text })));
}

export const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;
