"use strict";

// Text of the index is inserted as text nodes, never as markup. Spans count code points, as in Python, while JavaScript
// strings count UTF-16 units, so strings are split into code points before they are cut.

const $ = (id) => document.getElementById(id);
const STAGES = ["encode", "candidates", "fetch", "score", "evidence"];
// Colors of a heat map from the lowest similarity on all pages to the highest. They multiply the page, so black letters
// stay black. The same values as in evidence/pages.py.
const TINTS = [[0, 255, 255, 255], [0.35, 255, 244, 190], [0.7, 255, 196, 64], [1, 255, 96, 48]];
// Unrelated words have about this similarity; highlighting them would be noise.
const MIN_HIGHLIGHT = 0.2;
let pendingSearch = null;
const suggestionsOf = new Map();

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function requestJson(path, options) {
  return (await request(path, options)).json();
}

async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) {
    $("access").hidden = false;
    $("token").focus();
  }
  const { detail } = await response.json().catch(() => ({}));
  const message = Array.isArray(detail) ? detail.map((d) => `${d.loc.slice(1).join(".")}: ${d.msg}`).join("; ") : detail;
  throw Object.assign(new Error(message || `the server responded with status ${response.status}`), { status: response.status });
}

function showStatus(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

async function start() {
  const info = await requestJson("api/info");
  $("access").hidden = true;
  document.title = `${info.name} · manyvec`;
  $("about").textContent =
    `${info.name}: ${info.documents.toLocaleString()} documents, ` +
    `${info.tokens.toLocaleString()} token vectors of ${info.model}`;
  $("filters").replaceChildren(...Object.entries(info.filter_columns).map(([name, type]) => filterOf(name, type)));
  $("filters").hidden = !$("filters").children.length;
  showStatus("");
  const parameters = new URLSearchParams(location.search);
  if (parameters.get("q")) {
    $("query").value = parameters.get("q");
    await search();
  }
}

// Filters: one control per column, or two for a range, depending on its type. An empty control does not filter.

function filterOf(name, type) {
  const scalar = type.replace(/^list\[|\]$/g, "");
  const isList = type !== scalar;
  const control = (label, op, read) => {
    const made =
      scalar === "bool"
        ? element("select", {}, ...["", "true", "false"].map((v) => new Option(v || "any", v)))
        : element("input", {
            type: { int: "number", float: "number", datetime: "date" }[scalar] || "text",
            step: scalar === "float" ? "any" : "",
            placeholder: label,
          });
    made.ariaLabel = `${name}: ${label}`;
    Object.assign(made.dataset, { column: name, op });
    made.condition = () => ({ column: name, op, value: read(made.value) });
    made.addEventListener("change", search);
    return made;
  };
  const day = (suffix) => (value) => value + suffix;
  const as = { int: Number, float: Number, bool: (value) => value === "true" }[scalar] || String;
  let controls;
  if (isList) controls = [control("any", "contains", as)];
  else if (scalar === "datetime")
    controls = [control("from", ">=", day("T00:00:00Z")), control("to", "<=", day("T23:59:59.999999Z"))];
  else if (scalar === "int" || scalar === "float") controls = [control("from", ">=", as), control("to", "<=", as)];
  else controls = [control("any", "==", as)];
  if (scalar === "str") {
    const suggestions = element("datalist", { id: `suggestions-${name}` });
    controls[0].setAttribute("list", suggestions.id);
    suggestionsOf.set(name, suggestions);
    controls.push(suggestions);
  }
  return element("fieldset", { className: "filter" }, element("legend", { textContent: name }), ...controls);
}

function controlsOf(column) {
  return [...$("filters").querySelectorAll("[data-column]")].filter((c) => !column || c.dataset.column === column);
}

function choose(column, value) {
  for (const control of controlsOf(column)) control.value = String(value);
  search();
}

function suggest(metadata) {
  for (const [name, list] of suggestionsOf)
    for (const value of [metadata[name]].flat())
      if (typeof value === "string" && value.length < 100 && ![...list.options].some((o) => o.value === value))
        list.append(new Option("", value));
}

async function search() {
  const query = $("query").value.trim();
  for (const control of controlsOf()) control.classList.toggle("set", control.value !== "");
  if (!query) return;
  pendingSearch?.abort();
  pendingSearch = new AbortController();
  showStatus("Searching …");
  const filter = controlsOf()
    .filter((control) => control.value !== "")
    .map((control) => control.condition());
  try {
    const response = await requestJson("api/search", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ query, k: Number($("k").value), filter }),
      signal: pendingSearch.signal,
    });
    history.replaceState(null, "", `?q=${encodeURIComponent(query)}`);
    showHits(response);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("hits").replaceChildren();
    $("timing").hidden = true;
    showStatus(error.message, true);
  }
}

function showHits(response) {
  const n = response.hits.length;
  showStatus(n ? `${n} ${n === 1 ? "hit" : "hits"} in ${milliseconds(response.milliseconds.total)}` : "Nothing found");
  showTiming(response.milliseconds);
  pageObserver.disconnect();
  $("hits").replaceChildren(...response.hits.map(hitOf));
  for (const hit of response.hits) suggest(hit.metadata);
}

