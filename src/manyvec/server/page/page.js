// The page's state is its URL: query, number of hits, weight of BM25, view and filters.

import { showComparison } from "./compare.js";
import { $, element, hideTip, milliseconds, post, requestJson } from "./dom.js";
import { clearFilters, conditions, controlsOf, readFilters, setFilter, showFilters, writeFilters } from "./filters.js";
import { hitOf } from "./hits.js";
import { forgetPages } from "./images.js";

const STAGES = ["encode", "candidates", "fetch", "score", "evidence"];
// Controls that are parameters of the URL under these names, if they differ from the default.
const PARAMETERS = { k: "k", w: "weight", view: "view" };
let pendingSearch = null;
let scheduled = null;
let isWritable = false;
// The filter columns that the controls are for, as JSON.
let columns = "";

function showStatus(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("alarm", failed);
}

async function start() {
  const [info, overview] = await Promise.all([requestJson("api/info"), requestJson("api/overview")]);
  $("access").hidden = true;
  document.title = `${info.name} · manyvec`;
  $("about").textContent =
    `${info.name}: ${info.documents.toLocaleString()} documents, ` +
    `${info.tokens.toLocaleString()} token vectors of ${info.model}`;
  $("weight").options[0].textContent = `usual (${info.lexical_weight})`;
  columns = JSON.stringify(info.filter_columns);
  showFilters(info.filter_columns, overview.facets, searchOnce);
  showSamples(overview.samples);
  isWritable = info.is_writable;
  $("writing").hidden = !isWritable;
  await restore();
  if (!info.documents) showStatus("The index is empty.");
}

function showSamples(samples) {
  const buttons = samples.map((text) =>
    element("button", { type: "button", className: "quiet card medium", textContent: text, onclick: () => ask(text) }),
  );
  $("samples").replaceChildren(...(samples.length ? ["Try ", ...buttons] : []));
}

function ask(query) {
  $("query").value = query;
  search();
}

// The URL of the controls, and the controls of the URL

function writeUrl() {
  const parameters = new URLSearchParams();
  if ($("query").value.trim()) parameters.set("q", $("query").value.trim());
  for (const [name, id] of Object.entries(PARAMETERS)) {
    const standard = [...$(id).options].find((option) => option.defaultSelected);
    if ($(id).value !== standard.value) parameters.set(name, $(id).value);
  }
  writeFilters(parameters);
  return parameters.size ? `?${parameters}` : location.pathname;
}

async function restore() {
  const parameters = new URLSearchParams(location.search);
  $("query").value = parameters.get("q") || "";
  for (const [name, id] of Object.entries(PARAMETERS)) {
    const options = [...$(id).options];
    const chosen = options.find((option) => option.value === parameters.get(name)) || options.find((o) => o.defaultSelected);
    $(id).value = chosen.value;
  }
  const unknown = readFilters(parameters);
  $("note").hidden = !unknown.length;
  $("note").textContent =
    `This link has filters that this index does not have now, which are left out: ${unknown.join(", ").slice(0, 300)}`;
  await search({ isRestored: true });
}

// The Enter key in a filter both changes it and submits the form: that is one search.
function searchOnce() {
  clearTimeout(scheduled);
  scheduled = setTimeout(search);
}

async function search({ isRestored = false } = {}) {
  const query = $("query").value.trim();
  const filter = conditions();
  hideTip();
  pendingSearch?.abort();
  if (!isRestored) $("note").hidden = true;
  $("samples").hidden = Boolean(query) || !$("samples").children.length;
  if (!isRestored && query) {
    const url = writeUrl();
    if (url !== location.search) history.pushState(null, "", url);
  }
  if (!query) {
    show(null);
    return;
  }
  pendingSearch = new AbortController();
  showStatus("Searching …");
  $("hits").setAttribute("aria-busy", "true");
  const isComparison = $("view").value === "compare";
  const weight = $("weight").value;
  const body = { query, k: Number($("k").value), filter, ...(weight && !isComparison && { lexical_weight: Number(weight) }) };
  try {
    const response = await post(isComparison ? "api/compare" : "api/search", body, pendingSearch.signal);
    show(response, isComparison, filter.length > 0);
  } catch (error) {
    if (error.name === "AbortError") return;
    // A rebuilt index may have other columns: take these, and say which filters are left out.
    if (error.status === 400 && filter.length && (await haveColumnsChanged())) return begin();
    const isOld = $("hits").children.length || !$("comparison").hidden;
    showStatus(`${error.message}${isOld ? " What is shown below belongs to the search before." : ""}`, true);
  }
  $("hits").setAttribute("aria-busy", "false");
}

