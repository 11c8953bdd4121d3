"""Where model output, loss and processes meet: training steps, evaluation, checkpoints."""

import logging
import math
import os
import time
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from component.files import replace_folder
from component.loss import contrastive_loss
from component.metrics import retrieval_metrics
from component.processor import save_processor
from component.training.gather import gather_rows
from component.training.interruption import ignore_signals_in_worker
from component.training.parallel import clamp_deepspeed_parameter, prepare_parallel, with_scalars
from component.training.resumable_trainer import ResumableTrainer
from component.training.sampler import SharedBatches

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP, arXiv:2103.00020, section 2.5: beyond it training becomes unstable


class ClampLogitScale(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        if args.deepspeed:
            clamp_deepspeed_parameter(model.logit_scale, MAX_LOGIT_SCALE)


class CLIPTrainer(ResumableTrainer):
    """transformers' Trainer, resumable, for `BertCLIPModel`, a `PairDataset` and a `PairCollator`.

    Differences from its parent:
    - The contrastive loss is computed in fp32 from the embeddings, whatever the towers run in. Its negatives are the
      pairs of all processes.
    - A bad picture is left out of its batch, named once in the log, and counted in the metrics.
    - Evaluation gives recall over the whole test set beside the loss.
    - No weight decay on logit_scale, biases and LayerNorm; logit_scale is clamped at ln 100.
    - An epoch has every pair once, in batches that do not depend on the number of processes.
    - With `contrastive_chunk_size` the towers see a chunk at a time, and the loss the whole batch.
    - Logs carry ln(batch), logit_scale and pairs per second.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(ClampLogitScale())
        if self.args.fsdp or self.args.deepspeed:
            prepare_parallel(self)
        self._bad_images: dict[str, set[int]] = {"train": set(), "eval": set()}
        self._named: set[tuple[str, int]] = set()
        self._evaluated: list[tuple[Tensor, Tensor, Tensor, float]] = []
        self._start_log_window()

    # ---- training ----

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        batches = SharedBatches(
            len(self.train_dataset),
            self._train_batch_size * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            shuffle=args.train_sampling_strategy == "random",
            drop_last=args.dataloader_drop_last,
            rank=args.process_index,
            world_size=args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=ignore_signals_in_worker,
        )

    def _run_epoch(self, *args, epoch: int, **kwargs) -> None:
        self.train_dataset.seed(self.args.seed, epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        pairs, ids = len(inputs.pop("rows")), inputs.pop("ids")
        if not pairs:
            inputs = self._placeholder_pair(cached="vision_pooler_output" in inputs)
        recompute = model.training and self.args.contrastive_chunk_size is not None
        with self.accelerator.autocast():  # accelerate wraps the model in it, but not under FSDP
            outputs = model(**inputs, recompute=recompute)
        self._logit_scale = outputs.logit_scale.detach()

        embeds = outputs.image_embeds[:pairs], outputs.text_embeds[:pairs]
        ids = ids if self.args.mask_duplicates else None
        # Evaluation compares the pairs of one batch of one process, so that its loss does not depend on their number.
        gather = gather_rows if model.training and self.args.world_size > 1 else None
        loss = contrastive_loss(*embeds, outputs.logit_scale, outputs.logit_bias, ids, gather)
        if gather:
            # DDP averages the gradients of the processes, and their shares of the loss want to be added up.
            loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        inputs = dict(inputs)
        self._note_bad_images("train", self.train_dataset, inputs.pop("bad_images"))
        pairs = len(inputs["rows"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        if pairs:
            self._pairs += pairs
            self._ln_batch += [math.log(pairs * self.args.world_size)]
        elif self.args.world_size == 1:
            loss = torch.full_like(loss, torch.nan)  # the Trainer leaves NaN out of the logged mean
        return loss

    def _placeholder_pair(self, cached: bool) -> dict[str, Tensor]:
        """What goes through the model in place of a batch without any good picture; its embeddings are not used.

        Its gradients are 0, but there are some: under DDP or FSDP the other processes would wait forever for one that
        skips forward and backward, and the fp16 scaler wants to see gradients.

        Args:
            cached: the other processes' pictures pass by the vision tower, and under FSDP this one's has to as well.
        """
        vision = self.model.config.vision_config
        text = torch.zeros(1, 1, dtype=torch.long)
        inputs = {"input_ids": text, "attention_mask": text + 1, "text_groups": [(1, 1)]}
        if cached:
            inputs["vision_pooler_output"] = torch.zeros(1, vision.hidden_size)
        else:
            inputs["pixel_values"] = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        return self._prepare_inputs(inputs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Biases, LayerNorm and the class embedding are vectors, logit_scale is a scalar.
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def train(self, *args, **kwargs):
        self._note_bad_images("train", self.train_dataset, self.train_dataset.bad_images)
        output = super().train(*args, **kwargs)
        output.metrics["train_bad_images"] = len(self._all_bad_images("train"))
        return output

    # ---- evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        self._note_bad_images("eval", self.callback_handler.eval_dataloader.dataset, inputs.pop("bad_images"))
        rows = inputs["rows"]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if not len(rows):
            return loss, None, None
        self._evaluated.append((rows.cpu(), outputs.text_embeds.cpu(), outputs.image_embeds.cpu(), loss.item()))
        return loss, None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The parent's loop over the batches; the metrics are those of `retrieval_metrics`, over all ranks.

        Raises:
            ValueError: not one picture of the test set can be read.
        """
        start = time.perf_counter()
        dataset = dataloader.dataset
        self._evaluated, self._bad_images["eval"] = [], set()
        self._note_bad_images("eval", dataset, dataset.bad_images)
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        batches = gather_object(self._evaluated)
        self._evaluated = []
        if not batches:
            raise ValueError(f"{dataset.file}: none of its pictures can be read.")
        # Ranks fill up their last batch with rows that others have too: keep each row once.
        rows, first = np.unique(torch.cat([batch[0] for batch in batches]), return_index=True)
        text_embeds = torch.cat([batch[1] for batch in batches])[first]
        image_embeds = torch.cat([batch[2] for batch in batches])[first]
        sizes = np.array([len(batch[0]) for batch in batches])
        metrics = {
            "loss": float(np.average([batch[3] for batch in batches], weights=sizes)),
            **retrieval_metrics(image_embeds, text_embeds, dataset.image_ids[rows], dataset.text_ids[rows]),
            "pairs": len(rows),
            "bad_images": len(self._all_bad_images("eval")),
        }
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in metrics.items()})
        self._window_start += time.perf_counter() - start  # pairs per second speaks of training alone
        return output

    # ---- bad pictures ----

    def _note_bad_images(self, split: str, dataset, bad_images: list[tuple[int, str]]) -> None:
        for row, reason in bad_images:
            self._bad_images[split].add(row)
            if (dataset.file, row) not in self._named:
                self._named.add((dataset.file, row))
                logger.warning("left out of %s: %s", dataset.file, reason)

    def _all_bad_images(self, split: str) -> list[int]:
        return sorted(set(gather_object(list(self._bad_images[split]))))

    # ---- logs and checkpoints ----

    def extra_state(self) -> dict[str, Any]:
        return {"bad_images": self._all_bad_images("train")}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._bad_images["train"].update(state.get("bad_images", ()))

    def _start_log_window(self) -> None:
        self._pairs, self._ln_batch, self._window_start = 0, [], time.perf_counter()

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            seconds = time.perf_counter() - self._window_start
            logs["ln_batch"] = float(np.mean(self._ln_batch)) if self._ln_batch else 0.0
            logs["logit_scale"] = self._logit_scale.item()
            logs["pairs_per_second"] = self._pairs * self.args.world_size / seconds
            self._start_log_window()
        super().log(logs, *args, **kwargs)

    def save_final(self) -> None:
        """Save model, processor and tokenizer to `checkpoint-final` in the output folder, whole or not at all."""
        final = os.path.join(self.args.output_dir, "checkpoint-final")
        self.save_model(f"{final}.tmp")
        if self.args.should_save:
            replace_folder(f"{final}.tmp", final)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if state_dict is not None:
            state_dict = with_scalars(state_dict)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_processor(self.processing_class, output_dir or self.args.output_dir)
