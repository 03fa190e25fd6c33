// Page images, overlaid with the similarity of each patch to the word under the pointer, or to all words. An image is
// requested once it comes near the visible part of the window.

import { $, element, request } from "./dom.js";

// Colors of a heat map from the lowest similarity on all pages to the highest. They multiply the page, so black letters
// stay black. The same values as in evidence/pages.py.
const TINTS = [[0, 255, 255, 255], [0.35, 255, 244, 190], [0.7, 255, 196, 64], [1, 255, 96, 48]];

const observer = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      target.load();
    }
  },
  { rootMargin: "600px" },
);

export function forgetPages() {
  observer.disconnect();
}

export function showPageWhenSeen(hit, item, onProblem) {
  const canvas = item.querySelector("canvas");
  item.classList.add("paged");
  item.querySelector(".page").hidden = false;
  canvas.ariaLabel = `Page image of ${hit.id}`;
  item.querySelector(".zoom").ariaLabel = `Enlarge the page image of ${hit.id}`;
  item.querySelector(".zoom").addEventListener("click", () => enlarge(canvas));
  canvas.load = () => showPage(hit, item, canvas, onProblem).catch(onProblem);
  observer.observe(canvas);
}

async function showPage(hit, item, canvas, onProblem) {
  const response = await request(`api/images/${encodeURIComponent(hit.id)}`);
  const bitmap = await createImageBitmap(await response.blob());
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const isSame = response.headers.get("ETag") === hit.page.etag;
  if (!isSame) onProblem({ message: "This page changed since the search. Search again to see what matches now." });
  item.paint = (position) => {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(bitmap, 0, 0);
    const { map: heatmap, color_range: range } = position === null ? hit.page : hit.words[position];
    if (!isSame || !heatmap) return;
    context.globalCompositeOperation = "multiply";
    const side = Math.min(canvas.width, canvas.height);
    const [width, height] = hit.page.is_cropped ? [side, side] : [canvas.width, canvas.height];
    context.drawImage(tinted(heatmap, range), (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  };
  item.paint(null);
}

function tinted(heatmap, [lowest, highest]) {
  const values = heatmap.flat();
  const fractions = values.map((value) => Math.min(1, Math.max(0, (value - lowest) / (highest - lowest))));
  const made = element("canvas", { width: heatmap[0].length, height: heatmap.length });
  made.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(fractions.flatMap(tint)), made.width), 0, 0);
  return made;
}

function tint(fraction) {
  const next = Math.max(1, TINTS.findIndex(([from]) => from >= fraction));
  const [[from, ...low], [to, ...high]] = [TINTS[next - 1], TINTS[next]];
  return [...low.map((value, i) => value + ((high[i] - value) * (fraction - from)) / (to - from)), 255];
}

// The viewer: the page as it is painted, fitted to the window or at its own size.

function enlarge(canvas) {
  const shown = $("viewer").querySelector("canvas");
  Object.assign(shown, { width: canvas.width, height: canvas.height, ariaLabel: canvas.ariaLabel });
  shown.getContext("2d").drawImage(canvas, 0, 0);
  fit(true);
  $("viewer").showModal();
}

function fit(isFitted) {
  $("viewer").classList.toggle("fitted", isFitted);
  $("size").textContent = isFitted ? "Actual size" : "Fit to window";
}

$("size").addEventListener("click", () => fit(!$("viewer").classList.contains("fitted")));
$("viewer").querySelector("canvas").addEventListener("click", () => $("size").click());
$("close").addEventListener("click", () => $("viewer").close());
