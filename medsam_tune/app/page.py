"""The page: what is on it, and what happens when something of it is touched."""

from __future__ import annotations

import html
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.app.models import Models
from medsam_tune.app.opened_case import OpenedCase, open_case
from medsam_tune.app.pictures import TUNED, UNTUNED, data_url, draw_slice
from medsam_tune.app.slice_view import EMPTY, drawn, pixel, slice_view
from medsam_tune.app.training_pairs import save_pairs
from medsam_tune.errors import MedsamTuneError

if TYPE_CHECKING:
    import gradio
    from PIL.Image import Image

    from medsam_tune.inference.slice_prompts import SliceAnswer

_BOX, _OBJECT, _NOT, _PAINT, _ERASE = "box", "object", "not object", "paint", "erase"
_TOOLS = {"Box": _BOX, "Click: object": _OBJECT, "Click: not object": _NOT, "Paint": _PAINT, "Erase": _ERASE}
_DAY_SECONDS = 24 * 3600
_WELCOME = "Open an image or a volume"
_HELP = "Drop an image, a volume, or all files of a DICOM series at the left. The wheel scrolls slices."
STYLE = """
footer { display: none !important; }
.gradio-container { max-width: 1500px !important; }
#title h1 { margin: 0; font-size: 1.35rem; } #title p { margin: .1rem 0 0; opacity: .75; }
#status { padding: 0 .2rem; } #status p { margin: 0; }
"""


