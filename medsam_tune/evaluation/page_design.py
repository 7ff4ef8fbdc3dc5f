"""How the report's page looks and the little that it does: sort a table, enlarge a picture. Nothing comes from elsewhere."""

from functools import reduce

from medsam_tune.evaluation.colours import PROMPT_COLOUR, TRUTH_COLOUR, TUNED_COLOUR, UNTUNED_COLOUR

# The longer name first, which holds the shorter one.
_COLOURS = {
    "TRUTH_COLOUR": TRUTH_COLOUR,
    "UNTUNED_COLOUR": UNTUNED_COLOUR,
    "TUNED_COLOUR": TUNED_COLOUR,
    "PROMPT_COLOUR": PROMPT_COLOUR,
}
_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --muted: #59636e; --line: #d8dee4; --page: #ffffff; --card: #f6f8fa;
        --accent: #0969da; --good: #1a7f37; --bad: #cf222e; --open: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --muted: #9198a1; --line: #30363d; --page: #0d1117; --card: #161b22;
          --accent: #4493f8; --good: #3fb950; --bad: #f85149; --open: #d29922; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.2rem 1.25rem 4rem; background: var(--page); color: var(--text);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .97rem; margin: 1.4rem 0 .25rem; overflow-wrap: anywhere; }
p { margin: .35rem 0; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .6rem 0 0; font-size: .9rem; }
.muted, figcaption { color: var(--muted); font-size: .88rem; }
.prose { white-space: pre-wrap; max-width: 56rem; }
.verdict { font-size: 1.05rem; font-weight: 600; margin: 1rem 0 .6rem; padding: .7rem 1rem; background: var(--card);
           border-left: .3rem solid var(--open); border-radius: .3rem; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 30rem; overflow-y: auto; }
.scroll + .scroll { margin-top: 1.3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem; line-height: 1.3; }
.tall th { position: sticky; top: 0; background: var(--page); }
th, td { padding: .34rem .7rem .34rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { min-width: 7.5rem; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td.ends span { white-space: nowrap; }
td.ends { white-space: normal; }
td:last-child, th:last-child { padding-right: .2rem; }
tr.strong td { font-weight: 650; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--accent); text-decoration: underline; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.facts td:first-child { color: var(--muted); min-width: 8rem; width: 30%; }
.facts td { overflow-wrap: anywhere; }
figure { margin: .6rem 0 1.2rem; }
figure img { display: block; max-width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .7rem; align-items: start; }
.panel { margin: 0; cursor: zoom-in; }
.panel svg { display: block; width: 100%; max-height: 30rem; background: #000; border-radius: .3rem; }
.panel figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.panel:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.panel.large { position: fixed; inset: 0; z-index: 2; margin: 0; padding: 1rem; background: var(--page); cursor: zoom-out;
               display: flex; flex-direction: column; gap: .5rem; }
.panel.large svg { flex: 1; min-height: 0; max-height: none; background: none; }
svg image { image-rendering: auto; }
svg use, svg path { fill: none; stroke-linejoin: round; stroke-linecap: butt; }
.truth { stroke: TRUTH_COLOUR; stroke-width: 2px; }
.tuned { stroke: TUNED_COLOUR; stroke-width: 2px; stroke-dasharray: 7 3; }
.untuned { stroke: UNTUNED_COLOUR; stroke-width: 1.6px; stroke-dasharray: 2 3; }
.prompt { stroke: PROMPT_COLOUR; stroke-width: 1.3px; }
.click { stroke-width: 8px; stroke-linecap: round; }
.click.off { stroke-linecap: square; stroke: #fff; }
.rim { stroke: #000; stroke-opacity: .5; stroke-width: 3.2px; stroke-dasharray: none; }
.rim.untuned { stroke-width: 2.6px; }
.rim.click { stroke-width: 11px; stroke-opacity: .8; }
.thin { stroke-width: 1px; }
.rim.thin { stroke-width: 1.6px; stroke-opacity: .35; }
.large .thin { stroke-width: 1.3px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; color: var(--muted); font-size: .88rem; }
.legend label { display: inline-flex; align-items: center; gap: .4rem; }
.legend svg { width: 1.8rem; height: .7rem; }
body:has(#show-truth:not(:checked)) .panel .truth, body:has(#show-tuned:not(:checked)) .panel .tuned,
body:has(#show-untuned:not(:checked)) .panel .untuned, body:has(#show-prompt:not(:checked)) .panel .prompt,
body:has(#show-prompt:not(:checked)) .panel .click { display: none; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; margin: .8rem 0; }
svg.plot { display: block; width: 100%; max-width: 26rem; font: 11px system-ui, sans-serif; }
svg.plot text { fill: var(--muted); }
svg.plot text.title { font-size: 12.5px; font-weight: 600; fill: var(--text); }
svg.plot text.mark { font-weight: 600; fill: var(--text); }
svg.plot .grid { stroke: var(--line); stroke-width: 1; }
svg.plot .rule { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 4 3; }
svg.plot .whisker { stroke: var(--muted); stroke-width: 1.5; }
svg.plot .dot { fill: var(--accent); fill-opacity: .8; stroke: var(--page); }
svg.plot .dot.other { fill: UNTUNED_COLOUR; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
details.case { border-top: 1px solid var(--line); margin: 0; padding: .35rem 0; }
details > .panels { margin: .6rem 0 1rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; margin: .5rem 0;
      overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
@media (max-width: 56rem) { table { font-size: .84rem; } th { font-size: .78rem; } th, td { padding-right: .45rem; }
                            td:first-child { min-width: 5rem; } }
@media print { details { display: block; } .tall { max-height: none; } }
"""
STYLE = reduce(lambda text, name: text.replace(name, _COLOURS[name]), _COLOURS, _STYLE)

SCRIPT = """
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const shown = cell => cell.dataset.value ?? cell.textContent.trim();
    const key = row => shown(row.cells[column]) === "\u2013" ? "" : shown(row.cells[column]);
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b), "en", {numeric: true}) : a - b);
    const rows = [...body.rows].sort((a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === "" || second === "") return (first === "") - (second === "");
      return (up ? 1 : -1) * compare(first, second);
    });
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
});
const shrink = () => document.querySelectorAll(".panel.large").forEach(panel => panel.classList.remove("large"));
document.querySelectorAll(".panel").forEach(panel => {
  const turn = () => { const large = panel.classList.contains("large"); shrink(); if (!large) panel.classList.add("large"); };
  panel.addEventListener("click", turn);
  panel.addEventListener("keydown", event => { if (event.key === "Enter") turn(); });
});
document.addEventListener("keydown", event => { if (event.key === "Escape") shrink(); });
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", open);
open();
"""
