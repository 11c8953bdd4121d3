"""Checks of the recipe's own keys. Each raises ValueError, before anything is loaded, and assigns nothing."""

import os
import re
import shlex
from dataclasses import fields

from component.ground.output_paths import require_writable_folder
from component.hub.model_path import is_hub_name
from component.modeling_bertclip import POOLINGS
from component.pairs.columns import parse_columns
from component.pairs.sources import check_pair_files, needs_folder
from component.pairs.table_files import pair_files
from component.pairs.templates import read_templates


def check_files(args) -> None:
    needed = ("output_dir", "train_file", *(() if args.image_vectors else ("clip_pretrain_path",)))
    for key in needed:
        if not getattr(args, key):
            raise ValueError(f"`{key}` is missing: {_help_of(args, key)}")
    if not (args.load_from_bert_clip or args.bert_pretrain_path):
        raise ValueError(
            f"`bert_pretrain_path` is missing: {_help_of(args, 'bert_pretrain_path')} "
            "To start from a whole BertCLIP folder, set load_from_bert_clip to true."
        )
    try:
        columns = parse_columns(args.columns) if args.columns else None
    except ValueError as error:
        raise ValueError(f"`columns` is {args.columns!r}; {error}.") from None
    for key in ("train_file", "test_file"):
        files = getattr(args, key) or []
        if not (args.image_path or args.image_vectors) and any(
            needs_folder(path, columns) for path in pair_files(files)
        ):
            raise ValueError(f"`image_path` is missing: {_help_of(args, 'image_path')}")
        try:
            check_pair_files(files, args.image_path, columns, needs_images=not args.image_vectors)
        except (ValueError, FileNotFoundError) as error:
            can_split = key == "test_file" and isinstance(error, FileNotFoundError)
            raise ValueError(f"`{key}`: {error}{_how_to_split(args) if can_split else ''}") from None
    missing = [path for path in pair_files(args.keep_list or []) if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"`keep_list`: {missing[0]}: no such file.")
    for key in ("clip_pretrain_path", "bert_pretrain_path", "distill_from"):
        path = getattr(args, key)
        if path and not is_hub_name(path) and not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(f"`{key}`: {path} is not a model folder (it has no config.json).")
    try:
        require_writable_folder(args.output_dir)
    except ValueError as error:
        raise ValueError(f"`output_dir`: {error}.") from None


def _how_to_split(args) -> str:
    """How to split a test set off the training set, if that is one CSV."""
    train, test = args.train_file, args.test_file
    if not (isinstance(train, str) and isinstance(test, str) and train.lower().endswith(".csv")):
        return " Leave test_file out to train without evaluation."
    rest = f"{os.path.splitext(train)[0]}_without_test.csv"
    command = (
        f"import pandas; pairs = pandas.read_csv({train!r}); images = pairs.filename.drop_duplicates(); "
        f"is_test = pairs.filename.isin(images.sample(frac=0.1)); pairs[is_test].to_csv({test!r}, index=False); "
        f"pairs[~is_test].to_csv({rest!r}, index=False)"
    )
    quoted = shlex.quote(command) if re.search(r'["$`\\!]', command) else f'"{command}"'  # cmd.exe takes " only
    return (
        f" To hold out a tenth of the images of train_file, run python -c {quoted} and set train_file "
        f"to {rest}. Leave test_file out to train without evaluation."
    )


def _help_of(args, key: str) -> str:
    return next(f.metadata["help"] for f in fields(args) if f.name == key)


def check_model(args) -> None:
    if args.text_pooling not in (None, *POOLINGS):
        raise ValueError(f"`text_pooling` is {args.text_pooling!r}; expected {' or '.join(POOLINGS)}, or null.")
    if not isinstance(args.freeze_vision, bool) and not re.fullmatch(
        r"last_n_blocks:[1-9]\d*", str(args.freeze_vision)
    ):
        raise ValueError(
            f"`freeze_vision` is {args.freeze_vision!r}; expected true, false, or last_n_blocks:k with k from 1."
        )
    if args.freeze_visual_projection and args.freeze_vision is not True:
        raise ValueError(
            "`freeze_visual_projection` is for image vectors that stay the same, but with freeze_vision "
            f"{str(args.freeze_vision).lower()} the image tower changes them: set freeze_vision to true, or leave "
            "freeze_visual_projection out."
        )


