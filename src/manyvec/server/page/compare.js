// What BM25, the pooled vector and late interaction each find for a query, side by side.

import { $, element } from "./dom.js";

const METHODS = { late: "Late interaction", pooled: "Pooled vector", bm25: "BM25" };

export function showComparison({ k, standings, missed }) {
  const columns = Object.entries(METHODS).map(([method, name]) => {
    const found = standings
      .filter(({ ranks }) => ranks[method] !== null && ranks[method] <= k)
      .sort((a, b) => a.ranks[method] - b.ranks[method]);
    const list = element("ol", {}, ...found.map((standing) => standingOf(standing, method, k)));
    const summary = `${found.length} of the ${standings.length} documents below; misses ${missed[method].length}`;
    return element("section", {}, element("h2", { textContent: name }), element("p", { className: "faint small", textContent: summary }), list);
  });
  $("comparison").replaceChildren(...columns);
  $("comparison").hidden = false;
}

function standingOf({ id, text, ranks }, method, k) {
  const others = Object.keys(METHODS).filter((other) => other !== method);
  const elsewhere = others.map((other) => {
    const rank = ranks[other];
    const where = rank === null ? "not in 100" : `rank ${rank}`;
    return element("span", { className: rank !== null && rank <= k ? "" : "alarm", textContent: `${METHODS[other]}: ${where}` });
  });
  return element(
    "li",
    { className: "card medium", value: ranks[method] },
    element("b", { className: "id", textContent: id }),
    element("p", { className: "text", dir: "auto", textContent: text }),
    element("p", { className: "elsewhere faint small" }, ...elsewhere),
  );
}
