"""Builds what train_clip.py trains: the model and its processor."""

import logging

import torch
from transformers import CLIPProcessor, set_seed

from component.argument import CLIPTrainingArguments
from component.checkpoint import ancestor_digest, read_ancestors
from component.checkpoint import load_model as load_bert_clip
from component.configuration import BertCLIPConfig
from component.ground.cores import limit_threads
from component.hub.identity import identity_of, image_differences
from component.hub.pretrained import check_pretrained, find_pretrained, loading
from component.hub.use import BERT_CLIP, IMAGE_HALF, IMAGE_TOWER, LOCKED_TEXT_TOWER, TEXT_TOWER, Use
from component.model import BertCLIPModel
from component.processor import TextProcessor, load_processor_of
from component.training.image_vectors import gallery_fingerprint, open_vectors
from component.training.learning_rates import rates_of
from component.training.lora import add_lora

logger = logging.getLogger(__name__)


def load_model(args: CLIPTrainingArguments) -> tuple[BertCLIPModel, CLIPProcessor | TextProcessor]:
    """Load the model, with locked layers and LoRA as the arguments say, and its processor.

    Raises:
        ValueError: a folder cannot be loaded or is another kind of model, or the arguments do not fit the model.
    """
    limit_threads()
    set_seed(args.seed)  # before the Trainer does: a new text_projection is initialised here
    model = _load_weights(args)
    model.set_loss(args.loss_type)
    _prepare_dims(args, model)
    if args.trainable_vision_blocks is not None and model.config.has_image_half:
        model.lock_vision(args.trainable_vision_blocks, args.freeze_visual_projection or bool(args.image_vectors))
    if args.freeze_text:
        model.lock_text()
    if args.lora_rank is not None:
        add_lora(model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_targets)
    if args.distill_from:
        _check_pretrained(args, distill_from=BERT_CLIP)
        with loading(args.distill_from):
            teacher = BertCLIPConfig.from_pretrained(find_pretrained(args.distill_from))
        model.set_teacher_width(teacher.projection_dim)
    rates_of(model, args)  # raises if a prefix in learning_rates or layer_decay matches no weight
    positions = model.config.text_config.max_position_embeddings
    if args.max_seq_length > positions:
        raise ValueError(f"`max_seq_length` is {args.max_seq_length}, but the text tower has {positions} positions.")
    tokenizer_path = None if args.load_from_bert_clip else args.bert_pretrain_path
    processor = load_processor_of(model.config, args.clip_pretrain_path, tokenizer_path)
    if args.image_vectors:
        _require_vectors_of(args, model, processor)
    return model, processor


def _load_weights(args: CLIPTrainingArguments) -> BertCLIPModel:
    text_use = LOCKED_TEXT_TOWER if args.freeze_text else TEXT_TOWER
    text = {"text_pooling": args.text_pooling or "pooler", "text_use": text_use}
    if args.load_from_bert_clip:
        _check_pretrained(args, clip_pretrain_path=BERT_CLIP)
        model = load_bert_clip(args.clip_pretrain_path, dtype=torch.float32)
        model.ancestors = [*(read_ancestors(args.clip_pretrain_path) or ()), ancestor_digest(model)]
        if args.text_pooling not in (None, model.config.text_pooling):
            raise ValueError(
                f"`text_pooling` is {args.text_pooling}, but {args.clip_pretrain_path} was trained with "
                f"{model.config.text_pooling}: leave text_pooling out."
            )
        if not (model.config.has_image_half or args.image_vectors):
            raise ValueError(
                f"`clip_pretrain_path`: {args.clip_pretrain_path} is a text tower alone, which is trained with "
                "image_vectors, the vectors of images that another model made."
            )
        return model
    if args.clip_pretrain_path:
        image_use = IMAGE_HALF if args.freeze_visual_projection or args.image_vectors else IMAGE_TOWER
        _check_pretrained(args, clip_pretrain_path=image_use, bert_pretrain_path=text_use)
        model = BertCLIPModel.from_vision_text_pretrained(
            args.clip_pretrain_path, args.bert_pretrain_path, image_use=image_use, **text
        )
    else:
        _check_pretrained(args, bert_pretrain_path=text_use)
        width = open_vectors(args.image_vectors).width
        model = BertCLIPModel.from_text_pretrained(args.bert_pretrain_path, width, **text)
    model.ancestors = []
    return model


def _prepare_dims(args: CLIPTrainingArguments, model: BertCLIPModel) -> None:
    """Record in the config whether vectors of the trained model may be cut: if their first dimensions are trained."""
    was_ordered = vars(model.config).pop("ordered_dims", False)  # ordinary training moves them
    if not args.matryoshka_dims:
        return
    width = model.config.projection_dim
    if max(args.matryoshka_dims) > width:
        raise ValueError(
            f"`matryoshka_dims` has {max(args.matryoshka_dims)}, but the vectors have {width} dimensions."
        )
    if not was_ordered:
        logger.warning(
            "`matryoshka_dims`: the dimensions of %s are in no order, so the first ones begin with little. Start from "
            "a checkpoint of export_model.py --format checkpoint --dim %d.",
            *(args.clip_pretrain_path or args.bert_pretrain_path, width),
        )
    model.config.ordered_dims = True


def _require_vectors_of(args: CLIPTrainingArguments, model: BertCLIPModel, processor: CLIPProcessor) -> None:
    """Raise ValueError if the model cannot have made `image_vectors`: by their width, or by what a gallery records."""
    width, path = open_vectors(args.image_vectors).width, args.image_vectors
    if width != model.config.projection_dim:
        raise ValueError(
            f"`image_vectors`: {path} has vectors of {width} numbers, but {args.clip_pretrain_path} has "
            f"{model.config.projection_dim}: another model made them."
        )
    made_by = gallery_fingerprint(path)
    if made_by and model.config.has_image_half:
        if differences := image_differences(made_by, identity_of(model, processor), model):
            raise ValueError(
                f"`image_vectors`: {path} was made with another image half than {args.clip_pretrain_path} has now "
                f"({'; '.join(differences)}). Set clip_pretrain_path to the model that made it."
            )


def _check_pretrained(args: CLIPTrainingArguments, **uses: Use) -> None:
    """Check each folder before any weights are read; an error begins with the argument that names the folder."""
    for key, use in uses.items():
        try:
            check_pretrained(getattr(args, key), use)
        except ValueError as error:
            raise ValueError(f"`{key}`: {error}") from error
