"use strict";

// Whatever comes from the index is put in as text, never as markup. Spans count code points, as Python does; strings
// here count UTF-16 units, so texts are taken apart into code points before they are cut.

const $ = (id) => document.getElementById(id);
const STAGES = ["encode", "candidates", "fetch", "score", "evidence"];
// What a similarity, from the least on a page to the most, multiplies white paper by; letters stay black. As in pages.py.
const TINTS = [[0, 255, 255, 255], [0.35, 255, 244, 190], [0.7, 255, 196, 64], [1, 255, 96, 48]];
// Unlike words of one model are still this similar: below it a highlight would only be noise.
const FAINTEST = 0.2;
let running = null;
const seen = new Map();

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function ask(path, options) {
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
  const said = Array.isArray(detail) ? detail.map((d) => `${d.loc.slice(1).join(".")}: ${d.msg}`).join("; ") : detail;
  throw Object.assign(new Error(said || `the server answered ${response.status}`), { status: response.status });
}

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

async function start() {
  const info = await ask("api/info");
  $("access").hidden = true;
  document.title = `${info.name} · manyvec`;
  $("about").textContent =
    `${info.name}: ${info.documents.toLocaleString()} documents, ` +
    `${info.tokens.toLocaleString()} token vectors of ${info.model}`;
  $("filters").replaceChildren(...Object.entries(info.filters).map(([name, type]) => filterOf(name, type)));
  $("filters").hidden = !$("filters").children.length;
  say("");
  const wanted = new URLSearchParams(location.search);
  if (wanted.get("q")) {
    $("query").value = wanted.get("q");
    await search();
  }
}

// Filters: one control, or two for a range, by the column's declared type; an empty one filters nothing.

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
    const suggestions = element("datalist", { id: `seen-${name}` });
    controls[0].setAttribute("list", suggestions.id);
    seen.set(name, suggestions);
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
  for (const [name, list] of seen)
    for (const value of [metadata[name]].flat())
      if (typeof value === "string" && value.length < 100 && ![...list.options].some((o) => o.value === value))
        list.append(new Option("", value));
}

async function search() {
  const query = $("query").value.trim();
  for (const control of controlsOf()) control.classList.toggle("set", control.value !== "");
  if (!query) return;
  running?.abort();
  running = new AbortController();
  say("Searching …");
  const filter = controlsOf()
    .filter((control) => control.value !== "")
    .map((control) => control.condition());
  try {
    const found = await ask("api/search", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ query, k: Number($("k").value), filter }),
      signal: running.signal,
    });
    history.replaceState(null, "", `?q=${encodeURIComponent(query)}`);
    show(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("hits").replaceChildren();
    $("timing").hidden = true;
    say(error.message, true);
  }
}

function show(found) {
  const n = found.hits.length;
  say(n ? `${n} ${n === 1 ? "hit" : "hits"} in ${milliseconds(found.milliseconds.total)}` : "Nothing found");
  showTiming(found.milliseconds);
  unseen.disconnect();
  $("hits").replaceChildren(...found.hits.map(hitOf));
  for (const hit of found.hits) suggest(hit.metadata);
}

function milliseconds(value) {
  return value >= 100 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
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
  part("similarity").append(element("b", { textContent: hit.similarity.toFixed(3) }), " similarity");
  part("score").textContent = `score ${hit.score.toFixed(2)}`;
  part("text").append(...passageOf(hit));
  part("text").hidden = !hit.n_chars;
  if (hit.page) showPageWhenSeen(hit, item);
  part("problem").hidden = !hit.problem;
  part("problem").textContent = hit.problem || "";
  part("words").append(...hit.words.map((word, i) => wordOf(word, i, item)));
  if (Math.abs(hit.unshown) >= 0.005)
    part("words").append(element("li", { className: "unfound", textContent: `no word ${hit.unshown.toFixed(2)}` }));
  part("metadata").append(...Object.entries(hit.metadata).map(metadataOf));
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
    mark.addEventListener("mouseenter", (event) => traceBack(event, true));
    mark.addEventListener("mouseleave", (event) => traceBack(event, false));
    explainOn(mark, () => covering.map((j) => words[j]));
    return mark;
  });
}

