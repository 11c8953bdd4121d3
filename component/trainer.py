"""Where model output, loss and processes meet: training steps, evaluation, checkpoints."""

import logging
import math
import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from component.checkpoint import write_ancestors
from component.dataset import Pairs
from component.ground.files import replace_folder
from component.loss import contrastive_loss
from component.metrics import mean_cosine, retrieval_metrics
from component.processor import save_processor
from component.training.bad_images import BadImages
from component.training.checkpoint_files import UNFINISHED, naming_full_disk, remove_unfinished
from component.training.data_wait import DataWait
from component.training.early_stopping import StopEarly
from component.training.gather import row_gather
from component.training.interruption import RunFailed, ignore_signals_in_worker, naming_lost_process
from component.training.learning_rates import set_rates
from component.training.log_window import LogWindow
from component.training.lora import load_adapter, merged_state_dict, save_adapter
from component.training.model_card import write_model_card
from component.training.parallel import clamp_deepspeed_parameter, prepare_parallel, with_scalars
from component.training.resumable_trainer import ResumableTrainer
from component.training.sampler import Part, SharedBatches
from component.training.symptoms import BOUND_OF_SCALE, NameSymptoms

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(BOUND_OF_SCALE)  # CLIP, arXiv:2103.00020, section 2.5: beyond it training becomes unstable


class EvaluatedBatch(NamedTuple):
    """B pairs of one process: their rows (B,) in the table, embeddings (B, D) and loss."""

    rows: Tensor
    text_embeds: Tensor
    image_embeds: Tensor
    loss: float


