"""A network as an ONNX file, for programs without torch: images in, logits and all attention maps out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import optional_module
from .models.classifier import ImageClassifier, evaluation_mode

OPSET = 18


class _Outputs(nn.Module):
    """Images (and a query) -> logits and the maps, as a tuple, which is what an ONNX file can hold."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, query: Tensor | None = None) -> tuple[Tensor, ...]:
        output = self.model.compute(images) if query is None else self.model.compute(images, query=query)
        return (output.logits, *output.maps.values())


def export_onnx(
    model: ImageClassifier, path: str | Path, *, image_size: int | None, query: bool = False, half: bool = False
) -> list[str]:
    """Write a network as an ONNX file for any number of images; return its outputs' names.

    The input "images" is float32 (N, 3, H, W) in [0, 1]; the outputs are "logits" (N, classes) and one "map_<level>"
    (N, h, w) for each level. The names of the classes are in the file's metadata, separated by line breaks.

    Args:
        image_size: side of square images in pixels; None takes images of any size from 32x32 up.
        query: add a second input "query" of the same shape, whose global feature scores the images; only for models
            with maps that depend on it.
        half: store kernels and matrices in float16, in half the space. The program that reads the file computes with
            float32; weights that come with ltpa lose nothing, because they are stored so.
    """
    needs = ("onnx", "onnxscript")  # the second is for torch's exporter
    onnx, _ = (optional_module(name, "ONNX files need two more packages", "'ltpa[onnx]'") for name in needs)
    path = Path(path).expanduser()
    if path.suffix != ".onnx":
        raise ValueError(f"the file must end in .onnx, not {path.name!r}")
    if query and not model.uses_global_feature:
        raise ValueError(
            f"no map of {model.name} depends on a query; list_models('*-dp') and ('*-add') name models that do"
        )
    network = _Outputs(model.float().cpu())
    images = torch.rand(2, 3, *((image_size, image_size) if image_size else (40, 48)))
    inputs = (images, torch.rand_like(images)) if query else (images,)
    dimensions: dict[int, Any] = {0: torch.export.Dim("count")}
    if image_size is None:
        dimensions |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with evaluation_mode(network), torch.no_grad():
        levels = list(model.attend(*inputs[:1]).maps)
        outputs = ["logits", *(f"map_{level}" for level in levels)]
        torch.onnx.export(
            network,
            inputs,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images", "query"][: len(inputs)],
            output_names=outputs,
            dynamic_shapes=tuple(dimensions for _ in inputs),
            external_data=False,
            verbose=False,
            optimize=not half,  # which would put batch norm into the kernels, and these lose more in float16
        )
    file = onnx.load(str(path))
    for part in (*file.graph.node, *file.graph.input, *file.graph.output, *file.graph.value_info):
        del part.metadata_props[:]  # where in our source it comes from, with paths of this machine
    _multiply_matrices(file.graph)
    if half:
        _store_half(file.graph)
    onnx.helper.set_model_props(file, {"classes": "\n".join(model.classes or ()), "model": model.name})
    onnx.save(file, str(path))
    return outputs


def _multiply_matrices(graph: Any) -> None:
    """Turn every product of a matrix and a vector into one of two matrices.

    onnxruntime (1.22 and 1.32) gets the product with a vector wrong where it fuses it with a transposition.
    """
    import onnx

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    axis = onnx.helper.make_tensor("last_axis", onnx.TensorProto.INT64, [1], [-1])
    nodes = []
    for node in graph.node:
        if node.op_type != "MatMul" or ranks.get(node.input[1]) != 1:
            nodes.append(node)
            continue
        (left, vector), (product,) = node.input, node.output
        column, columns = f"{product}_column", f"{product}_columns"
        nodes.append(onnx.helper.make_node("Unsqueeze", [vector, axis.name], [column]))
        nodes.append(onnx.helper.make_node("MatMul", [left, column], [columns]))
        nodes.append(onnx.helper.make_node("Squeeze", [columns, axis.name], [product]))
    if len(nodes) > len(graph.node):
        graph.initializer.append(axis)
    del graph.node[:]
    graph.node.extend(nodes)


def _store_half(graph: Any) -> None:
    """Store the float32 matrices and kernels of an ONNX graph in float16, each with a node that casts it back."""
    import onnx

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and sum(size > 1 for size in tensor.dims) > 1:
            name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
