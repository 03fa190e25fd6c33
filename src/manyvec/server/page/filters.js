// Filters: one control per column, or two for a range, depending on its type. An empty control does not filter.

import { $, element } from "./dom.js";

// What a control's operator is called in the URL.
const NAMES = { "==": "is", contains: "has", ">=": "from", "<=": "to" };

// Make the controls. `facets` holds the most frequent values of some columns; `onChange` is called after each change.
export function showFilters(columns, facets, onChange) {
  $("filters").replaceChildren(...Object.entries(columns).map(([name, type]) => filterOf(name, type, facets[name], onChange)));
  $("filter-panel").hidden = !$("filters").children.length;
  // On a narrow screen the filters are folded, so that the first hit shows.
  $("filter-panel").open = innerWidth > 544;
}

function filterOf(name, type, facet, onChange) {
  const scalar = type.replace(/^list\[|\]$/g, "");
  const isList = type !== scalar;
  const isWhole = scalar === "str" && facet?.n_values > 0 && facet.values.length === facet.n_values;
  const counts = new Map((facet?.values || []).map(({ value, documents }) => [value, documents]));
  const option = (value) =>
    new Option(value ? `${value}${counts.has(value) ? ` (${counts.get(value).toLocaleString()})` : ""}` : "any", value);
  const control = (label, op, read) => {
    const choices = scalar === "bool" ? ["", "true", "false"] : isWhole ? ["", ...counts.keys()] : null;
    const made = choices
      ? element("select", {}, ...choices.map(option))
      : element("input", {
          type: { int: "number", float: "number", datetime: "date" }[scalar] || "text",
          step: scalar === "float" ? "any" : "",
          placeholder: label,
        });
    made.ariaLabel = `${name}: ${label}`;
    Object.assign(made.dataset, { column: name, op });
    made.condition = () => ({ column: name, op, value: read(made.value) });
    made.addEventListener("change", onChange);
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
  if (scalar === "str" && !isWhole) {
    const suggestions = element("datalist", { id: `suggestions-${name}` });
    suggestions.append(...[...counts.keys()].map((value) => new Option(`${counts.get(value)} documents`, value)));
    controls[0].setAttribute("list", suggestions.id);
    controls.push(suggestions);
  }
  return element("fieldset", { className: "filter" }, element("legend", { textContent: name }), ...controls);
}

export function controlsOf(column) {
  return [...$("filters").querySelectorAll("[data-column]")].filter((c) => !column || c.dataset.column === column);
}

// Set the controls of a column to a value; one that a list of choices lacks is added to it.
export function setFilter(control, value) {
  if (control.tagName === "SELECT" && control.dataset.op !== undefined && ![...control.options].some((o) => o.value === value))
    control.append(new Option(value, value));
  control.value = value;
}

export function clearFilters() {
  for (const control of controlsOf()) control.value = "";
}

// The conditions of all controls that are set; also marks these controls and counts them.
export function conditions() {
  const set = controlsOf().filter((control) => control.value !== "");
  for (const control of controlsOf()) control.classList.toggle("set", set.includes(control));
  $("n-filters").textContent = set.length ? `(${set.length})` : "";
  $("clear").hidden = !set.length;
  return set.map((control) => control.condition());
}

// Write the filters into the parameters of a URL: `f.year.from=2000`.
export function writeFilters(parameters) {
  for (const control of controlsOf())
    if (control.value !== "") parameters.append(`f.${control.dataset.column}.${NAMES[control.dataset.op]}`, control.value);
}

// Set the filters from the parameters of a URL, and return those that this index does not have.
export function readFilters(parameters) {
  clearFilters();
  const unknown = [];
  for (const [key, value] of parameters) {
    if (!key.startsWith("f.")) continue;
    const column = key.slice(2, key.lastIndexOf("."));
    const control = controlsOf(column).find((c) => key.endsWith(`.${NAMES[c.dataset.op]}`));
    if (control && !(control.type === "select-one" && ["true", "false"].includes(control.options[1]?.value) && !["true", "false"].includes(value)))
      setFilter(control, value);
    // A number field drops what is no number.
    if (!control || control.value !== value) unknown.push(`${column || key} = ${value}`);
  }
  return unknown;
}
