"""What a recipe may say: each check raises ValueError, before anything is loaded, for one that cannot run."""

import logging
import os
import re
from dataclasses import fields

from component.hub.model_path import is_hub_name
from component.modeling_bertclip import POOLINGS
from component.pairs.sources import check_pair_files, expand, needs_folder

logger = logging.getLogger(__name__)


def help_of(args, key: str) -> str:
    return next(f.metadata["help"] for f in fields(args) if f.name == key)


def check_files(args) -> None:
    for key in ("output_dir", "train_file", "clip_pretrain_path"):
        if not getattr(args, key):
            raise ValueError(f"`{key}` is missing: {help_of(args, key)}")
    if not (args.load_from_bert_clip or args.bert_pretrain_path):
        raise ValueError(
            f"`bert_pretrain_path` is missing: {help_of(args, 'bert_pretrain_path')} "
            "To go on from a whole BertCLIP folder, set load_from_bert_clip to true."
        )
    for key in ("train_file", "test_file"):
        _check_pair_files(args, key)
    if args.image_path and not os.path.exists(args.image_path):
        raise ValueError(f"`image_path`: there is no folder {args.image_path}.")
    for key in ("train_file", "test_file"):
        try:
            check_pair_files(getattr(args, key) or [], args.image_path)
        except ValueError as error:
            raise ValueError(f"`{key}`: {error}") from None
    for key in ("clip_pretrain_path", "bert_pretrain_path"):
        path = getattr(args, key)
        if path and not is_hub_name(path) and not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(f"`{key}`: {path} is not a model folder (no config.json in it).")
    existing = args.output_dir
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ValueError(f"`output_dir` is {args.output_dir}, but {existing} is a file.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"`output_dir` is {args.output_dir}, but {existing} cannot be written to.")


def check_text_pooling(args) -> None:
    if args.text_pooling not in (None, *POOLINGS):
        raise ValueError(f"`text_pooling` is {args.text_pooling!r}; expected {' or '.join(POOLINGS)}, or null.")


def _check_pair_files(args, key: str) -> None:
    paths = expand(getattr(args, key) or [])
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        files = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"`{key}`: there is no file {files}.")
    if not args.image_path and any(map(needs_folder, paths)):
        raise ValueError(f"`image_path` is missing: {help_of(args, 'image_path')}")


def check_pair_table(args) -> None:
    if args.pair_table.lower() == "off":
        args.pair_table = "off"
    elif args.pair_table.lower() == "auto":
        args.pair_table = os.path.join(os.path.dirname(args.output_dir), "pair_tables")


def check_loss(args) -> None:
    if args.loss_type not in ("clip", "siglip"):
        raise ValueError(f"`loss_type` is {args.loss_type!r}; expected clip or siglip.")
    if args.contrastive_chunk_size and args.text_group_size:
        raise ValueError(
            "`contrastive_chunk_size` and `text_group_size` are both given, but the chunks are groups of like "
            "lengths already: leave text_group_size out."
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"`train_sampling_strategy` is {args.train_sampling_strategy!r}; expected random or sequential. Texts "
            "of like lengths are grouped inside of each random batch, see text_group_size."
        )
    if args.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` is for losses with labels, and these have none: leave it out.")


def check_images(args) -> None:
    words = {"true": True, "1": True, "false": False, "0": False}
    args.freeze_vision = words.get(str(args.freeze_vision).lower(), args.freeze_vision)
    if not (isinstance(args.freeze_vision, bool) or re.fullmatch(r"last_n_blocks:[1-9]\d*", str(args.freeze_vision))):
        raise ValueError(
            f"`freeze_vision` is {args.freeze_vision!r}; expected true, false, or last_n_blocks:k with k from 1."
        )
    if args.images_change and args.image_feature_cache not in ("auto", "off"):
        raise ValueError(
            f"`image_feature_cache` is {args.image_feature_cache}, but features can only be kept where they are "
            "the same in every step. Set it to off, or train with freeze_vision true and without min_crop_area "
            "and random_flip."
        )
    if args.images_change:
        args.image_feature_cache = "off"
    elif args.image_feature_cache == "auto":
        args.image_feature_cache = os.path.join(os.path.dirname(args.output_dir), "image_features")


def check_parallel(args) -> None:
    """After transformers has looked at the machine."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process. Choose one with CUDA_VISIBLE_DEVICES=0, or use all of "
            f"them with: torchrun --nproc_per_node {args.n_gpu} train_clip.py …"
        )
    if args.deepspeed and args.hf_deepspeed_config.is_zero3():
        raise ValueError("`deepspeed` has ZeRO stage 3, which is not supported: set stage to 2, or use fsdp.")
    if args.deepspeed and (args.learning_rates or args.layer_decay):
        for part in ("optimizer", "scheduler"):
            if args.hf_deepspeed_config.get_value(part):
                raise ValueError(
                    f"`deepspeed` has its own {part}, which knows nothing of `learning_rates` and "
                    f"`layer_decay`: take {part} out of its config, or leave these out."
                )
    if not args.fsdp:
        return
    for key in ("contrastive_chunk_size", "text_group_size"):
        if getattr(args, key):
            # Each chunk gathers the parameters: a process with fewer chunks would leave the others waiting.
            raise ValueError(
                f"`{key}` does not go with `fsdp`: leave one of them out. What saves memory under fsdp is "
                '"fsdp_config": {"activation_checkpointing": true}.'
            )
    if args.fsdp_plugin_args["fsdp_version"] != 2:
        raise ValueError("`fsdp_config` has version 1, which is not supported: leave `version` out.")
    if args.world_size == 1:
        raise ValueError(
            "`fsdp` parts the model between processes, but there is one. Start several, one per GPU: "
            "torchrun --nproc_per_node 8 train_clip.py …"
        )