class Page:
    """Hold what the page asks and where it saves; each browser has a case of its own.

    Args:
        models: What is asked.
        saved: The folder of new training data.
        licence: Of the weights, in a line.
        work: A folder for uploads and downloads that is removed when the page is closed.
    """

    def __init__(self, models: Models, *, saved: Path, licence: str, work: Path) -> None:
        self.models, self.saved, self.licence, self.work = models, saved, licence, work

    def build(self) -> gradio.Blocks:
        """Return the page; nothing on it comes from another machine or reports to one."""
        import gradio as gr

        with gr.Blocks(
            title=f"medsam_tune: {self.models.name}", analytics_enabled=False, delete_cache=(3600, _DAY_SECONDS)
        ) as page:
            case = gr.State(None, time_to_live=_DAY_SECONDS, delete_callback=_close)
            gr.Markdown(self._title(), elem_id="title")
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=290):
                    parts = self._controls()
                with gr.Column(scale=4):
                    with gr.Row(equal_height=False):
                        views = self._views(next(iter(self._tools().values())))
                    parts["status"] = gr.Markdown(_HELP, elem_id="status")
            self._wire(case, parts, views)
        return page

    def _title(self) -> str:
        # A run's folder is called by its time, an export's ``export``: what stands before it says which.
        name = html.escape("/".join(Path(self.models.name).parts[-2:]))
        axis = f"{self.models.data.axis} slices · " if self.models.data.of_volumes else ""
        return f"# medsam_tune · {name}\n{axis}{html.escape(self.licence)}"

    def _tools(self) -> dict[str, str]:
        """Return the tools that do something with this model."""
        drawn_only = {_PAINT, _ERASE}
        return {text: tool for text, tool in _TOOLS.items() if self.models.takes_prompts() or tool in drawn_only}

    def _controls(self) -> dict[str, Any]:
        import gradio as gr

        tools, models = self._tools(), self.models
        first = next(iter(tools.values()))
        found = {
            "files": gr.File(label="Image or volume", file_count="multiple", elem_id="files", height=120),
            "slice": gr.Slider(0, 1, step=1, value=0, label="Slice", interactive=True, visible=False, elem_id="slice"),
            "tool": gr.Radio(list(tools.items()), value=first, label="Draw", elem_id="tool"),
            "radius": gr.Slider(
                1, 40, step=1, value=4, label="Brush, pixels", visible=first in (_PAINT, _ERASE), elem_id="radius"
            ),
            "find": gr.Button(
                "Automatic" if models.finds_alone else "Automatic: find everything",
                variant="primary",
                visible=models.finds_alone or models.finds_candidates(),
                elem_id="find",
            ),
            "all": gr.Button("Automatic: every slice", visible=False, elem_id="all"),
        }
        with gr.Row():
            found |= {"undo": _small("Undo", "undo"), "clear": _small("Clear slice", "clear")}
        with gr.Row():
            found |= {"prepare": _small("Download mask", "download"), "save": _small("Save as data", "save")}
        found["file"] = gr.File(label="Mask", visible=False, interactive=False, elem_id="mask")
        return found

    def _views(self, tool: str) -> list[gradio.HTML]:
        import gradio as gr

        named = "Tuned" if self.models.untuned is not None else "Answer"
        with gr.Column(min_width=300):
            views = [slice_view(named, TUNED, elem_id="tuned", tool=tool, hint=_WELCOME)]
        if self.models.untuned is not None:
            with gr.Column(min_width=300):
                views.append(slice_view("Untuned, same prompt", UNTUNED, elem_id="untuned", tool=tool, hint=_WELCOME))
        return views

    def _wire(self, case: gradio.State, parts: dict[str, Any], views: Sequence[gradio.HTML]) -> None:
        import gradio as gr

        shown, status = [*views, parts["status"]], parts["status"]
        # Gradio's queue closes its stream of answers when none is awaited. An event sent in that moment is answered to nobody,
        # and the page waits for ever. So what is quick, and may follow another action at once, goes around the queue;
        # ``case.lock`` keeps its steps apart.
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        slow = quiet | {"show_progress": "minimal", "queue": True}
        parts["files"].change(
            self._open, [parts["files"], case], [case, parts["slice"], parts["all"], parts["file"], *shown], **quiet
        )
        parts["slice"].input(self._show, [case, parts["slice"]], shown, **quiet)
        parts["tool"].change(self._choose, [parts["tool"]], [parts["radius"], *views], **quiet)

        def on_view(held: OpenedCase | None, position: int, tool: str, radius: float, event: gr.EventData) -> list[Any]:
            sent = {name: getattr(event, name, None) for name in ("trail", "steps")}
            return self._drawn(held, position, tool, radius, sent)

        # Gradio finds the event by this annotation, and could not evaluate it: the package is imported late.
        on_view.__annotations__["event"] = gr.EventData
        asked = [case, parts["slice"], parts["tool"], parts["radius"]]
        for view in views:
            view.select(on_view, asked, [parts["slice"], *shown], **quiet)
        here = [case, parts["slice"]]
        parts["find"].click(self._step(OpenedCase.automatic), here, shown, **slow)
        parts["all"].click(self._everywhere, here, shown, **slow)
        parts["undo"].click(self._step(lambda held, position: held.undo(position)), here, shown, **quiet)
        parts["clear"].click(self._step(OpenedCase.clear), here, shown, **quiet)
        parts["prepare"].click(self._write, [case], [parts["file"], status], **quiet)
        parts["save"].click(self._save, [case], [status], **quiet)

    def _open(self, files: list[str] | None, before: OpenedCase | None) -> list[Any]:
        import gradio as gr

        _close(before)
        empty = [None, gr.update(visible=False, value=0), gr.update(visible=False), gr.update(visible=False)]
        if not files:
            return [*empty, *self._blank(), _HELP]
        try:
            case = open_case(gathered([Path(file) for file in files], self.work), self.models)
        except (MedsamTuneError, ValueError, MemoryError) as error:
            return [*empty, *self._blank(), _said(error, self.work)]
        count, first = len(case.slices), len(case.slices) // 2
        several = case.slices.header.is_volume and count > 1
        slider = gr.update(visible=several, maximum=max(1, count - 1), value=first)
        everywhere = gr.update(visible=several and self.models.finds_alone)
        differences = " ".join(f"Warning: {each}." for each in case.differences())
        *views, status = self._show(case, first)
        return [case, slider, everywhere, empty[3], *views, f"{status} {differences}".strip()]

    def _show(self, case: OpenedCase | None, position: int) -> list[Any]:
        """Return what the views show of a slice, and a line about it."""
        if case is None:
            return [*self._blank(), ""]
        with case.lock:
            state, levels, spacing = case.state(position), case.slices.levels(position), case.slices.spacing_mm()
        several = len(case.slices) > 1
        score = "corrected by hand" if state.corrected else _score(state.answer)
        picture = draw_slice(levels, spacing, mask=state.mask, prompts=state.prompts, candidates=state.candidates)
        views = [_shown(picture, score, scrolls=several)]
        if self.models.untuned is not None:
            mask = None if state.untuned is None else state.untuned.mask
            picture = draw_slice(levels, spacing, mask=mask, colour=UNTUNED, prompts=state.prompts)
            views.append(_shown(picture, _score(state.untuned), scrolls=several))
        return [*views, self._line(case, position)]

    def _line(self, case: OpenedCase, position: int) -> str:
        state, answered = case.state(position), len(case.answered())
        where = f"slice {position} of {len(case.slices)}, " if len(case.slices) > 1 else ""
        if state.candidates is not None:
            return f"{where}{len(state.candidates)} found. Click on those that you want; *Click: not object* takes one away."
        if state.prompts.points and not state.prompts.asks:
            return f"{where}waiting for a click on the object, or a box."
        if self.models.knows_boxes_alone and state.prompts.points and state.prompts.box is None and not state.corrected:
            return f"{where}this model learnt from boxes: it answers a click alone badly. Draw a box first, then click."
        size = "no mask yet" if state.mask is None else f"{int(state.mask.sum()):,} pixels"
        return f"{where}{size}" + (f" · {answered} slices have a mask" if len(case.slices) > 1 and answered else "")

    def _choose(self, tool: str) -> list[Any]:
        import gradio as gr

        n_views = 1 if self.models.untuned is None else 2
        return [gr.update(visible=tool in (_PAINT, _ERASE)), *[gr.update(tool=tool) for _ in range(n_views)]]

    def _drawn(self, case: OpenedCase | None, position: int, tool: str, radius: float, data: dict[str, Any]) -> list[Any]:
        """Do what the tool says with what was drawn; the wheel goes to another slice."""
        import gradio as gr

        if case is None:
            return [gr.skip(), *self._blank(), f"{_WELCOME} first."]
        if data["steps"]:
            turned = min(max(position + (1 if data["steps"] > 0 else -1), 0), len(case.slices) - 1)
            return [turned, *self._show(case, turned)]
        return [gr.skip(), *self._step(lambda held, place: _use(held, place, tool, radius, data))(case, position)]

    def _step(self, work: Callable[[OpenedCase, int], object]) -> Callable[[OpenedCase | None, int], list[Any]]:
        """Return what does one thing to a slice and shows it, or says why it cannot be done."""

        def step(case: OpenedCase | None, position: int) -> list[Any]:
            if case is None:
                return [*self._blank(), f"{_WELCOME} first."]
            try:
                with case.lock:
                    work(case, position)
            except (MedsamTuneError, ValueError) as error:
                return [*self._show(case, position)[:-1], _said(error, self.work)]
            return self._show(case, position)

        return step

    def _everywhere(self, case: OpenedCase | None, position: int) -> list[Any]:
        import gradio as gr

        bar = gr.Progress()
        return self._step(lambda held, _: held.automatic_everywhere(lambda part: bar(part, "Asking about every slice")))(
            case, position
        )

    def _write(self, case: OpenedCase | None) -> list[Any]:
        import gradio as gr

        if case is None:
            return [gr.update(visible=False), f"{_WELCOME} first."]
        try:
            with case.lock:
                path = case.write_mask(Path(tempfile.mkdtemp(dir=self.work)))
        except MedsamTuneError as error:
            return [gr.update(visible=False), _said(error, self.work)]
        return [gr.update(visible=True, value=str(path)), f"{html.escape(path.name)}: the mask on the voxels of the image."]

    def _save(self, case: OpenedCase | None) -> str:
        if case is None:
            return f"{_WELCOME} first."
        try:
            with case.lock:
                saved = save_pairs(case, self.saved)
        except MedsamTuneError as error:
            return _said(error, self.work)
        return f"{len(saved)} pairs of image and mask are in `{self.saved}`. Train on them: `medsam-tune run RECIPE data=DIR`."

    def _blank(self) -> list[Any]:
        import gradio as gr

        n_views = 1 if self.models.untuned is None else 2
        return [gr.update(picture=EMPTY, score="", hint=_WELCOME, scrolls=False) for _ in range(n_views)]


