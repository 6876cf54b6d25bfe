"""The live page: `/load` beside Locust's own tables, and a tab "Achieved" among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from flask import Response, request

from loadtest.locust_report import COLUMNS, STYLE

Told = Callable[[], dict[str, Any]]
_TAB = "achieved"


def add(web_ui: Any, told: Told) -> None:
    """Adds page and tab to Locust's web server; `told` makes the document of loadtest/locust_report.py."""

    @web_ui.app.route("/load")  # type: ignore[untyped-decorator]
    @web_ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def page() -> Response:
        return Response(PAGE, mimetype="text/html")

    @web_ui.app.route("/load/data")  # type: ignore[untyped-decorator]
    @web_ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def data() -> Response:
        return Response(orjson.dumps(told()), mimetype="application/json")

    @web_ui.app.after_request  # type: ignore[untyped-decorator]
    def with_phases(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            stats = {**(response.json or {}), "extended_stats": [{"key": _TAB, "data": told()["rows"]}]}
            response.set_data(orjson.dumps(stats))
        return response

    web_ui.template_args.update(
        extended_tabs=[{"title": "Achieved", "key": _TAB}],
        extended_tables=[{"key": _TAB, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}],
        extended_csv_files=[],
    )


PAGE = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Pulsegate: load</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 0; background: #fbfbfa }}{STYLE}
.key i {{ display: inline-block; width: 14px; height: 3px; vertical-align: middle; margin: 0 6px 0 16px }}</style></head>
<body class="pulsegate"><h1>Load: <span id="shape"></span></h1>
<p class="big"><span>phase<b id="phase">–</b></span><span>players<b id="players">–</b></span><span>target<b id="target">–</b></span>
<span>achieved<b id="achieved">–</b></span></p>
<p class="key">heartbeats a second<i style="background:#a8b4bd"></i>target: due, as promised to the players
<i style="background:#2f6f9f"></i>achieved: answered</p>
<svg id="plot" viewBox="0 0 1000 240"></svg>
<h2>Heartbeats, phase by phase</h2><table id="rows"></table>
<h2>Thresholds so far</h2><table id="verdicts"></table>
<p>Every request, charts and failures: <a href="./">Locust's own page</a>.</p>
<script>
const columns = {orjson.dumps(COLUMNS).decode()}
const $ = (id) => document.getElementById(id)
const shown = (v) => v === null ? "–" : typeof v === "number" ? v.toLocaleString("en", {{maximumSignificantDigits: v < 10 ? 3 : 12}}) : v
const make = (tag, cells, kind, name) => {{
  const row = document.createElement("tr")
  row.className = name || ""
  for (const cell of cells) row.appendChild(document.createElement(kind)).textContent = shown(cell)
  return row
}}
const curve = (points, n, top, last, color) => {{
  const at = points.map((p) => `${{60 + 930 * p[0] / last}},${{215 - 200 * p[n] / top}}`).join(" ")
  return `<polyline fill="none" stroke="${{color}}" stroke-width="2.5" points="${{at}}"/>`
}}
const draw = (points) => {{
  if (!points.length) return
  const top = 1.05 * Math.max(1, ...points.map((p) => Math.max(p[1], p[2]))), last = Math.max(1, points.at(-1)[0])
  let out = ""
  for (let n = 0; n <= 4; n++) {{
    const y = 215 - 50 * n
    out += `<line x1="60" x2="990" y1="${{y}}" y2="${{y}}" stroke="#ddd"/>`
    out += `<text x="52" y="${{y + 4}}" text-anchor="end" font-size="12">${{shown(Math.round(top * n / 4))}}</text>`
  }}
  out += `<text x="990" y="234" text-anchor="end" font-size="12">${{last}} s</text><text x="60" y="234" font-size="12">0 s</text>`
  $("plot").innerHTML = out + curve(points, 1, top, last, "#a8b4bd") + curve(points, 2, top, last, "#2f6f9f")
}}
const ask = async () => {{
  try {{
    const told = await (await fetch("load/data")).json()
    for (const id of ["shape", "phase"]) $(id).textContent = told[id] || "–"
    $("players").textContent = shown(told.players)
    for (const id of ["target", "achieved"]) $(id).textContent = told[id].toFixed(1) + "/s"
    draw(told.series)
    $("rows").replaceChildren(make("tr", Object.values(columns), "th"),
      ...told.rows.map((r) => make("tr", Object.keys(columns).map((key) => r[key]), "td")))
    $("verdicts").replaceChildren(make("tr", ["of", "got", "wanted", ""], "th"), ...told.verdicts.map((v) =>
      make("tr", [v.name, v.got, v.wanted, v.ok === null ? "–" : v.ok ? "ok" : "MISSED"], "td", v.ok === false ? "missed" : "ok")))
  }} catch (error) {{
    $("phase").textContent = "ended"
  }}
}}
ask()
setInterval(ask, 1000)
</script></body></html>
"""
