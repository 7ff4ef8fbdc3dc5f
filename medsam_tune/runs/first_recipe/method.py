"""Which method a folder gets: three questions, each with a stated answer.

1. Is a prompt at hand when the model is used? None: a method that asks for none. A box or a click: a method that is trained so.
2. One kind of object, or several classes? Several classes without a prompt need one mask a class from one decoder pass.
3. A GPU, and enough cases? Only then the image encoder is adapted: its backward pass costs about ten times a decoder's step,
   and on few cases the decoder alone does as well (docs/methods/index.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

from medsam_tune.data.own_data import Prompt

ENOUGH_CASES = 20
"""Patients from which on the encoder is adapted, where there is a GPU."""


@dataclass(frozen=True)
class Means:
    """Hold what decides the method.

    Attributes:
        prompt: What is at hand when the model is used.
        classes: How many kinds of object there are without a prompt.
        patients: How many patients there are.
        gpu: Whether there is a GPU.
    """

    prompt: Prompt
    classes: int
    patients: int
    gpu: bool


@dataclass(frozen=True)
class Method:
    """Hold a bundled recipe whose model is taken, and why.

    Attributes:
        recipe: The bundled recipe.
        told: What is trained, as a sentence.
        why: The rule that chose it.
    """

    recipe: str
    told: str
    why: str


def choose_method(means: Means) -> Method:
    """Return the method for a folder.

    Example:
        >>> choose_method(Means("none", classes=1, patients=20, gpu=False)).recipe
        'autosam_images'
        >>> choose_method(Means("box", classes=1, patients=60, gpu=True)).recipe
        'msa'
    """
    adapts = means.gpu and means.patients >= ENOUGH_CASES
    place = f"{'a GPU' if means.gpu else 'no GPU'}, {means.patients} patients"
    if means.prompt == "none" and means.classes > 1:
        why = f"no prompt, several classes, {place}"
        if adapts:
            return Method("samed", "low-rank updates of the encoder and the mask decoder", why)
        return Method("semantic", "the mask decoder, with one mask a class", why)
    if means.prompt == "none":
        return Method(
            "autosam_images", "a small generator that writes the prompt from the image", f"no prompt, one class, {place}"
        )
    if means.prompt == "click":
        return Method("interactive", "decoder and prompt encoder, over rounds of clicks", f"clicks at use, {place}")
    if adapts:
        return Method("msa", "adapters in encoder and decoder (Medical SAM Adapter)", f"a box at use, {place}")
    return Method("decoder", "the mask decoder", f"a box at use, {place}")
