"""How a report looks: two schemes of colours, each readable (WCAG AA), and the rules that use them.

Every colour is a variable of a scheme, so that what stands on what can be checked: PAIRS says it.
"""

from __future__ import annotations

LIGHT = {
    "page": "#ffffff",
    "panel": "#f3f5f8",
    "text": "#1b2430",
    "muted": "#51606f",
    "line": "#76828f",
    "good": "#0b6b4b",
    "idle": "#5b6b7c",
    "bad": "#b3261e",
    "warn": "#8a5200",
    "link": "#0a58a6",
}
DARK = {
    "page": "#12171e",
    "panel": "#1c242e",
    "text": "#e8edf3",
    "muted": "#a9b6c4",
    "line": "#7d8b99",
    "good": "#4fc79a",
    "idle": "#8fa1b3",
    "bad": "#ff8b80",
    "warn": "#f0b45a",
    "link": "#85bdff",
}
# (what is seen, on what, the contrast it needs): 4.5 for text, 3 for bars, lines and borders that mean
# something.
PAIRS = [
    (ink, ground, 4.5)
    for ink in ("text", "muted", "good", "bad", "warn", "link")
    for ground in ("page", "panel")
] + [(mark, ground, 3.0) for mark in ("idle", "line") for ground in ("page", "panel")]

RULES = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0 } .muted, figcaption { color: var(--muted) }
.good { color: var(--good) } .bad { color: var(--bad) } .warn { color: var(--warn) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .5rem;
  margin: 1rem 0; padding: 0 }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .6rem .8rem }
.tiles dt { color: var(--muted); font-size: .85rem } .tiles dd { margin: 0; font-size: 1.25rem }
.said { border-left: .3rem solid var(--bad); background: var(--panel); padding: .6rem .8rem; margin: 1rem 0 }
.scroll { overflow-x: auto }
.scroll:focus { outline: 2px solid var(--link) }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3rem .6rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--panel) }
thead th { color: var(--muted); font-weight: 600; border-bottom-color: var(--line) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td, th { overflow-wrap: normal } td code { overflow-wrap: anywhere }
.bars th { white-space: nowrap } .bars td:last-child { width: 35%; min-width: 5rem; padding-top: .65rem }
.reasons td { min-width: 5.5rem } .reasons td:nth-child(4), .reasons td:nth-child(5) { min-width: 11rem }
.of { padding-left: 1.2rem; font-weight: 400 } th { font-weight: 600 }
code { font: .92em ui-monospace, monospace }
.history td, .history th, .batches td, .batches th, .reasons th { white-space: nowrap }
figure { margin: 1rem 0 } figure svg { background: var(--panel); border-radius: .5rem }
svg { display: block } .fill-good { fill: var(--good) } .fill-idle { fill: var(--idle) }
.fill-bad { fill: var(--bad) } .fill-warn { fill: var(--warn) }
.axis { display: flex; justify-content: space-between; font-size: .85rem; color: var(--muted) }
footer { margin-top: 2rem; color: var(--muted); font-size: .85rem }
@media print { body { max-width: none } }
"""


def sheet() -> str:
    """The whole of the CSS."""
    schemes = [" ".join(f"--{name}: {colour};" for name, colour in one.items()) for one in (LIGHT, DARK)]
    return (
        f":root {{ color-scheme: light dark; {schemes[0]} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {schemes[1]} }} }}{RULES}"
    )
