"""The part of the page that shows a slice and tells where somebody drew on it, in fractions of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio

# A transparent dot, until there is a picture.
EMPTY = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_TEMPLATE = """
<figure class="slice">
  <figcaption><span class="dot" style="background:${colour}"></span>${caption}<span class="score">${score}</span></figcaption>
  <div class="pane">
    <div class="sheet" style="aspect-ratio:${ratio};width:min(100%, calc(76vh * ${ratio}))">
      <img src="${picture}" draggable="false" alt="${caption}">
      <svg viewBox="0 0 1 1" preserveAspectRatio="none"><polyline points=""></polyline></svg>
    </div>
    <p class="hint">${hint}</p>
  </div>
</figure>
"""
_STYLE = """
.slice { margin: 0; }
.slice figcaption { display: flex; align-items: center; gap: .5em; font-weight: 600; padding: .2em 0 .5em; }
.slice .dot { width: .8em; height: .8em; border-radius: 50%; }
.slice .score { margin-left: auto; font-weight: 400; font-variant-numeric: tabular-nums; opacity: .8; }
.slice .pane { position: relative; background: #0b0d10; border-radius: 8px; overflow: hidden; min-height: 320px; display: flex;
  align-items: center; justify-content: center; touch-action: none; user-select: none; }
.slice .sheet { position: relative; }
.slice img { display: block; width: 100%; height: 100%; cursor: crosshair; }
.slice img[src^="data:image/gif"] { display: none; }
.slice svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.slice polyline { fill: none; stroke: #009E73; stroke-width: 3; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.slice .hint { position: absolute; margin: 0; padding: 0 2em; color: #c8ced6; text-align: center; pointer-events: none; }
"""
# Listeners stand on the element itself: what is in it is made anew with every picture.
_SCRIPT = """
const find = (what) => element.querySelector(what);
const near = (value) => Math.min(1, Math.max(0, value));
let trail = null, rested = 0;
const place = (event) => {
  const box = find('img').getBoundingClientRect();
  return [near((event.clientX - box.left) / box.width), near((event.clientY - box.top) / box.height)];
};
const outline = () => {
  const [[x1, y1], [x2, y2]] = [trail[0], trail[trail.length - 1]];
  return props.tool === 'box' ? [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]] : trail;
};
const show = (points) => find('polyline').setAttribute('points', points.map((point) => point.join(',')).join(' '));
element.addEventListener('pointerdown', (event) => {
  if (event.target !== find('img') || event.button !== 0) return;
  event.preventDefault();
  element.setPointerCapture(event.pointerId);
  trail = [place(event)];
});
element.addEventListener('pointermove', (event) => {
  if (!trail) return;
  trail.push(place(event));
  show(outline());
});
element.addEventListener('pointerup', (event) => {
  if (!trail) return;
  trail.push(place(event));
  show([]);
  trigger('select', { trail: trail });
  trail = null;
});
element.addEventListener('pointercancel', () => { trail = null; show([]); });
element.addEventListener('wheel', (event) => {
  if (!find('img').src.startsWith('data:image/png') || !props.scrolls) return;
  event.preventDefault();
  if (event.timeStamp - rested < 60 || !event.deltaY) return;
  rested = event.timeStamp;
  trigger('select', { steps: Math.sign(event.deltaY) });
}, { passive: false });
"""


def slice_view(caption: str, colour: tuple[int, int, int], *, elem_id: str, tool: str, hint: str = "") -> gradio.HTML:
    """Return the view: its property ``picture`` is shown, ``tool`` says what a drag draws, drawing is a ``select`` event."""
    import gradio

    return gradio.HTML(
        html_template=_TEMPLATE,
        css_template=_STYLE,
        js_on_load=_SCRIPT,
        elem_id=elem_id,
        min_width=300,
        picture=EMPTY,
        ratio=1.0,
        caption=caption,
        colour=f"rgb{colour}",
        score="",
        hint=hint,
        tool=tool,
        scrolls=False,
    )


def drawn(data: Mapping[str, Any], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Return where somebody drew as (x, y) in pixels of a slice of ``size`` (H, W): whole numbers and a half are their middles.

    Raises:
        ValueError: If a browser sent something else.

    Examples:
        >>> drawn({"trail": [[0, 0], [0.5, 1]]}, (10, 20))
        [(0.0, 0.0), (10.0, 10.0)]
    """
    trail = data.get("trail")
    given = trail if isinstance(trail, list) and len(trail) <= _MOST_PLACES else []
    places = [(float(x) * size[1], float(y) * size[0]) for x, y in given]
    if not places or not all(0 <= x <= size[1] and 0 <= y <= size[0] for x, y in places):
        raise ValueError("what was drawn does not lie on the picture. Draw it again.")
    return places


def pixel(place: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """Return the pixel (column, row) at a place, of a slice of ``size`` (H, W); the far border belongs to the last one."""
    return float(min(int(place[0]), size[1] - 1)), float(min(int(place[1]), size[0] - 1))


_MOST_PLACES = 100_000
