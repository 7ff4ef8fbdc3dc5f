"""What each family of weights expects of an image: side, resampling and normalisation, in numbers.

Checked against the authors' own pre-processing of 14 images of seven data sets (OpenCV 5.0, Pillow 13.0, scikit-image 0.26):
- SAM and MobileSAM, ``ResizeLongestSide`` of segment-anything @ dca509f: equal to Pillow's on 8 bits where an image is
  enlarged; where one shrinks, 0.6 % of the values are a grey level or two off.
- LiteMedSAM, ``CVPR24_LiteMedSAM_infer.py`` of MedSAM @ 0c044e9: equal to ``cv2.resize(..., INTER_AREA)`` on 8 bits but for
  one value in 100,000. Masks of 22 images under the same box: IoU 1.000 with the authors' inference (0.957 on average and
  0.749 at worst with the antialiased bilinear resize of before); 0.990 where each side moves the box by its own rule.
- MedSAM, ``MedSAM_Inference.py`` of MedSAM @ d71e8a1: its cubic spline, cut to whole grey levels there, is 0.3 to 0.9 grey
  levels off on average; half a level of that is the cut.

Differs from the authors' code:
- LiteMedSAM's enlarges by ``INTER_AREA`` too, which repeats pixels; here bilinearly. The untuned network's Dice on hippocampus
  slices, which are enlarged 5 to 7 times, is 0.820 with bilinear and 0.638 with area resampling.
- An image that is not on whole grey levels, such as a windowed CT, is not rounded before it is resampled.
"""

from __future__ import annotations

from dataclasses import replace

from medsam_tune.geometry import InputRule, Resampling

_PILLOW = Resampling("bilinear", eight_bit=True)
_BICUBIC = Resampling("bicubic")

SAM = InputRule(1024, shrink=_PILLOW, enlarge=_PILLOW, grid=64)
MEDSAM = InputRule(
    1024, "square", shrink=_BICUBIC, enlarge=_BICUBIC, min_max=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), grid=64
)
LITE_MEDSAM = replace(
    MEDSAM, side=256, resize="longest_side", shrink=Resampling("area", eight_bit=True), enlarge=Resampling("bilinear")
)

INPUT_RULES = {
    "lite_medsam": LITE_MEDSAM,
    "medsam_vit_b": MEDSAM,
    "mobile_sam": SAM,
    "sam_vit_b": SAM,
    "sam_vit_l": SAM,
    "sam_vit_h": SAM,
}
"""Rules by the name of the weights."""
