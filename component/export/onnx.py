"""ONNX graphs in the folder layout of transformers.js."""

import os
from types import SimpleNamespace

import torch
from transformers import CLIPProcessor

from component.checkpoint import load_text_checkpoint
from component.configuration import BertCLIPConfig
from component.export.graph import (
    GraphModel,
    ImageGraph,
    PairGraph,
    TextGraph,
    export_graph,
    open_graph,
    pixel_inputs,
    quantize_graph,
    require_onnx,
    token_inputs,
)
from component.export.samples import Samples, embed_samples
from component.ground.files import write_json
from component.hub.pretrained import loading
from component.processor import save_processor

NAMES = ("text_model", "vision_model", "model")


def write(model_path: str, folder: str, int8: bool = False) -> None:
    """Write onnx/text_model.onnx, vision_model.onnx and model.onnx, in fp32, with config.json and the processor.

    Of a text tower alone there is only the first.

    Args:
        int8: also write int8 versions of about a third of the size, named `_quantized`. They are not compared with
            the model: only labelled data can tell how much recall they lose.
    """
    require_onnx()
    model, processor = load_text_checkpoint(model_path)
    samples = embed_samples(model.cpu().float(), processor)
    tokens = token_inputs()
    os.mkdir(os.path.join(folder, "onnx"))
    export_graph(TextGraph(model), tokens, ["text_embeds"], _path(folder, "text_model"))
    if model.config.has_image_half:
        pixels, logits = pixel_inputs(processor), ["logits_per_image", "logits_per_text"]
        export_graph(ImageGraph(model), pixels, ["image_embeds"], _path(folder, "vision_model"))
        export_graph(
            PairGraph(model), {**tokens, **pixels}, [*logits, "text_embeds", "image_embeds"], _path(folder, "model")
        )
    # The classes that auto_map names would find no weights here; _name_or_path is a path on this machine.
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("auto_map", "_name_or_path")}
    write_json(os.path.join(folder, "config.json"), config)
    save_processor(processor, folder)

    samples.require_same(embed_samples(load_graphs(folder), processor))
    if model.config.has_image_half:
        samples.require_same(_pair_outputs(folder, processor, samples))
    if int8:
        for name in NAMES if model.config.has_image_half else NAMES[:1]:
            quantize_graph(_path(folder, name), _path(folder, f"{name}_quantized"))


def _pair_outputs(folder: str, processor: CLIPProcessor, samples: Samples) -> SimpleNamespace:
    inputs = processor(text=samples.texts, images=samples.images, padding=True, return_tensors="pt")
    session = open_graph(_path(folder, "model"))
    feed = {node.name: inputs[node.name].numpy() for node in session.get_inputs()}
    outputs = zip(session.get_outputs(), session.run(None, feed), strict=True)
    return SimpleNamespace(**{node.name: torch.from_numpy(value) for node, value in outputs})


def load_graphs(folder: str, ending: str = "") -> GraphModel:
    """The two towers of an exported folder, as a model for `embed_texts` and `embed_images`.

    Args:
        ending: "_quantized" for the int8 versions.
    """
    with loading(folder):
        config = BertCLIPConfig.from_pretrained(folder)
    names = NAMES[:2] if config.has_image_half else NAMES[:1]
    return GraphModel(config, *(_path(folder, f"{name}{ending}") for name in names))


def _path(folder: str, name: str) -> str:
    return os.path.join(folder, "onnx", f"{name}.onnx")
