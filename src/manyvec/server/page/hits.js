// A hit: its heading, its passage with highlights, a chip for each word of the query, and its metadata.
//
// Spans count code points, as in Python, while JavaScript strings count UTF-16 units, so strings are split into code
// points before they are cut.

import { $, element, explainOn, request, requestJson } from "./dom.js";
import { controlsOf } from "./filters.js";
import { showPageWhenSeen } from "./images.js";

// Unrelated words have about this similarity; highlighting them would be noise.
const MIN_HIGHLIGHT = 0.2;
// Metadata that the heading shows.
const IN_HEADING = new Set(["title", "source", "page"]);

// Make the element of a hit. `choose` is called with a column and a value to filter on; `isWritable` adds a button.
export function hitOf(hit, choose, isWritable) {
  const item = $("hit").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  part("rank").textContent = hit.rank;
  showHeading(hit, item);
  part("similarity").append(element("b", { textContent: decimals(hit.similarity, 3) }), " similarity");
  // Hits are ordered by the mix with BM25, if there is one.
  const isMixed = hit.final_score !== undefined && hit.final_score !== hit.score;
  part("score").textContent = `${isMixed ? `with BM25 ${decimals(hit.final_score, 3)} · ` : ""}score ${decimals(hit.score, 2)}`;
  part("text").append(...passageOf(hit));
  part("text").hidden = !hit.n_chars;
  // The text of a page is scrolled in a small box, with the keyboard too.
  if (hit.page) part("text").tabIndex = 0;
  if (hit.page) showPageWhenSeen(hit, item, (error) => showProblem(item, error, "page"));
  part("problem").hidden = !hit.problem;
  part("problem").textContent = hit.problem || "";
  part("words").append(...hit.words.map((word, i) => wordOf(word, i, hit, item)));
  if (Math.abs(hit.unattributed) >= 0.005)
    part("words").append(element("li", { className: "unmatched", textContent: `other tokens ${hit.unattributed.toFixed(2)}` }));
  part("counted").hidden = !hit.counted.length;
  part("counted").textContent = `BM25 counted ${hit.counted.map(({ word, n }) => `${word} × ${n}`).join(", ")} (underlined)`;
  part("metadata").append(...Object.entries(hit.metadata).filter(([name]) => !isShown(name, hit)).map((entry) => metadataOf(entry, choose)));
  if (hit.is_metadata_omitted) part("metadata").append("metadata too long to show");
  const isWhole = hit.passage.start === 0 && hit.passage.end >= hit.n_chars;
  part("whole").hidden = isWhole;
  part("whole").textContent = `Whole text (${hit.n_chars.toLocaleString()} characters)`;
  part("whole").addEventListener("click", () => toggleWhole(hit, item));
  part("delete").hidden = !isWritable;
  part("delete").ariaLabel = `Delete ${hit.id}`;
  part("delete").addEventListener("click", () => remove(hit, item));
  return item;
}

// A document without tokens has no score.
function decimals(value, n) {
  return value === null ? "–" : value.toFixed(n);
}

// Whether the heading shows a value of the metadata, so that the list below need not.
function isShown(name, hit) {
  return IN_HEADING.has(name) && ["string", "number"].includes(typeof hit.metadata[name]) && !controlsOf(name).length;
}

function showHeading(hit, item) {
  const { title, source, page } = hit.metadata;
  const isTitled = typeof title === "string" && title.trim() !== "";
  const heading = item.querySelector("h2");
  heading.textContent = heading.title = isTitled ? title : hit.id;
  const origin = [];
  if (typeof source === "string" && source !== heading.textContent) origin.push(source);
  if (["string", "number"].includes(typeof page)) origin.push(`page ${page}`);
  if (!isTitled) heading.className = "id";
  const line = item.querySelector(".origin");
  line.textContent = origin.join(" · ");
  if (isTitled && hit.id !== source) {
    if (origin.length) line.append(" · ");
    line.append(element("span", { className: "id", textContent: hit.id }));
  }
  line.hidden = !line.textContent;
}

function passageOf(hit) {
  const { text, start, end } = hit.passage;
  const gap = (sign) => element("span", { className: "faint", textContent: sign });
  return [
    ...(start > 0 ? [gap("… ")] : []),
    ...marked(Array.from(text), start, hit),
    ...(end < hit.n_chars ? [gap(" …")] : []),
  ];
}