function milliseconds(value) {
  return value >= 100 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}

// A document without tokens has no score.
function decimals(value, n) {
  return value === null ? "–" : value.toFixed(n);
}

function showTiming({ total, ...taken }) {
  const rest = total - Object.values(taken).reduce((a, b) => a + b, 0);
  const rows = [...STAGES.filter((s) => s in taken).map((s) => [s, taken[s]]), ["other", Math.max(rest, 0)]];
  const bar = element("div", { className: "stages" });
  const legend = element("ul", { className: "legend" });
  for (const [stage, value] of rows) {
    const part = element("span", { title: `${stage} ${milliseconds(value)}` });
    part.dataset.stage = stage;
    part.style.width = `${(100 * value) / total}%`;
    bar.append(part);
    const swatch = element("i");
    swatch.dataset.stage = stage;
    legend.append(element("li", {}, swatch, `${stage} ${milliseconds(value)}`));
  }
  $("timing").replaceChildren(bar, legend);
  $("timing").hidden = false;
}

function hitOf(hit) {
  const item = $("hit").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  part("rank").textContent = hit.rank;
  part("id").textContent = part("id").title = hit.id;
  part("similarity").append(element("b", { textContent: decimals(hit.similarity, 3) }), " similarity");
  // Hits are ordered by the mix with BM25, if there is one.
  const mix = hit.final_score === hit.score ? "" : `with BM25 ${decimals(hit.final_score, 3)} · `;
  part("score").textContent = `${mix}score ${decimals(hit.score, 2)}`;
  part("text").append(...passageOf(hit));
  part("text").hidden = !hit.n_chars;
  if (hit.page) showPageWhenSeen(hit, item);
  part("problem").hidden = !hit.problem;
  part("problem").textContent = hit.problem || "";
  part("words").append(...hit.words.map((word, i) => wordOf(word, i, item)));
  if (Math.abs(hit.unattributed) >= 0.005)
    part("words").append(element("li", { className: "unmatched", textContent: `other tokens ${hit.unattributed.toFixed(2)}` }));
  part("metadata").append(...Object.entries(hit.metadata).map(metadataOf));
  if (hit.is_metadata_omitted) part("metadata").append("metadata too long to show");
  const isWhole = hit.passage.start === 0 && hit.passage.end >= hit.n_chars;
  part("whole").hidden = isWhole;
  part("whole").textContent = `Whole text (${hit.n_chars.toLocaleString()} characters)`;
  part("whole").addEventListener("click", () => toggleWhole(hit, item));
  return item;
}

function passageOf(hit) {
  const { text, start, end } = hit.passage;
  const gap = (sign) => element("span", { className: "gap", textContent: sign });
  return [
    ...(start > 0 ? [gap("… ")] : []),
    ...marked(Array.from(text), start, hit.words),
    ...(end < hit.n_chars ? [gap(" …")] : []),
  ];
}

function marked(characters, from, words) {
  const to = from + characters.length;
  const borders = new Set([from, to]);
  for (const { span } of words)
    for (const border of span || []) if (border > from && border < to) borders.add(border);
  const sorted = [...borders].sort((a, b) => a - b);
  return sorted.slice(0, -1).map((start, i) => {
    const text = characters.slice(start - from, sorted[i + 1] - from).join("");
    const covering = words.flatMap((w, j) => (w.span && w.span[0] <= start && start < w.span[1] ? [j] : []));
    if (!covering.length) return document.createTextNode(text);
    const mark = element("mark", { textContent: text, tabIndex: 0 });
    mark.dataset.words = covering.join(" ");
    mark.style.setProperty("--strength", strength(Math.max(...covering.map((j) => words[j].similarity))));
    mark.addEventListener("mouseenter", (event) => traceWords(event, true));
    mark.addEventListener("mouseleave", (event) => traceWords(event, false));
    explainOn(mark, () => covering.map((j) => words[j]));
    return mark;
  });
}

function strength(similarity) {
  return Math.min(Math.max((similarity - MIN_HIGHLIGHT) / (1 - MIN_HIGHLIGHT), 0.06), 1).toFixed(2);
}

function wordOf(word, position, item) {
  const shown = element("li", { className: word.span || word.patch ? "" : "unmatched" }, word.word);
  if (word.text && word.text !== word.word) shown.append(element("i", { textContent: ` → ${word.text}` }));
  shown.append(element("i", { textContent: ` ${word.similarity.toFixed(2)}` }));
  shown.style.setProperty("--strength", strength(word.similarity));
  shown.addEventListener("mouseenter", () => traceMarks(item, position));
  shown.addEventListener("mouseleave", () => traceMarks(item, null));
  explainOn(shown, () => [word]);
  return shown;
}

function traceMarks(item, position) {
  item.classList.toggle("tracing", position !== null);
  for (const mark of item.querySelectorAll("mark"))
    mark.classList.toggle("traced", mark.dataset.words.split(" ").includes(String(position)));
  item.paint?.(position);
}

