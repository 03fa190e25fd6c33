// Search an index that `manyvec serve` offers, page by page, in Node.js 18 or later.
//
//     manyvec serve --index ./papers
//     node examples/clients/search.mjs 'how did revenue grow'
//
// Set MANYVEC_TOKEN if the server needs a token. A page of another site cannot call the server: put this behind your own.

const { MANYVEC_URL = "http://127.0.0.1:8765", MANYVEC_TOKEN = "" } = process.env;

async function* search(query, options = {}) {
  for (let offset = 0; offset !== null; ) {
    const response = await fetch(`${MANYVEC_URL}/api/search`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${MANYVEC_TOKEN}` },
      body: JSON.stringify({ query, offset, ...options }),
    });
    const page = await response.json();
    if (!response.ok) throw new Error(`${page.code}: ${JSON.stringify(page.detail)}`);
    yield* page.hits;
    offset = page.next_offset;
  }
}

for await (const hit of search(process.argv[2], { k: 5, passage_chars: 300 })) {
  console.log(`${hit.rank}. ${hit.id}  ${hit.similarity?.toFixed(2)}\n   ${hit.passage.text}`);
  if (hit.rank === 5) break;
}
