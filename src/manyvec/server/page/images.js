// Page images, overlaid with the similarity of each patch to the word under the pointer, or to all words. An image is
// requested once it comes near the visible part of the window.

import { $, element, request } from "./dom.js";

// Colors of a heat map from the lowest similarity on all pages to the highest: light parts of a page are multiplied by a
// tint, so black letters stay black; on dark parts a glow is added as light. The same values as in evidence/pages.py.
const TINTS = [[0, 255, 255, 255], [0.35, 255, 244, 190], [0.7, 255, 196, 64], [1, 255, 96, 48]];
const GLOWS = [[0, 0, 0, 0], [0.35, 64, 44, 0], [0.7, 136, 72, 0], [1, 192, 64, 16]];
// Parts along each side of a page, larger than letters and smaller than figures, and the brightness of a dark one.
const [N_PARTS, DARK] = [16, 0.4];

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
  const side = Math.min(bitmap.width, bitmap.height);
  const [width, height] = hit.page.is_cropped ? [side, side] : [bitmap.width, bitmap.height];
  const area = [(bitmap.width - width) / 2, (bitmap.height - height) / 2, width, height];
  const masks = masksOf(bitmap, area);
  item.paint = (position) => {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(bitmap, 0, 0);
    const { map: heatmap, color_range: range } = position === null ? hit.page : hit.words[position];
    if (!isSame || !heatmap) return;
    for (const [operation, colors] of [["multiply", TINTS], ["screen", GLOWS]]) {
      const layer = element("canvas", { width, height });
      for (const part of [colored(heatmap, range, colors), masks[operation]])
        layer.getContext("2d").drawImage(part, 0, 0, width, height);
      context.globalCompositeOperation = operation;
      context.drawImage(layer, area[0], area[1]);
    }
  };
  item.paint(null);
}

// What covers the tints on dark parts of a page, and the glows on light ones.
function masksOf(bitmap, area) {
  const small = element("canvas", { width: N_PARTS, height: N_PARTS });
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, ...area, 0, 0, N_PARTS, N_PARTS);
  const { data } = context.getImageData(0, 0, N_PARTS, N_PARTS);
  const isLight = Array.from({ length: N_PARTS ** 2 }, (_, i) => {
    const [red, green, blue] = data.slice(4 * i);
    return 0.299 * red + 0.587 * green + 0.114 * blue > 255 * DARK;
  });
  return {
    multiply: pixels(isLight.map((light) => [255, 255, 255, light ? 0 : 255]), N_PARTS),
    screen: pixels(isLight.map((light) => [0, 0, 0, light ? 255 : 0]), N_PARTS),
  };
}

function colored(heatmap, [lowest, highest], colors) {
  const fractions = heatmap.flat().map((value) => clamped((value - lowest) / (highest - lowest)));
  return pixels(fractions.map((fraction) => colorOf(fraction, colors)), heatmap[0].length);
}

function pixels(values, width) {
  const made = element("canvas", { width, height: values.length / width });
  made.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(values.flat()), width), 0, 0);
  return made;
}

function clamped(fraction) {
  return Math.min(1, Math.max(0, fraction));
}

function colorOf(fraction, colors) {
  const next = Math.max(1, colors.findIndex(([from]) => from >= fraction));
  const [[from, ...low], [to, ...high]] = [colors[next - 1], colors[next]];
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
