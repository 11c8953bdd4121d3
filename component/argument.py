"""The JSON file of one experiment → typed, checked training arguments."""

import math
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from component.pairs.text_groups import GroupCosts, costs_on
from component.recipe.checks import check_recipe, check_with_devices
from component.recipe.json_file import as_type, read_json, read_overrides
from component.recipe.old_keys import translate
from component.recipe.require import in_one_line
from component.recipe.resolve import resolve

PROCESSES_CANNOT_CONNECT = (
    "the processes of this run cannot connect to each other. Check the network interface (GLOO_SOCKET_IFNAME or "
    "NCCL_SOCKET_IFNAME), MASTER_ADDR, MASTER_PORT and `ddp_backend`"
)


@dataclass
class CLIPTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments plus those of BertCLIP.

    Raises:
        ValueError: the recipe cannot run. Everything is checked before anything is loaded.
    """

    output_dir: str | None = HfArg(default=None, help="Folder for checkpoints, logs and results.")
    # Model
    clip_pretrain_path: str | None = HfArg(
        default=None,
        help="Image tower (CLIP, SigLIP, DINOv2, …), folder or hub name; with load_from_bert_clip, a BertCLIP "
        "or Chinese-CLIP.",
    )
    bert_pretrain_path: str | None = HfArg(default=None, help="Chinese BERT folder or hub name.")
    load_from_bert_clip: bool = HfArg(
        default=False, help="Load everything, text tower included, from clip_pretrain_path."
    )
    text_pooling: str | None = HfArg(
        default=None,
        help="How a new pair of towers pools a text: pooler (BERT's pooler_output, the default) or cls (the "
        "last hidden state of [CLS], as in Chinese-CLIP).",
    )
    # Data
    train_file: str | list[str] | None = HfArg(
        default=None,
        help="CSV or Parquet table with the columns text and filename, WebDataset shards, or a list of these.",
    )
    test_file: str | list[str] | None = HfArg(default=None, help="The same for evaluation; null: none.")
    columns: str | None = HfArg(
        default=None,
        help="Names of the columns of train_file and test_file, such as text=caption,filename=image; null: as "
        "published data sets call them.",
    )
    keep_list: str | None = HfArg(
        default=None,
        help="Parquet that says which pairs of train_file to keep, written by filter_data.py --keep_list; null: all.",
    )
    image_path: str | None = HfArg(
        default=None, help="Folder that file names are relative to, or the tsv of a .jsonl. Shards need none."
    )
    image_vectors: str | None = HfArg(
        default=None,
        help="Train the text tower for these vectors of the images, whose files are not read: a gallery, .npy, "
        ".npz, or folder of clip-retrieval. clip_pretrain_path is the CLIP that made them; without it, the "
        "model is a text tower alone.",
    )
    image_vector_ids: str | None = HfArg(
        default=None,
        help="File names of image_vectors, in their order: a text file with one per line, or a table with the "
        "column filename; order: vector i belongs to row i. null: the names that the vectors come with.",
    )
    max_seq_length: int = HfArg(
        default=100, help="Tokens per text, including [CLS] and [SEP]; longer texts are truncated."
    )
    # Loss and batches
    loss_type: str = HfArg(
        default="clip", help="clip: InfoNCE over the batch; siglip: one sigmoid loss per image and text."
    )
    matryoshka_dims: list[int] | None = HfArg(
        default=None,
        help="Train the first dimensions of the vectors too, so that these can be cut: a list of lengths such "
        "as [256, 128, 64]; null: only whole vectors.",
    )
    mask_duplicates: bool = HfArg(
        default=False, help="Pairs with the same text or the same file name are not negatives of each other."
    )
    contrastive_chunk_size: int | None = HfArg(
        default=None,
        help="Gradient cache: the towers process this many pairs at a time, while the loss uses the whole "
        "batch. Needs the memory of one chunk and one more forward pass. null: off.",
    )
    text_group_size: int | None = HfArg(
        default=None,
        help="Sort the texts of a batch by length and run them in groups of this size, which saves padding. "
        "null: choose the groups that cost least.",
    )
    # What is trained, and at which rates
    freeze_vision: bool | str = HfArg(
        default=True,
        help="Lock the vision tower (LiT). false: train it; last_n_blocks:k: train only its last k blocks.",
    )
    freeze_visual_projection: bool = HfArg(
        default=False,
        help="Lock visual_projection too: the model embeds images as it did before the training, and a gallery "
        "of them stays valid.",
    )
    freeze_text: bool = HfArg(
        default=False, help="Lock the text tower; with the image tower locked too, only the projections are trained."
    )
    lora_rank: int | None = HfArg(
        default=None,
        help="LoRA: lock the text tower and train matrices of this rank next to its own. Needs peft. null: "
        "train the whole tower.",
    )
    lora_alpha: float | None = HfArg(
        default=None, help="LoRA's product is scaled by lora_alpha / lora_rank; null: twice the rank."
    )
    lora_dropout: float = HfArg(default=0.0, help="Dropout of the inputs to LoRA's matrices.")
    lora_targets: str | list[str] | None = HfArg(
        default=None,
        help="Linear layers of the text tower that get LoRA, by the ends of their names, e.g. "
        '["query", "value"]; null: attention and MLP.',
    )
    learning_rates: dict[str, float] | None = HfArg(
        default=None,
        help="Learning rates by the longest matching prefix of a weight's name, e.g. "
        '{"text_projection": 1e-3}; other weights use learning_rate.',
    )
    layer_decay: float | dict[str, float] | None = HfArg(
        default=None,
        help="Each block's learning rate is that of the next block times this, e.g. 0.8, or "
        '{"text_model": 0.8}; null: the same rate for all blocks.',
    )
    # Random changes of images and captions
    min_crop_area: float | None = HfArg(
        default=None, help="Train on random crops with at least this share of an image's area, e.g. 0.5; null: off."
    )
    random_flip: bool = HfArg(default=False, help="Flip half of the training images horizontally.")
    text_templates: str | list[str] | None = HfArg(
        default=None,
        help="Put captions into sentences such as 一张{}的照片, so that the model learns how people ask: a "
        "text file with one per line, or a list; null: none.",
    )
    text_template_probability: float = HfArg(
        default=0.5, help="Share of the captions that are put into one of text_templates, in each epoch."
    )
    text_noise: float = HfArg(
        default=0.0,
        help="Share of the captions in which two neighbouring Chinese characters are swapped or one is dropped.",
    )
    # What is computed once and kept on disk
    image_feature_cache: str = HfArg(
        default="auto",
        help="Compute the locked tower's output once per image and keep it in this folder. auto: in "
        "`image_features` next to output_dir; off: run the tower in every epoch.",
    )
    text_feature_cache: str = HfArg(
        default="auto",
        help="With freeze_text, compute the tower's output once per caption and keep it in this folder. auto: "
        "in `text_features` next to output_dir; off: run the tower in every epoch.",
    )
    verify_image_features: bool = HfArg(
        default=False,
        help="Verify the digests of all files of the feature caches at the start, instead of only the size and "
        "header of each.",
    )
    pair_table: str = HfArg(
        default="auto",
        help="Read and tokenize the tables once and keep the result in this folder, which all processes and "
        "later runs map into memory. auto: in `pair_tables` next to output_dir; off: each process holds its own.",
    )
    # Teacher
    distill_from: str | None = HfArg(
        default=None,
        help="Teacher: BertCLIP or Chinese-CLIP folder or hub name, whose embeddings of the training pairs are "
        "computed once; the model learns to give the same. null: none.",
    )
    distill_weight: float = HfArg(
        default=4.0, help="Weight of the squared distance to the teacher's embeddings, added to the loss."
    )
    distill_cache: str = HfArg(
        default="auto", help="Folder for the teacher's embeddings. auto: `teacher_embeddings` next to output_dir."
    )
    # Run
    early_stopping_patience: int | None = HfArg(
        default=None, help="Stop after this many evaluations without a better metric_for_best_model; null: never."
    )
    resume_from_checkpoint: str | bool | None = HfArg(
        default=None,
        help="Resume from this checkpoint folder; true: from the last complete one in output_dir; auto: the "
        "same, or start a new run if there is none.",
    )
    overwrite_output_dir: bool = HfArg(
        default=False,
        help="Start a new run in an output_dir that contains another one, whose checkpoints and results are "
        "removed, and nothing else.",
    )
    check_data: bool = HfArg(
        default=False,
        help="Do not train: read all data, write the findings to check_data.html in output_dir, and stop.",
    )
    model_license: str | None = HfArg(
        default=None,
        help="Licence of the weights for the model card, as the Hub spells it, e.g. apache-2.0; null: none.",
    )
    # Defaults that differ from transformers': every trainable parameter is used, and the collator needs all columns.
    ddp_find_unused_parameters: bool | None = False
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # CLIPTrainer has its own, which does not wait for the device
    fsdp: bool | None = None  # transformers' type hint still allows the older form, a string

    def __post_init__(self):
        resolve(self)
        check_recipe(self)
        try:
            super().__post_init__()
        except Exception as error:  # transformers raises many classes, and starts the process group in here
            is_network = isinstance(error, RuntimeError) and "WORLD_SIZE" in os.environ
            fault = PROCESSES_CANNOT_CONNECT if is_network else "transformers cannot take these arguments"
            raise ValueError(f"{fault}: {in_one_line(error)}") from error
        check_with_devices(self)

    @property
    def group_size(self) -> int | None:
        """Pairs that go through the towers together, at most; None: no limit."""
        return self.contrastive_chunk_size or self.text_group_size

    @property
    def group_costs(self) -> GroupCosts:
        """Costs by which pairs are grouped."""
        costs = costs_on(self.device.type)
        # Under FSDP each group gathers the parameters: a process with fewer groups would keep the others waiting.
        return costs._replace(group=math.inf) if self.text_group_size or self.fsdp else costs

    @property
    def trainable_vision_blocks(self) -> int | None:
        """Number of the vision tower's last blocks that are trained; None: the whole tower."""
        if isinstance(self.freeze_vision, bool):
            return 0 if self.freeze_vision else None
        return int(self.freeze_vision.removeprefix("last_n_blocks:"))

    @property
    def images_change(self) -> bool:
        """Whether the vision tower's output for an image differs between steps."""
        return self.freeze_vision is not True or self.min_crop_area is not None or self.random_flip

    @property
    def texts_change(self) -> bool:
        """Whether the text tower's output for a caption differs between steps."""
        return not self.freeze_text or self.text_templates is not None or self.text_noise > 0

    @property
    def trains_image_embeds(self) -> bool:
        """Whether the embedding of an image changes during training."""
        return not (self.image_vectors or (self.freeze_vision is True and self.freeze_visual_projection))


def load_arguments(path: str, overrides: Sequence[str] = ()) -> CLIPTrainingArguments:
    """`read_arguments`, resolved and checked.

    Raises:
        ValueError: as `read_arguments`, or the recipe cannot run.
    """
    return CLIPTrainingArguments(**read_arguments(path, overrides))


def read_arguments(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the keyword arguments of `CLIPTrainingArguments` from one flat JSON.

    Keys of the published recipe keep their meaning; `warmup_steps` wins over `warmup_ratio`.

    Args:
        path: JSON file.
        overrides: "key=value" items that replace keys of the file; a value is parsed as JSON if possible.

    Raises:
        ValueError: the file cannot be read or is not JSON, a key is unknown, a value has the wrong type.
    """
    known = {f.name for f in fields(CLIPTrainingArguments) if f.init}
    hints = typing.get_type_hints(CLIPTrainingArguments)
    given = translate(read_json(path) | read_overrides(overrides, hints), known)
    return {key: as_type(key, value, hints[key]) for key, value in given.items()}
