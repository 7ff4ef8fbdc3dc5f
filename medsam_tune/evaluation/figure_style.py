"""How figures of the report look: lines and letters that read on a white and on a nearly black page."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange, apart for every kind of colour vision, at a lightness that reads on both pages.
FIRST_COLOUR, SECOND_COLOUR = "#2F8FD0", "#DB6D1D"
GREY = "#7d8590"


def style(axes: Axes, title: str, x_label: str) -> None:
    """Give axes a title, a grid, and no frame above and to the right."""
    axes.set_title(title, fontsize=10, color=GREY, loc="left")
    axes.set_xlabel(x_label, fontsize=8.5, color=GREY)
    axes.tick_params(colors=GREY, which="both", labelsize=8)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def png_of(figure: Figure, background: str = "none") -> bytes:
    """Return a figure as PNG.

    Args:
        figure: What is drawn; its layout is made here.
        background: Colour of the page and of all axes; none for a transparent one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor(background)
    buffer = BytesIO()
    # ``savefig`` would draw everything twice, the first time for the layout alone.
    canvas: Any = FigureCanvasAgg(figure)  # print_png has no types
    canvas.print_png(buffer)
    return buffer.getvalue()