def check_text_augmentation(args) -> None:
    """What can be checked without the tokenizer. `component.pairs.text_augmentation` checks the words."""
    if args.text_templates is None:
        share = args.text_template_probability
        if share != type(args).text_template_probability:
            raise ValueError(f"`text_template_probability` is {share}, but there are no `text_templates`: set them.")
        return
    try:
        read_templates(args.text_templates)
    except (ValueError, OSError) as error:
        raise ValueError(f"`text_templates`: {error}") from None


def check_image_vectors(args) -> None:
    if not args.image_vectors:
        if args.image_vector_ids:
            raise ValueError("`image_vector_ids` is given, but there are no `image_vectors` that it could name.")
        return
    if args.load_from_bert_clip and not args.clip_pretrain_path:
        raise ValueError("`load_from_bert_clip` is true, but `clip_pretrain_path` is missing: the model to load.")
    for key, why in (
        ("min_crop_area", "no image is read that could be cropped"),
        ("random_flip", "no image is read that could be flipped"),
        ("check_data", "it reads images"),
    ):
        if getattr(args, key):
            raise ValueError(f"`{key}` does not work with `image_vectors`: {why}. Leave one of them out.")
    if args.freeze_vision is not True:
        raise ValueError("`image_vectors` were made before, so no image tower can learn: set freeze_vision to true.")
    if args.image_feature_cache != "off":
        raise ValueError("`image_feature_cache` has no use with `image_vectors`: leave it out.")
    if args.image_vector_ids == "order" and args.keep_list:
        raise ValueError(
            "`image_vector_ids` is order, but with `keep_list` rows of train_file are left out, which would shift the "
            "others: give the file names of the vectors."
        )
    if args.image_vector_ids == "order" and args.test_file:
        raise ValueError(
            "`image_vector_ids` is order, which gives the rows of train_file their vectors, but none to those of "
            "test_file: give the file names of the vectors, or leave test_file out."
        )


def check_image_feature_cache(args) -> None:
    if args.images_change and args.image_feature_cache != "off":
        raise ValueError(
            f"`image_feature_cache` is {args.image_feature_cache}, but features can be kept only if they are the same "
            "in every step. Set it to off, or train with freeze_vision true and without min_crop_area and random_flip."
        )


def check_loss(args) -> None:
    if args.loss_type not in ("clip", "siglip"):
        raise ValueError(f"`loss_type` is {args.loss_type!r}; expected clip or siglip.")
    dims = args.matryoshka_dims
    if dims is not None and not (
        isinstance(dims, list) and dims and all(type(dim) is int and dim > 0 for dim in dims)
    ):
        raise ValueError(f"`matryoshka_dims` is {dims!r}; expected a list of lengths such as [256, 128, 64], or null.")
    if args.contrastive_chunk_size and args.text_group_size:
        raise ValueError(
            "`contrastive_chunk_size` and `text_group_size` are both given, but the chunks are already groups of "
            "similar length: leave text_group_size out."
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"`train_sampling_strategy` is {args.train_sampling_strategy!r}; expected random or sequential. Captions "
            "of similar length are grouped inside each random batch, see text_group_size."
        )
    if args.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` is for losses with labels, and these have none: leave it out.")


def check_parallel(args) -> None:
    """After transformers has detected the devices."""
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
                    f"`deepspeed` has its own {part}, which ignores `learning_rates` and `layer_decay`: remove {part} "
                    "from its config, or leave these out."
                )
    if not args.fsdp:
        return
    for key in ("contrastive_chunk_size", "text_group_size"):
        if getattr(args, key):
            # Each chunk gathers the parameters: a process with fewer chunks would keep the others waiting.
            raise ValueError(
                f"`{key}` does not work with `fsdp`: leave one of them out. To save memory under fsdp, set "
                '"fsdp_config": {"activation_checkpointing": true}.'
            )
    if args.fsdp_plugin_args["fsdp_version"] != 2:
        raise ValueError("`fsdp_config` has version 1, which is not supported: leave `version` out.")
    if args.world_size == 1:
        raise ValueError(
            "`fsdp` shards the model over several processes, but there is only one. Start one per GPU: "
            "torchrun --nproc_per_node 8 train_clip.py …"
        )
