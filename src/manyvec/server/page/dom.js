// Helpers that the other scripts share: elements, requests, and the tooltip.
//
// Text of the index is inserted as text nodes, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is `manyvec serve` still running?");
  });
  if (response.ok) return response;
  if (response.status === 401) {
    $("access").hidden = false;
    $("token").focus();
  }
  const { detail } = await response.json().catch(() => ({}));
  const message = Array.isArray(detail) ? detail.map((d) => `${d.loc.slice(1).join(".")}: ${d.msg}`).join("; ") : detail;
  throw Object.assign(new Error(message || `The server responded with status ${response.status}`), { status: response.status });
}

export async function requestJson(path, options) {
  return (await request(path, options)).json();
}

export function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return requestJson(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

export function milliseconds(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}

// Tooltips describe the match under the pointer, with keyboard focus, or that was touched.

export function explainOn(target, lines) {
  const open = () => {
    $("tip").replaceChildren(...lines().map((line) => element("p", { textContent: line })));
    $("tip").hidden = false;
    target.setAttribute("aria-describedby", "tip");
    const at = target.getClientRects()[0];
    const tip = $("tip").getBoundingClientRect();
    const above = at.top - tip.height - 8;
    $("tip").style.top = `${above > 4 ? above : at.bottom + 8}px`;
    $("tip").style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.width - 8))}px`;
  };
  const close = () => {
    $("tip").hidden = true;
    target.removeAttribute("aria-describedby");
  };
  target.addEventListener("mouseenter", open);
  target.addEventListener("focus", open);
  target.addEventListener("click", open);
  target.addEventListener("mouseleave", close);
  target.addEventListener("blur", close);
}

export function hideTip() {
  $("tip").hidden = true;
}

addEventListener("scroll", hideTip, { passive: true, capture: true });
addEventListener("keydown", ({ key }) => key === "Escape" && hideTip());
