"""The last nodes of an ONNX graph: low-res masks to the original size that the caller names.

They are written node by node: segment_anything 1.0 traces them, which bakes the aspect ratio of the example into the graph
(``int(prepadded_size[0])`` in ``utils/onnx.py``), so that masks of any other image are wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.geometry import InputRule

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

LOW_RES, MASKS, SIZE = "low_res_masks", "masks", "orig_im_size"


def append_upscaling(model: ModelProto, rule: InputRule) -> None:
    """Add the input ``orig_im_size`` (2,) float, (H, W), and the output ``masks`` (1, M, H, W), in place.

    The same steps as ``geometry.to_original``: up to S, padding cut off, then to the original size; bilinear, logits.

    Args:
        model: Has the output ``low_res_masks`` (1, M, h, w).
        rule: Says S and how an image is fitted into it.
    """
    from onnx import TensorProto, helper

    graph: Any = model.graph
    graph.input.append(helper.make_tensor_value_info(SIZE, TensorProto.FLOAT, [2]))
    graph.output.insert(0, helper.make_tensor_value_info(MASKS, TensorProto.FLOAT, [1, "masks", "height", "width"]))
    constants = {
        "tail_side": np.array([rule.side, rule.side], np.int64),
        "tail_start": np.array([0, 0], np.int64),
        "tail_axes": np.array([2, 3], np.int64),
        "tail_side_double": np.array([rule.side], np.float64),
        "tail_half": np.array([0.5], np.float64),
        "tail_one": np.array([1], np.int64),
        "tail_two": np.array([2], np.int64),
        "tail_zero": np.array([0], np.int64),
    }
    graph.initializer.extend(_constant(name, values) for name, values in constants.items())
    fitted = "tail_side" if rule.resize == "square" else "tail_input_size"
    graph.node.extend(_nodes(fitted))


def _constant(name: str, values: Any) -> TensorProto:  # noqa: ANN401 - an array of any type
    from onnx import numpy_helper

    return numpy_helper.from_array(values, name)


def _nodes(fitted: str) -> list[NodeProto]:
    from onnx import TensorProto, helper

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:  # noqa: ANN401 - attributes of a node
        return helper.make_node(kind, inputs, [output], name=f"tail_node_{output}", **attributes)

    def resize(source: str, sizes: str, output: str) -> NodeProto:
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return node("Resize", [source, "", "", sizes], output, **how)

    return [
        # The first two lengths of every size are those of the masks.
        node("Shape", [LOW_RES], "tail_shape"),
        node("Slice", ["tail_shape", "tail_zero", "tail_two"], "tail_leading"),
        node("Concat", ["tail_leading", "tail_side"], "tail_large_size", axis=0),
        resize(LOW_RES, "tail_large_size", "tail_large"),
        # int(length * S / longest + 0.5), as make_frame; in double, so that halves fall as they do there.
        node("Cast", [SIZE], "tail_size_double", to=TensorProto.DOUBLE),
        node("ReduceMax", ["tail_size_double"], "tail_longest", keepdims=1),
        node("Div", ["tail_side_double", "tail_longest"], "tail_scale"),
        node("Mul", ["tail_size_double", "tail_scale"], "tail_scaled"),
        node("Add", ["tail_scaled", "tail_half"], "tail_rounded"),
        node("Floor", ["tail_rounded"], "tail_floored"),
        node("Cast", ["tail_floored"], "tail_whole", to=TensorProto.INT64),
        node("Max", ["tail_whole", "tail_one"], "tail_input_size"),
        node("Slice", ["tail_large", "tail_start", fitted, "tail_axes"], "tail_cropped"),
        node("Cast", [SIZE], "tail_size", to=TensorProto.INT64),
        node("Concat", ["tail_leading", "tail_size"], "tail_original_size", axis=0),
        resize("tail_cropped", "tail_original_size", MASKS),
    ]
