"""Parts of the model as ONNX graphs, and a model made of two such graphs that onnxruntime computes.

Shapes: B texts or images, T tokens, D projection width.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPProcessor

from component.configuration import BertCLIPConfig
from component.ground.optional import import_optional
from component.model import BertCLIPModel
from component.processor import image_size

_MOST_BYTES = 2**31 - 2**24  # limit of a protobuf file, less room for the graph
_AXES = {
    "input_ids": {0: "num_texts", 1: "length"},
    "attention_mask": {0: "num_texts", 1: "length"},
    "pixel_values": {0: "num_images"},
    "image": {0: "num_images"},
}


class _Graph(nn.Module):
    def __init__(self, model: BertCLIPModel):
        super().__init__()
        self.model = model


class TextGraph(_Graph):
    """(B, T) tokens of any integer type → (B, D), L2-normalised."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.model.get_text_features(input_ids=input_ids.long(), attention_mask=attention_mask.long())
        return F.normalize(features, dim=-1)


class ImageGraph(_Graph):
    """(B, 3, H, W) pixels → (B, D), L2-normalised."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.model.get_image_features(pixel_values), dim=-1)


class PairGraph(_Graph):
    """Tokens and pixels → logits_per_image, logits_per_text, text_embeds, image_embeds of `BertCLIPModel`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return outputs.logits_per_image, outputs.logits_per_text, outputs.text_embeds, outputs.image_embeds


def require_onnx() -> None:
    """Raise ModuleNotFoundError if one of the packages that ONNX needs is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(package, "ONNX", "export")


def token_inputs(dtype: torch.dtype = torch.long) -> dict[str, Tensor]:
    """Example tokens for tracing; the traced graph takes any number of them."""
    return {"input_ids": torch.full((2, 5), 1, dtype=dtype), "attention_mask": torch.ones(2, 5, dtype=dtype)}


def pixel_inputs(processor: CLIPProcessor, name: str = "pixel_values") -> dict[str, Tensor]:
    """Example pixels for tracing, of the size that all images get."""
    return {name: torch.zeros(3, 3, *image_size(processor.image_processor))}


def export_graph(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: str) -> None:
    """Write a graph for any number of texts, tokens and images; weights above 2 GB go to a file of their own.

    Args:
        inputs: name in the graph → example, in the order of the arguments of `graph`.
    """
    size = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    with _quiet():
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(_AXES[name] for name in inputs),
            dynamo=True,
            external_data=size > _MOST_BYTES,
            verbose=False,
        )


def quantize_graph(path: str, output: str) -> None:
    """Write the graph with int8 weights; activations are quantized dynamically."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():  # not the patch embedding: onnxruntime has no int8 convolution for it
        quantize_dynamic(path, output, op_types_to_quantize=["MatMul", "Gather"], weight_type=QuantType.QUInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of exporter and quantizer, for example that torchvision is missing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def open_graph(path: str):
    """An onnxruntime session on the CPU."""
    runtime = import_optional("onnxruntime", "ONNX", "export")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


class GraphModel:
    """A text graph and an image graph that `embed_texts` and `embed_images` accept as a `BertCLIPModel`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: BertCLIPConfig, text_path: str, image_path: str | None = None):
        self.config = config
        self._text, self._image = open_graph(text_path), image_path and open_graph(image_path)

    def get_text_features(self, **inputs: Tensor) -> Tensor:
        """(B, T) tokens → (B, D)."""
        return self._run(self._text, *inputs.values())

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) pixels → (B, D)."""
        return self._run(self._image, pixel_values)

    @staticmethod
    def _run(session, *inputs: Tensor) -> Tensor:
        dtypes = {"tensor(int32)": torch.int32, "tensor(int64)": torch.int64, "tensor(float)": torch.float32}
        feed = {
            node.name: value.to(dtypes[node.type]).numpy()
            for node, value in zip(session.get_inputs(), inputs, strict=True)
        }
        return torch.from_numpy(session.run(None, feed)[0])