class ClampLogitScale(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        if args.deepspeed:
            clamp_deepspeed_parameter(model.logit_scale, MAX_LOGIT_SCALE)


class CLIPTrainer(ResumableTrainer):
    """transformers' Trainer, resumable, for `BertCLIPModel`, `Pairs` and a `PairCollator`.

    Differences from its parent:
    - The contrastive loss is computed in fp32 from the embeddings, whatever the towers run in. Its negatives are the
      pairs of all processes.
    - A bad picture is left out of its batch, named once in the log, and counted in the metrics.
    - Evaluation gives recall over the whole test set beside the loss.
    - No weight decay on logit_scale, biases and LayerNorm; logit_scale is clamped at ln 100.
    - An epoch has every pair once, in batches that do not depend on the number of processes.
    - With `contrastive_chunk_size` the towers see a chunk at a time, and the loss the whole batch.
    - Logs carry ln(batch), logit_scale, pairs per second, the share of the time that went by in waiting for data, and
      how alike the texts and the images of a batch are.
    - What the logs say is wrong is named once, with its mend; see `component.training.symptoms`.
    - A run that learns nothing any more saves a checkpoint and stops.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(ClampLogitScale())
        if self.args.early_stopping_patience is not None:
            self.add_callback(StopEarly(self.args.early_stopping_patience))
        self.add_callback(NameSymptoms())
        if self.args.fsdp or self.args.deepspeed:
            prepare_parallel(self)
        self._bad_images = BadImages("train", "eval")
        self._evaluated: list[EvaluatedBatch] = []
        self._window = LogWindow()
        self._data_wait = DataWait(self.args.device)
        self._logit_scale: Tensor | None = None  # of the last forward pass
        self._embeds: dict[str, Tensor] = {}  # of the last training batch of this process

    # ---- batches ----

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
        return self._dataloader(self.train_dataset, batches, args.dataloader_persistent_workers)

    def get_eval_dataloader(self, eval_dataset: Pairs | None = None) -> DataLoader:
        """Every pair once, whatever dataloader_drop_last says: processes take turns at the batches of one alone."""
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        batches = SharedBatches(len(dataset), args.eval_batch_size, shuffle=False)
        rounds = -(-len(batches) // args.world_size)
        mine = range(args.process_index, rounds * args.world_size, args.world_size)
        return self._dataloader(dataset, [batches.part(number) for number in mine])

    def _dataloader(self, dataset: Pairs, batches: Iterable[Part], persistent: bool = False) -> DataLoader:
        args = self.args
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=persistent,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=ignore_signals_in_worker,
        )

    def _prepare_inputs(self, batch: dict) -> dict:
        # From pinned memory, so that nothing waits for it. The rest is looked at on the CPU.
        inputs = send_to_device(batch["model_inputs"], self.args.device, non_blocking=True)
        return {**batch, "model_inputs": super()._prepare_inputs(inputs)}

    def floating_point_ops(self, batch: dict) -> int:
        return super().floating_point_ops(batch["model_inputs"])

    def get_batch_samples(self, *args, **kwargs):
        with self._data_wait.measured():
            return super().get_batch_samples(*args, **kwargs)

    # ---- training ----

    def train(self, *args, **kwargs):
        """As the parent's. Also raises `RunFailed` where nothing can be learnt any more; see `_require_learning`."""
        batch = self._train_batch_size * self.args.world_size
        if min(batch, len(self.train_dataset)) == 1:
            logger.warning(
                "%s: a pair alone has no negatives to be told from, and nothing is learnt. Contrastive training needs "
                "many pairs in a batch; gradient_accumulation_steps adds none.",
                "per_device_train_batch_size is 1 on one process" if batch == 1 else "train_file has one pair",
            )
        self._bad_images.note("train", self.train_dataset.table.file, self.train_dataset.images.bad)
        output = super().train(*args, **kwargs)
        output.metrics["train_bad_images"] = len(self._bad_images.rows("train"))
        return output

    def compute_loss(self, model, batch, return_outputs=False, num_items_in_batch=None):
        inputs, pairs = batch["model_inputs"], len(batch["rows"])
        if not pairs:
            inputs = self._placeholder_pair(cached="vision_pooler_output" in inputs)
        recompute = model.training and self.args.contrastive_chunk_size is not None
        with self.accelerator.autocast():  # accelerate wraps the model in it, but not under FSDP
            outputs = model(**inputs, recompute=recompute)
        self._logit_scale = outputs.logit_scale.detach()

        embeds = outputs.image_embeds[:pairs], outputs.text_embeds[:pairs]
        if model.training:
            self._embeds = {kind: side.detach() for kind, side in zip(("image", "text"), embeds, strict=True)}
        ids = batch["ids"].to(embeds[0].device, non_blocking=True) if self.args.mask_duplicates else None
        # Evaluation compares the pairs of one batch of one process, so that its loss does not depend on their number.
        gather = None
        if model.training and self.args.world_size > 1:
            gather = row_gather(pairs, embeds[0].device)
        loss = contrastive_loss(*embeds, outputs.logit_scale, outputs.logit_bias, ids, gather)
        if gather:
            # DDP averages the gradients of the processes, and their shares of the loss want to be added up.
            loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, batch, num_items_in_batch=None) -> Tensor:
        self._bad_images.note("train", self.train_dataset.table.file, batch["bad_images"])
        pairs = len(batch["rows"])
        loss = super().training_step(model, batch, num_items_in_batch)
        self._window.add(pairs, loss)
        is_training = loss.isfinite() & (pairs > 0 or self.args.world_size > 1)
        # What is no training is left out of the logged mean, as by the parent's logging_nan_inf_filter, which waits
        # for the device in every step.
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(is_training, loss, mean)

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
        return super()._prepare_inputs(inputs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Biases, LayerNorm and the class embedding are vectors, logit_scale is a scalar.
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and (self.args.learning_rates or self.args.layer_decay):
            set_rates(optimizer, self.model, self.args)
        return optimizer

    # ---- evaluation ----

    def prediction_step(self, model, batch, prediction_loss_only, ignore_keys=None):
        dataset, rows = self.callback_handler.eval_dataloader.dataset, batch["rows"]
        self._bad_images.note("eval", dataset.table.file, batch["bad_images"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(batch), return_outputs=True)
        if len(rows):
            embeds = outputs.text_embeds.cpu(), outputs.image_embeds.cpu()
            self._evaluated.append(EvaluatedBatch(rows, *embeds, loss.item()))
        return loss, None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The parent's loop over the batches; the metrics are those of `retrieval_metrics`, over all ranks.

        Raises:
            ValueError: not one picture of the test set can be read.
        """
        start = time.perf_counter()
        table = dataloader.dataset.table
        self._evaluated = []
        self._bad_images.forget("eval")
        self._bad_images.note("eval", table.file, dataloader.dataset.images.bad)
        with naming_lost_process():
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            batches, self._evaluated = gather_object(self._evaluated), []
            self._bad_images.share()
        if not batches:
            raise ValueError(f"{table.file}: none of its pictures can be read.")
        rows, text_embeds, image_embeds = (
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("rows", "text_embeds", "image_embeds")
        )
        order = rows.argsort()
        rows = rows[order].numpy()
        losses, sizes = zip(*((batch.loss, len(batch.rows)) for batch in batches), strict=True)
        metrics = {
            "loss": float(np.average(losses, weights=sizes)),
            **retrieval_metrics(image_embeds[order], text_embeds[order], table.image_ids[rows], table.text_ids[rows]),
            "pairs": len(rows),
            "bad_images": len(self._bad_images.rows("eval")),
        }
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in metrics.items()})
        self._window.leave_out(time.perf_counter() - start)
        return output

    # ---- logs and checkpoints ----

    def extra_state(self) -> dict[str, Any]:
        return {"bad_images": self._bad_images.rows("train")}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._bad_images.count("train", state.get("bad_images", ()))

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._window.logs(self.args.world_size, self._data_wait.take())
            logs["logit_scale"] = self._logit_scale.item()
            logs |= {f"{kind}_cosine": mean_cosine(side) for kind, side in self._embeds.items() if len(side) > 1}
        super().log(logs, *args, **kwargs)
        if "loss" in logs or "train_loss" in logs:
            self._bad_images.share()
            self._require_learning()

    def _require_learning(self) -> None:
        """Save a checkpoint and raise `RunFailed` where a whole log window, or the rest at the end, was no training.

        That is a disk that is gone, or weights that are NaN: to go on would only spoil what was learnt.
        """
        reason = self._window.close(self._can_read_an_image)
        if reason:
            self._save_checkpoint(self.model, trial=None)
            raise RunFailed(
                f"training stops at step {self.state.global_step}: {reason}. checkpoint-{self.state.global_step} is "
                f"saved in {self.args.output_dir}, and older ones are kept. Mend the cause, and start again with "
                "resume_from_checkpoint: auto, or from an older checkpoint by its name."
            )

    def _can_read_an_image(self) -> bool:
        return any(not self.train_dataset.images.load([row]).bad for row in self.train_dataset.some_rows())

    def may_remove_checkpoints(self) -> bool:
        return not self._window.is_dead

    def _save_checkpoint(self, model, trial) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(model, trial)

    def _require_finite_weights(self) -> None:
        """Raise `RunFailed` on all processes, so that nothing is saved that can only be thrown away."""
        # Of a parameter under FSDP, each process has a part.
        parts = (getattr(parameter, "_local_tensor", parameter) for parameter in self.model.parameters())
        if not all(gather_object([all(bool(part.isfinite().all()) for part in parts)])):
            raise RunFailed(
                f"training stops at step {self.state.global_step}: weights are NaN or infinite, and are not saved. "
                f"What {self.args.output_dir} has of older checkpoints is kept: start again with "
                "resume_from_checkpoint: auto, and with a lower learning_rate or without fp16."
            )

    def save_final(self) -> None:
        """Save model, processor and tokenizer to `checkpoint-final` in the output folder, whole or not at all."""
        self._require_finite_weights()
        new = os.path.join(self.args.output_dir, UNFINISHED, "checkpoint-final")
        with naming_full_disk(self.args.output_dir):
            self.save_model(new, _internal_call=True)  # without pushing it, which waits for the results
            if self.args.should_save:
                self._write_model_card(new)
                replace_folder(new, os.path.join(self.args.output_dir, "checkpoint-final"))
                remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def describe_final(self) -> None:
        """Write the model card of `checkpoint-final`, with the results that have come since it was saved."""
        if self.args.should_save:
            self._write_model_card(os.path.join(self.args.output_dir, "checkpoint-final"))

    def create_model_card(self, *args, **kwargs) -> None:
        # The parent's would take the place of ours when it pushes.
        if self.is_world_process_zero():
            self._write_model_card(self.args.output_dir)

    def _write_model_card(self, folder: str) -> None:
        write_model_card(folder, self.args, self.model.config.projection_dim, len(self.train_dataset))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.should_save:
            self.model.config.save_pretrained(self.args.output_dir)  # with its code, which the parent leaves behind
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        output_dir = output_dir or self.args.output_dir
        if state_dict is not None:
            state_dict = with_scalars(state_dict)
        elif self._has_lora:
            state_dict = merged_state_dict(self.model)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_processor(self.processing_class, output_dir)
            write_ancestors(output_dir, self.model.ancestors)
            if self._has_lora:
                save_adapter(self.model, output_dir)

    # What is saved is merged; training goes on with the parts.

    @property
    def _has_lora(self) -> bool:
        return self.args.lora_rank is not None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self._has_lora:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapter(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not self._has_lora:
            return super()._load_best_model()
        load_adapter(self.model, self.state.best_model_checkpoint)