async function haveColumnsChanged() {
  const info = await requestJson("api/info").catch(() => null);
  return info !== null && JSON.stringify(info.filter_columns) !== columns;
}

// Show a response; null clears the page.
function show(response, isComparison = false, isFiltered = false) {
  forgetPages();
  $("comparison").hidden = true;
  $("timing").hidden = true;
  $("hits").replaceChildren();
  if (!response) {
    showStatus("");
    return;
  }
  const n = isComparison ? response.standings.length : response.hits.length;
  if (!n) {
    showStatus(isFiltered ? "Nothing found. No document that passes the filters matches." : "Nothing found. The index may be empty.");
    if (isFiltered) {
      const look = { type: "button", className: "quiet card medium" };
      $("status").append(" ", element("button", { ...look, textContent: "Clear filters", onclick: clear }));
    }
    return;
  }
  if (isComparison) {
    showStatus(`${n} ${n === 1 ? "document" : "documents"} found by at least one method`);
    showComparison(response);
    return;
  }
  showStatus(`${n} ${n === 1 ? "hit" : "hits"} in ${milliseconds(response.milliseconds.total)}`);
  showTiming(response.milliseconds);
  $("hits").replaceChildren(...response.hits.map((hit) => hitOf(hit, choose, isWritable)));
}

function choose(column, value) {
  for (const control of controlsOf(column)) setFilter(control, String(value));
  search();
}

function clear() {
  clearFilters();
  search();
}

function showTiming({ total, ...taken }) {
  const rest = total - Object.values(taken).reduce((a, b) => a + b, 0);
  const rows = [...STAGES.filter((s) => s in taken).map((s) => [s, taken[s]]), ["other", Math.max(rest, 0)]];
  const bar = element("div", { className: "stages" });
  const legend = element("ul", { className: "legend row" });
  for (const [stage, value] of rows) {
    const part = element("span", { title: `${stage} ${milliseconds(value)}` });
    part.dataset.stage = stage;
    part.style.width = `${(100 * value) / total}%`;
    bar.append(part);
    const swatch = element("i");
    swatch.dataset.stage = stage;
    legend.append(element("li", {}, swatch, `${stage} ${milliseconds(value)}`));
  }
  $("stages").replaceChildren(bar, legend);
  $("timing").querySelector("summary").textContent = "Time of each stage";
  $("timing").hidden = false;
}

async function addDocument() {
  try {
    const metadata = JSON.parse($("new-metadata").value.trim() || "{}");
    const document = { id: $("new-id").value, text: $("new-text").value, metadata };
    const { added } = await post("api/documents", { documents: [document] });
    $("new-status").textContent = added ? `Added ${document.id}.` : `Replaced ${document.id}.`;
    $("new").reset();
  } catch (error) {
    $("new-status").textContent = error instanceof SyntaxError ? `The metadata is not JSON: ${error.message}` : error.message;
  }
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  searchOnce();
});
for (const id of Object.values(PARAMETERS)) $(id).addEventListener("change", searchOnce);
$("clear").addEventListener("click", clear);
$("new").addEventListener("submit", (event) => {
  event.preventDefault();
  addDocument();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  begin();
});
addEventListener("popstate", restore);

function begin() {
  start().catch((error) => showStatus(error.message, true));
}

begin();
