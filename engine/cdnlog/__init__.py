"""`pulsegate ingest-log`: a CDN's access log becomes backend signals.

    tail ── lines ──▶ signals.Parser ──▶ batch ──▶ post ── acknowledged ──▶ checkpoint
                        │  w3c, jsonlines: what a line says of a request   │
                        │  identity: who and what the request was for      │
                        └────────── bad lines ──▶ kept aside ◀── refused ──┘

`ingest` moves the lines along, `command` builds it all from `options`. `docs/ingest-log.md` is the user's view.
"""
