"""A network as an ONNX file, for programs without torch: images in, logits and all attention maps out."""

from pathlib import Path

import torch
from torch import Tensor, nn

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


def export_onnx(model: ImageClassifier, path: str | Path, *, image_size: int, query: bool = False) -> list[str]:
    """Write a network as an ONNX file for square images of one size and any number of them; return its outputs' names.

    The input "images" is float32 (N, 3, H, W) in [0, 1]; the outputs are "logits" (N, classes) and one "map_<level>"
    (N, h, w) for each level. The names of the classes are in the file's metadata, separated by line breaks.

    Args:
        image_size: side in pixels.
        query: add a second input "query" of the same shape, whose global feature scores the images; only for models
            with maps that depend on it.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ImportError("ONNX files need two more packages: pip install 'ltpa[onnx]'") from error
    path = Path(path).expanduser()
    if path.suffix != ".onnx":
        raise ValueError(f"the file must end in .onnx, not {path.name!r}")
    if query and not model.uses_global_feature:
        raise ValueError(
            f"no map of {model.name} depends on a query; list_models('*-dp') and ('*-add') name models that do"
        )
    network = _Outputs(model.float().cpu())
    images = torch.rand(2, 3, image_size, image_size)
    inputs = (images, torch.rand_like(images)) if query else (images,)
    count = torch.export.Dim("count")
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
            dynamic_shapes=tuple({0: count} for _ in inputs),
            external_data=False,
            verbose=False,
        )
    file = onnx.load(str(path))
    onnx.helper.set_model_props(file, {"classes": "\n".join(model.classes or ()), "model": model.name})
    onnx.save(file, str(path))
    return outputs
