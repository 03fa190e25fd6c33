"""Draw the pictures of `docs/concepts.md` into `docs/images`, with similarities that `minilm` computes.

python scripts/diagrams.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import manyvec

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
QUERY = "who discovered oxygen"
TEXT = "a chemist found the gas in 1774"
INK, FAINT, ACCENT, SECOND = "#1f2430", "#8a90a0", "#2f5bd8", "#c2570c"
BYTES = {"float16": 256, "int8": 130, "int4": 66, "residual": 36, "binary": 16}
# Of a token vector around each centroid of the picture, in radians and pixels.
SPREAD = 26


def svg(width: int, height: int, parts: Iterable[str], title: str) -> str:
    """Return an SVG file on a white card, which is readable on dark pages too."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="14">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d9dce3"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK, weight: int = 400) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(words)}</text>'


def cell(x: float, y: float, width: float, height: float, strength: float, *, outlined: bool = False) -> str:
    stroke = f'stroke="{INK}" stroke-width="2"' if outlined else 'stroke="#ffffff"'
    fill = f'fill="#f5a400" fill-opacity="{max(0.0, strength):.2f}"'
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4" {fill} {stroke}/>'


def similarities() -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Words of the query, words of the text, and the (n_query_tokens, n_tokens) similarities of their tokens."""
    encoder = manyvec.load_encoder("minilm")
    query, document = encoder.encode_queries([QUERY]), encoder.encode_documents([TEXT])
    shown = [[source[start:end] for start, end in batch.spans] for source, batch in ((QUERY, query), (TEXT, document))]
    return shown[0], shown[1], np.round(query.vectors @ document.vectors.T, 2) + np.float32(0)


def maxsim(rows: list[str], columns: list[str], values: NDArray[np.float32]) -> str:
    left, top, width, height = 120, 70, 86, 40
    parts = [text(left - 12, 30, "query ↓   text →", anchor="end", fill=FAINT)]
    parts += [text(left + width * (j + 0.5), top - 12, name, anchor="middle") for j, name in enumerate(columns)]
    for i, name in enumerate(rows):
        y, best = top + height * i, int(values[i].argmax())
        parts.append(text(left - 12, y + 26, name, anchor="end", weight=600))
        for j in range(len(columns)):
            x = left + width * j
            parts.append(cell(x, y, width, height, float(values[i, j]), outlined=j == best))
            parts.append(text(x + width / 2, y + 25, f"{values[i, j]:.2f}", anchor="middle"))
        parts.append(text(left + width * len(columns) + 16, y + 26, f"{values[i, best]:.2f}", weight=600))
    right, bottom = left + width * len(columns) + 16, top + height * len(rows)
    parts.append(text(right, top - 12, "best", fill=FAINT))
    parts.append(text(right, bottom + 26, f"{values.max(axis=1).sum():.2f}", fill=ACCENT, weight=700))
    parts.append(text(right - 16, bottom + 26, "score: the sum of the best", anchor="end", fill=FAINT))
    return svg(right + 70, bottom + 46, parts, "MaxSim: the best match of every query token, summed")


def lists() -> str:
    # The picture is the same in each run.
    random = np.random.default_rng(7)
    centroids = {"A": (130, 110), "B": (270, 190), "C": (390, 90), "D": (500, 200)}
    near = {"A", "C"}
    parts = []
    for name, (x, y) in centroids.items():
        color = ACCENT if name in near else "#b9bec9"
        for angle, distance in zip(random.uniform(0, 2 * math.pi, 9), random.uniform(10, SPREAD, 9), strict=True):
            parts.append(
                f'<circle cx="{x + distance * math.cos(angle):.0f}" cy="{y + distance * math.sin(angle):.0f}" r="4" '
                f'fill="{color}" fill-opacity="0.55"/>'
            )
        parts.append(f'<circle cx="{x}" cy="{y}" r="{SPREAD + 14}" fill="none" stroke="{color}"/>')
        parts.append(text(x, y + 5, name, anchor="middle", weight=700))
    for x, y, nearest in ((205, 60, "A"), (455, 60, "C")):
        target_x, target_y = centroids[nearest]
        parts.append(f'<line x1="{x}" y1="{y}" x2="{target_x}" y2="{target_y}" stroke="{SECOND}" stroke-width="2"/>')
        parts.append(f'<rect x="{x - 6}" y="{y - 6}" width="12" height="12" fill="{SECOND}"/>')
    parts.append(text(205, 40, "query token", anchor="middle", fill=SECOND))
    parts.append(text(455, 40, "query token", anchor="middle", fill=SECOND))
    parts += [
        text(590, 70, "A: documents 3, 8, 21", fill=ACCENT),
        text(590, 96, "B: documents 5, 8", fill=FAINT),
        text(590, 122, "C: documents 8, 13, 21", fill=ACCENT),
        text(590, 148, "D: documents 1, 5", fill=FAINT),
        text(590, 190, "candidates: 3, 8, 13, 21,", weight=600),
        text(590, 212, "then exact scores"),
    ]
    return svg(800, 260, parts, "Centroid lists: the centroids nearest to the query tokens name the candidates")


def codecs() -> str:
    parts = []
    for i, (name, n_bytes) in enumerate(BYTES.items()):
        y = 24 + 34 * i
        parts.append(text(90, y + 17, name, anchor="end", weight=600))
        parts.append(f'<rect x="104" y="{y}" width="{1.9 * n_bytes:.0f}" height="24" rx="3" fill="{ACCENT}"/>')
        parts.append(text(112 + 1.9 * n_bytes, y + 17, f"{n_bytes} bytes"))
    return svg(700, 204, parts, "Bytes of a token vector of 128 dimensions")


def evidence(rows: list[str], columns: list[str], values: NDArray[np.float32]) -> str:
    best = values.argmax(axis=1)
    x, parts = 30.0, []
    for j, name in enumerate(columns):
        width = 9 * len(name) + 14
        strength = max((float(values[i, j]) for i in range(len(rows)) if best[i] == j), default=0.0)
        parts += [cell(x, 26, width, 30, strength), text(x + width / 2, 46, name, anchor="middle")]
        x += width + 6
    right, x = x, 30.0
    for i, name in enumerate(rows):
        words = f"{name} → {columns[best[i]]} {values[i, best[i]]:.2f}"
        width = 8 * len(words) + 20
        parts.append(f'<rect x="{x:.0f}" y="80" width="{width}" height="30" rx="15" fill="none" stroke="{FAINT}"/>')
        parts.append(text(x + width / 2, 100, words, anchor="middle"))
        x += width + 10
    return svg(round(max(x, right)) + 20, 132, parts, "Evidence: which word of the text each word of the query matched")


def main(folder: Path = FOLDER) -> int:
    rows, columns, values = similarities()
    drawn = {
        "maxsim": maxsim(rows, columns, values),
        "lists": lists(),
        "codecs": codecs(),
        "evidence": evidence(rows, columns, values),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