// Words that the encoder matched are highlighted, words that BM25 counted underlined.
function marked(characters, from, { words, counted }) {
  const to = from + characters.length;
  const borders = new Set([from, to]);
  for (const [start, end] of [...words.map(({ span }) => span || []), ...counted.flatMap(({ spans }) => spans)])
    for (const border of [start, end]) if (border > from && border < to) borders.add(border);
  const sorted = [...borders].sort((a, b) => a - b);
  return sorted.slice(0, -1).map((start, i) => {
    const text = characters.slice(start - from, sorted[i + 1] - from).join("");
    const isIn = (span) => span && span[0] <= start && start < span[1];
    const covering = words.flatMap(({ span }, j) => (isIn(span) ? [j] : []));
    const lexical = counted.filter(({ spans }) => spans.some(isIn));
    if (!covering.length && !lexical.length) return document.createTextNode(text);
    const mark = element("mark", { textContent: text, className: lexical.length ? "lexical" : "" });
    mark.dataset.words = covering.join(" ");
    mark.style.setProperty("--strength", covering.length ? strength(Math.max(...covering.map((j) => words[j].similarity))) : 0);
    mark.addEventListener("mouseenter", (event) => traceWords(event, true));
    mark.addEventListener("mouseleave", (event) => traceWords(event, false));
    explainOn(mark, () => [
      ...covering.map((j) => explanation(words[j])),
      ...lexical.map(({ word, n }) => `BM25 counted ${word}: ${n} × in this document`),
    ]);
    return mark;
  });
}

function strength(similarity) {
  return Math.min(Math.max((similarity - MIN_HIGHLIGHT) / (1 - MIN_HIGHLIGHT), 0.06), 1).toFixed(2);
}

function explanation({ word, text, patch, similarity, share }, isOutside) {
  const where = text || (patch ? `row ${patch[0] + 1}, column ${patch[1] + 1}` : "no match");
  const outside = isOutside === true ? ", outside of the passage shown" : "";
  return `${word} → ${where}: similarity ${similarity.toFixed(2)}, adds ${share.toFixed(2)}${outside}`;
}

function wordOf(word, position, hit, item) {
  const isOutside = Boolean(word.span) && (word.span[1] <= hit.passage.start || word.span[0] >= hit.passage.end);
  const chip = element("button", { type: "button" }, word.word);
  if (word.text && word.text !== word.word) chip.append(element("i", { className: "faint", textContent: ` → ${word.text}` }));
  chip.append(element("i", { className: "faint", textContent: ` ${word.similarity.toFixed(2)}` }));
  if (isOutside) chip.append(element("i", { className: "outside", textContent: " elsewhere in the text ↓" }));
  const shown = element("li", { className: word.span || word.patch ? "" : "unmatched" }, chip);
  shown.style.setProperty("--strength", strength(word.similarity));
  for (const start of ["mouseenter", "focus"]) chip.addEventListener(start, () => traceMarks(item, position));
  for (const end of ["mouseleave", "blur"]) chip.addEventListener(end, () => traceMarks(item, null));
  explainOn(chip, () => [explanation(word, isOutside && item.querySelector(".whole").ariaExpanded !== "true")]);
  chip.addEventListener("click", () => leadTo(position, hit, item));
  return shown;
}

// Outline the matches of a word and bring them into view; one outside of the passage opens the whole text first.
async function leadTo(position, hit, item) {
  const matches = () => [...item.querySelectorAll("mark")].filter((m) => m.dataset.words.split(" ").includes(String(position)));
  if (!matches().length && hit.words[position].span) await toggleWhole(hit, item);
  traceMarks(item, position);
  matches()[0]?.scrollIntoView({ block: "nearest" });
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

function metadataOf([name, value], choose) {
  const shown = element("span", {}, `${name} `);
  const values = [value].flat();
  const canFilter = controlsOf(name).length > 0;
  values.slice(0, 12).forEach((single, i) => {
    const text = typeof single === "object" ? JSON.stringify(single) : String(single);
    const short = text.length > 120 ? `${text.slice(0, 120)}…` : text;
    if (i) shown.append(", ");
    if (canFilter && single !== null && controlsOf(name)[0].type !== "date")
      shown.append(
        element("button", { type: "button", className: "link", textContent: short, title: `only ${name} ${short}`, onclick: () => choose(name, single) }),
      );
    else shown.append(element("span", { textContent: short }));
  });
  return shown;
}

function showProblem(item, error, what) {
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
      text.replaceChildren(...(isSame ? marked(characters, from, hit) : [part.text]));
      if (!isSame)
        showProblem(item, { message: "This document changed since the search. Search again to see what matches now." });
    } catch (error) {
      showProblem(item, error, "document");
      return;
    }
  }
  text.classList.toggle("open", !isOpen);
  if (!isOpen) text.querySelector("mark")?.scrollIntoView({ block: "nearest" });
  // A scrollable text can be scrolled with the keyboard.
  text.tabIndex = isOpen ? -1 : 0;
  button.setAttribute("aria-expanded", String(!isOpen));
  button.textContent = isOpen ? `Whole text (${hit.n_chars.toLocaleString()} characters)` : "Best passage only";
}

async function remove(hit, item) {
  if (!confirm(`Delete the document ${hit.id} from the index?`)) return;
  try {
    await request(`api/documents/${encodeURIComponent(hit.id)}`, { method: "DELETE" });
    item.remove();
  } catch (error) {
    showProblem(item, error, "document");
  }
}