function traceWords({ target }, isOver) {
  const positions = target.dataset.words.split(" ");
  const words = target.closest(".hit").querySelectorAll(".words li");
  words.forEach((word, i) => word.classList.toggle("traced", isOver && positions.includes(String(i))));
}

function metadataOf([name, value]) {
  const shown = element("span", {}, `${name} `);
  const values = [value].flat();
  const canFilter = controlsOf(name).length > 0;
  values.slice(0, 12).forEach((single, i) => {
    const text = typeof single === "object" ? JSON.stringify(single) : String(single);
    const short = text.length > 120 ? `${text.slice(0, 120)}…` : text;
    if (i) shown.append(", ");
    if (canFilter && single !== null && controlsOf(name)[0].type !== "date")
      shown.append(
        element("button", { type: "button", textContent: short, title: `only ${name} ${short}`, onclick: () => choose(name, single) }),
      );
    else shown.append(element("span", { textContent: short }));
  });
  return shown;
}

function problemOf(item, error, what) {
  const problem = item.querySelector(".problem");
  problem.textContent = error.status === 404 ? `This ${what} was deleted since the search.` : error.message;
  problem.hidden = false;
}

async function toggleWhole(hit, item) {
  const [text, button] = [item.querySelector(".text"), item.querySelector(".whole")];
  const isOpen = button.getAttribute("aria-expanded") === "true";
  if (isOpen) {
    text.replaceChildren(...passageOf(hit));
  } else {
    try {
      const { start, end } = hit.passage;
      // The server limits the length of a text: request the part around the passage.
      const from = Math.max(0, start - 100_000);
      const part = await requestJson(`api/documents/${encodeURIComponent(hit.id)}?start=${from}`);
      const characters = Array.from(part.text);
      const passage = characters.slice(start - from, end - from).join("");
      const isSame = part.n_chars === hit.n_chars && passage === hit.passage.text;
      text.replaceChildren(...(isSame ? marked(characters, from, hit.words) : [part.text]));
      if (!isSame)
        problemOf(item, { message: "This document changed since the search. Search again to see what matches now." });
      text.querySelector("mark")?.scrollIntoView({ block: "nearest" });
    } catch (error) {
      problemOf(item, error, "document");
      return;
    }
  }
  text.classList.toggle("open", !isOpen);
  button.setAttribute("aria-expanded", String(!isOpen));
  button.textContent = isOpen ? `Whole text (${hit.n_chars.toLocaleString()} characters)` : "Best passage only";
}

// Page images, overlaid with the similarity of each patch to the word under the pointer, or to all words. An image is
// requested once it comes near the visible part of the window.

const pageObserver = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      pageObserver.unobserve(target);
      target.load();
    }
  },
  { rootMargin: "600px" },
);

function showPageWhenSeen(hit, item) {
  const canvas = item.querySelector("canvas");
  item.classList.add("paged");
  canvas.parentElement.hidden = false;
  canvas.ariaLabel = `Page image of ${hit.id}`;
  canvas.load = () => showPage(hit, item, canvas).catch((error) => problemOf(item, error, "page"));
  pageObserver.observe(canvas);
}

async function showPage(hit, item, canvas) {
  const response = await request(`api/images/${encodeURIComponent(hit.id)}`);
  const bitmap = await createImageBitmap(await response.blob());
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const isSame = response.headers.get("ETag") === hit.page.etag;
  if (!isSame) problemOf(item, { message: "This page changed since the search. Search again to see what matches now." });
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
  made.getContext("2d").putImageData(
    new ImageData(new Uint8ClampedArray(fractions.flatMap(tint)), made.width),
    0,
    0,
  );
  return made;
}

function tint(fraction) {
  const next = Math.max(1, TINTS.findIndex(([from]) => from >= fraction));
  const [[from, ...low], [to, ...high]] = [TINTS[next - 1], TINTS[next]];
  return [...low.map((value, i) => value + ((high[i] - value) * (fraction - from)) / (to - from)), 255];
}

// Tooltips that describe the match under the pointer or with keyboard focus.

function explainOn(target, words) {
  const open = () => {
    const lines = words().map(
      ({ word, text, patch, similarity, share }) =>
        `${word} → ${text || (patch ? `row ${patch[0] + 1}, column ${patch[1] + 1}` : "no match")}: similarity ${similarity.toFixed(2)}, adds ${share.toFixed(2)}`,
    );
    $("tip").replaceChildren(...lines.map((line) => element("p", { textContent: line })));
    $("tip").hidden = false;
    const at = target.getClientRects()[0];
    const tip = $("tip").getBoundingClientRect();
    const above = at.top - tip.height - 8;
    $("tip").style.top = `${above > 4 ? above : at.bottom + 8}px`;
    $("tip").style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.width - 8))}px`;
  };
  const close = () => ($("tip").hidden = true);
  target.addEventListener("mouseenter", open);
  target.addEventListener("focus", open);
  target.addEventListener("mouseleave", close);
  target.addEventListener("blur", close);
}

addEventListener("scroll", () => ($("tip").hidden = true), { passive: true, capture: true });
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("k").addEventListener("change", search);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  start().catch((error) => showStatus(error.message, true));
});
start().catch((error) => showStatus(error.message, true));