function strength(similarity) {
  return Math.min(Math.max((similarity - FAINTEST) / (1 - FAINTEST), 0.06), 1).toFixed(2);
}

function wordOf(word, place, item) {
  const shown = element("li", { className: word.span || word.patch ? "" : "unfound" }, word.word);
  if (word.text && word.text !== word.word) shown.append(element("i", { textContent: ` → ${word.text}` }));
  shown.append(element("i", { textContent: ` ${word.similarity.toFixed(2)}` }));
  shown.style.setProperty("--strength", strength(word.similarity));
  shown.addEventListener("mouseenter", () => trace(item, place));
  shown.addEventListener("mouseleave", () => trace(item, null));
  explainOn(shown, () => [word]);
  return shown;
}

function trace(item, place) {
  item.classList.toggle("tracing", place !== null);
  for (const mark of item.querySelectorAll("mark"))
    mark.classList.toggle("traced", mark.dataset.words.split(" ").includes(String(place)));
  item.paint?.(place);
}

function traceBack({ target }, isOver) {
  const places = target.dataset.words.split(" ");
  const words = target.closest(".hit").querySelectorAll(".words li");
  words.forEach((word, i) => word.classList.toggle("traced", isOver && places.includes(String(i))));
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
      // Of an enormous text the server gives a part: then one around the passage.
      const from = Math.max(0, start - 100_000);
      const found = await ask(`api/documents/${encodeURIComponent(hit.id)}?start=${from}`);
      const characters = Array.from(found.text);
      const passage = characters.slice(start - from, end - from).join("");
      const isSame = found.n_chars === hit.n_chars && passage === hit.passage.text;
      text.replaceChildren(...(isSame ? marked(characters, from, hit.words) : [found.text]));
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

// Pages: the image, and over it how similar each patch is to the word pointed at, or to all together.

const unseen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      unseen.unobserve(target);
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
  unseen.observe(canvas);
}

async function showPage(hit, item, canvas) {
  const response = await request(`api/images/${encodeURIComponent(hit.id)}`);
  const bitmap = await createImageBitmap(await response.blob());
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const isSame = response.headers.get("ETag") === hit.page.etag;
  if (!isSame) problemOf(item, { message: "This page changed since the search. Search again to see what matches now." });
  item.paint = (place) => {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(bitmap, 0, 0);
    const { map: heat } = place === null ? hit.page : hit.words[place];
    if (!isSame || !heat) return;
    context.globalCompositeOperation = "multiply";
    const side = Math.min(canvas.width, canvas.height);
    const [width, height] = hit.page.is_cropped ? [side, side] : [canvas.width, canvas.height];
    context.drawImage(tinted(heat), (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  };
  item.paint(null);
}

function tinted(heat) {
  const values = heat.flat();
  const least = values.reduce((a, b) => Math.min(a, b));
  const spread = values.reduce((a, b) => Math.max(a, b)) - least || 1;
  const made = element("canvas", { width: heat[0].length, height: heat.length });
  made.getContext("2d").putImageData(
    new ImageData(new Uint8ClampedArray(values.flatMap((value) => tint((value - least) / spread))), made.width),
    0,
    0,
  );
  return made;
}

function tint(strength) {
  const next = Math.max(1, TINTS.findIndex(([from]) => from >= strength));
  const [[from, ...low], [to, ...high]] = [TINTS[next - 1], TINTS[next]];
  return [...low.map((value, i) => value + ((high[i] - value) * (strength - from)) / (to - from)), 255];
}

// What matched, under the pointer or at the keyboard's focus.

function explainOn(target, words) {
  const open = () => {
    const lines = words().map(
      ({ word, text, patch, similarity, share }) =>
        `${word} → ${text || (patch ? `row ${patch[0] + 1}, column ${patch[1] + 1}` : "no word")}: similarity ${similarity.toFixed(2)}, adds ${share.toFixed(2)}`,
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
  start().catch((error) => say(error.message, true));
});
start().catch((error) => say(error.message, true));