def _use(case: OpenedCase, position: int, tool: str, radius: float, data: dict[str, Any]) -> None:
    size = case.slices.levels(position).shape[:2]
    trail = drawn(data, (size[0], size[1]))
    (x1, y1), (x2, y2) = pixel(trail[0], size), pixel(trail[-1], size)
    if tool == _BOX:
        if (x1, y1) == (x2, y2):
            raise ValueError("that was a click. Drag a box from corner to corner, or choose another tool.")
        case.box(position, (x1, y1, x2, y2))
    elif tool in (_OBJECT, _NOT):
        case.click(position, x2, y2, positive=tool == _OBJECT)
    else:
        case.paint(position, trail, radius_px=radius, adds=tool == _PAINT)


def _small(text: str, elem_id: str) -> gradio.Button:
    import gradio as gr

    return gr.Button(text, size="sm", min_width=100, elem_id=elem_id)


def _shown(picture: Image, score: str, *, scrolls: bool) -> dict[str, Any]:
    import gradio as gr

    ratio = picture.width / picture.height
    found: dict[str, Any] = gr.update(picture=data_url(picture), ratio=ratio, score=score, hint="", scrolls=scrolls)
    return found


def _score(answer: SliceAnswer | None) -> str:
    if answer is None or answer.predicted_iou is None:
        return ""
    return f"predicted IoU {answer.predicted_iou:.2f}"


def gathered(files: Sequence[Path], work: Path) -> list[Path]:
    """Return the files in one folder, ``series``: each is uploaded to a folder of its own, but a series is read as a whole.

    Args:
        files: One is left where it is.
        work: Where the folder is made.
    """
    if len(files) == 1:
        return list(files)
    folder = Path(tempfile.mkdtemp(dir=work)) / "series"
    folder.mkdir()
    found: list[Path] = []
    for number, file in enumerate(files):
        # Files of several folders may have one name, and none may replace another.
        taken = (folder / file.name).exists()
        found.append(Path(shutil.copyfile(file, folder / (f"{number}-{file.name}" if taken else file.name))))
    return found


def _said(error: BaseException, work: Path) -> str:
    """Return an error as a line of the page: the folders of uploads say nothing to who reads it."""
    text = str(error) or type(error).__name__
    for place in (str(work), tempfile.gettempdir()):
        text = text.replace(f"{place}/", "")
    return f"**Not done:** {html.escape(text)}"


def _close(case: OpenedCase | None) -> None:
    if case is not None:
        case.close()
