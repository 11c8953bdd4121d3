"""The JSON file of one experiment → typed, checked training arguments."""

import logging
import math
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from component.pairs.text_groups import GroupCosts, costs_on
from component.recipe.checks import (
    check_files,
    check_images,
    check_loss,
    check_pair_table,
    check_parallel,
    check_text_pooling,
)
from component.recipe.json_file import as_type, read_json
from component.recipe.old_keys import translate
from component.recipe.paths import expand_paths
from component.recipe.trainer_checks import (
    check_compiler,
    check_evaluation,
    check_numbers,
    check_optimizer,
    check_packages,
    check_what_has_no_meaning,
    check_words,
    check_workers,
    in_one_line,
)
from component.recipe.tuning_checks import check_learning_rates, check_lora

logger = logging.getLogger(__name__)


@dataclass
class CLIPTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, and what BertCLIP needs beside them.

    Raises ValueError, before anything is loaded, for a recipe that cannot run.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder for checkpoints, logs and results."})
    clip_pretrain_path: str | None = field(
        default=None,
        metadata={"help": "CLIP folder or hub name; with load_from_bert_clip, of a BertCLIP or Chinese-CLIP."},
    )
    bert_pretrain_path: str | None = field(default=None, metadata={"help": "Chinese BERT folder or hub name."})
    load_from_bert_clip: bool = field(
        default=False, metadata={"help": "Take everything, text tower included, from clip_pretrain_path."}
    )
    text_pooling: str | None = field(
        default=None,
        metadata={
            "help": "What stands for a text in a new pair of towers: pooler, BERT's own, which null means too; or "
            "cls, the last hidden state of [CLS], as in Chinese-CLIP."
        },
    )
    train_file: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "CSV or Parquet table with the columns text and filename, WebDataset shards, or a list of these."
        },
    )
    test_file: str | list[str] | None = field(default=None, metadata={"help": "The same for evaluation; null: none."})
    image_path: str | None = field(
        default=None,
        metadata={"help": "Folder that file names are relative to; of a .jsonl its tsv; shards need none."},
    )
    max_seq_length: int = field(
        default=100, metadata={"help": "Tokens per text, [CLS] and [SEP] included; longer texts are cut."}
    )
    loss_type: str = field(
        default="clip", metadata={"help": "clip: InfoNCE over the batch; siglip: a sigmoid loss for each pair."}
    )
    mask_duplicates: bool = field(
        default=False,
        metadata={"help": "Pairs of a batch with equal texts or equal file names are no negatives of each other."},
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Gradient cache: the towers see so many pairs at a time, the loss sees the whole batch. Needs the "
            "memory of one chunk, and one more forward pass. null: off."
        },
    )
    text_group_size: int | None = field(
        default=None,
        metadata={
            "help": "The texts of a batch go through the tower in groups of so many, sorted by length, which saves "
            "padding; null: in the groups that cost least, padding and launching counted."
        },
    )
    freeze_vision: bool | str = field(
        default=True,
        metadata={
            "help": "Lock the vision tower (LiT); false: train it; last_n_blocks:k: train its last k blocks alone."
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "LoRA: lock the text tower, and train matrices of this rank next to its own. Needs peft. null: "
            "train all of it."
        },
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={"help": "What LoRA adds counts lora_alpha / lora_rank; null: twice the rank."},
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of what goes into LoRA's matrices."})
    lora_targets: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers of the text tower that LoRA is next to, by the ends of their names, e.g. "
            '["query", "value"]; null: attention and MLP.'
        },
    )
    learning_rates: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Learning rates of parts, by the longest prefix of a weight's name, e.g. "
            '{"text_projection": 1e-3}; the rest has learning_rate.'
        },
    )
    layer_decay: float | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "The learning rate of each block of a tower is that of the block behind it times this, e.g. 0.8, "
            'or {"text_model": 0.8}; null: the same for all.'
        },
    )
    min_crop_area: float | None = field(
        default=None,
        metadata={"help": "Train on random pieces with at least this share of a picture's area, e.g. 0.5; null: off."},
    )
    random_flip: bool = field(default=False, metadata={"help": "Mirror every second training picture."})
    image_feature_cache: str = field(
        default="auto",
        metadata={
            "help": "Compute the locked tower's output of each picture once, and keep it in this folder; auto: in "
            "`image_features` beside output_dir; off: put every picture through the tower in every epoch."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in which metric_for_best_model was no better than before; null: "
            "never."
        },
    )
    verify_image_features: bool = field(
        default=False,
        metadata={
            "help": "Read the whole image feature cache at the start and compare its digests; otherwise each file's "
            "size and header are."
        },
    )
    pair_table: str = field(
        default="auto",
        metadata={
            "help": "Read and tokenize the tables once, and keep the result in this folder, which later starts and "
            "all processes map; auto: in `pair_tables` beside output_dir; off: in the memory of each process."
        },
    )
    resume_from_checkpoint: str | bool | None = field(
        default=None,
        metadata={
            "help": "Go on from this checkpoint folder; true: from the last whole one in output_dir; auto: the same, "
            "or start anew where there is none."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start anew in an output_dir that holds another run: its checkpoints and results are removed, and "
            "nothing else."
        },
    )
    check_data: bool = field(
        default=False,
        metadata={
            "help": "Train nothing: read all data, write what is found to check_data.html in output_dir, and stop."
        },
    )
    model_license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the weights for the model card, in the Hub's words, e.g. apache-2.0; null: none."
        },
    )
    # Other defaults than transformers': a frozen tower leaves no parameter unused, and the collator needs all columns.
    ddp_find_unused_parameters: bool | None = False
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # the trainer's own does not wait for the device
    fsdp: bool | None = None  # transformers' own hint is that of the older form, a string

    def __post_init__(self):
        expand_paths(self)
        for check in (
            check_files,
            check_pair_table,
            check_numbers,
            check_words,
            check_text_pooling,
            check_loss,
            check_images,
            check_lora,
            check_learning_rates,
            check_evaluation,
            check_workers,
            check_packages,
            check_what_has_no_meaning,
        ):
            check(self)
        if self.fp16 and (self.use_cpu or not torch.cuda.is_available()):
            logger.warning("fp16 needs a GPU and none is in use: training in fp32.")
            self.fp16 = False
        if "WORLD_SIZE" not in os.environ:
            self.ddp_backend = None  # a single process; told a backend, transformers waits for others in vain
        # Pinning memory without a GPU does nothing but warn at every data loader.
        self.dataloader_pin_memory &= torch.cuda.is_available() and not self.use_cpu
        words = {"true": True, "false": False, "auto": "auto"}
        self.resume_from_checkpoint = words.get(str(self.resume_from_checkpoint).lower(), self.resume_from_checkpoint)
        try:
            super().__post_init__()
        except Exception as error:  # of whatever kind: it judges what is written in the recipe
            raise ValueError(f"transformers cannot take these arguments: {in_one_line(error)}") from error
        check_parallel(self)
        check_optimizer(self)
        check_compiler(self)

    @property
    def group_size(self) -> int | None:
        """So many pairs at most go through the towers together; None: as many as there are."""
        return self.contrastive_chunk_size or self.text_group_size

    @property
    def group_costs(self) -> GroupCosts:
        """Which groups of pairs go through the towers together."""
        costs = costs_on(self.device.type)
        # Under FSDP each group gathers the parameters: a process with fewer would leave the others waiting.
        return costs._replace(group=math.inf) if self.text_group_size or self.fsdp else costs

    @property
    def trainable_vision_blocks(self) -> int | None:
        """So many of the vision tower's last blocks are trained; None: all of the tower is."""
        if isinstance(self.freeze_vision, bool):
            return 0 if self.freeze_vision else None
        return int(self.freeze_vision.removeprefix("last_n_blocks:"))

    @property
    def images_change(self) -> bool:
        """The vision tower's output of a picture is not the same in every step."""
        return self.freeze_vision is not True or self.min_crop_area is not None or self.random_flip


def load_arguments(path: str, overrides: Sequence[str] = ()) -> CLIPTrainingArguments:
    """`read_arguments`, checked.

    Raises:
        ValueError: also for a recipe that cannot run.
    """
    return CLIPTrainingArguments(**read_arguments(path, overrides))


def read_arguments(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read one flat JSON of training arguments: what `CLIPTrainingArguments` takes.

    Keys of the published recipe and of older transformers versions keep their meaning; `warmup_steps` wins over
    `warmup_ratio`.

    Args:
        path: JSON file.
        overrides: "key=value" items that replace keys of the file; a value is read as JSON where it is JSON.

    Raises:
        ValueError: no such file, not JSON, an unknown key, a value of the wrong type.
    """
    known = {f.name for f in fields(CLIPTrainingArguments) if f.init}
    hints = typing.get_type_hints(CLIPTrainingArguments)
    given = translate(read_json(path, overrides), known)
    return {key: as_type(key, value, hints[key]) for key, value in given.items()}
