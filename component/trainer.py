"""The Trainer of BertCLIP: training steps, contrastive loss, evaluation and logs."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPProcessor, TrainerCallback

from component.argument import CLIPTrainingArguments
from component.datacollator import PairCollator
from component.dataset import Pairs
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.transform import ImageTransform
from component.loss import feature_loss, matryoshka_loss
from component.metrics import retrieval_metrics
from component.model import BertCLIPModel
from component.processor import image_size
from component.training.bad_images import BadImages
from component.training.data_wait import DataWait
from component.training.early_stopping import StopEarly
from component.training.gather import RowGather
from component.training.interruption import RunFailed, ignore_signals_in_worker, naming_lost_process
from component.training.learning_rates import set_rates
from component.training.log_window import LogWindow
from component.training.parallel import clamp_deepspeed_parameter, prepare_parallel
from component.training.sampler import LocalBatch, SharedBatches
from component.training.saving_trainer import SavingTrainer
from component.training.symptoms import MAX_SCALE, WarnOfSymptoms

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(MAX_SCALE)  # CLIP, arXiv:2103.00020, section 2.5: beyond it training becomes unstable


class EvaluatedBatch(NamedTuple):
    """B pairs that one process evaluated: their table rows (B,), embeddings (B, D) and loss."""

    rows: Tensor
    text_embeds: Tensor
    image_embeds: Tensor
    loss: float


class ClampLogitScale(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        if args.deepspeed:
            clamp_deepspeed_parameter(model.logit_scale, MAX_LOGIT_SCALE)


class CLIPTrainer(SavingTrainer):
    """transformers' Trainer for a `BertCLIPModel` and `Pairs`. It can be resumed and writes complete checkpoints.

    Arguments are those of its parent; `processing_class` is the CLIPProcessor, `data_collator` is a `PairCollator`
    unless another one is given.

    Differences from transformers' Trainer, in addition to those of `ResumableTrainer` and `SavingTrainer`:

    - The contrastive loss is computed in fp32 from the embeddings, whatever precision the towers run in. The
      negatives are the pairs of all processes.
    - Bad images are left out of their batch, named once in the log, and counted in the metrics.
    - Evaluation reports retrieval metrics over the whole test set in addition to the loss.
    - logit_scale, biases and LayerNorm get no weight decay; logit_scale is clamped at ln 100.
    - Each epoch contains every pair once, in batches that do not depend on the number of processes.
    - With `contrastive_chunk_size` the towers process one chunk at a time while the loss uses the whole batch.
    - Logs contain ln(batch), logit_scale, pairs per second, the share of time spent waiting for data, and the mean
      cosine among the texts and among the images of a batch.
    - Symptoms of a failing run are reported once, each with its remedy; see `component.training.symptoms`.
    - Pairs with `teacher_text_embeds` and `teacher_image_embeds` add `distill_weight` times `feature_loss` of each.
    - With `early_stopping_patience`, a run that no longer improves saves a checkpoint and stops.
    """

    def __init__(
        self,
        model: BertCLIPModel,
        args: CLIPTrainingArguments,
        data_collator: Callable[[dict], dict] | None = None,
        *,
        processing_class: CLIPProcessor,
        **kwargs,
    ):
        data_collator = data_collator or PairCollator(
            processing_class.tokenizer.pad_token_id, args.group_size, args.group_costs
        )
        super().__init__(model, args, data_collator, processing_class=processing_class, **kwargs)
        self.add_callback(ClampLogitScale())
        if args.early_stopping_patience is not None:
            self.add_callback(StopEarly(args.early_stopping_patience))
        self.add_callback(WarnOfSymptoms())
        if args.fsdp or args.deepspeed:
            prepare_parallel(self)
        self._bad_images = BadImages(args.output_dir, args.process_index == 0, "train", "eval")
        self._evaluated: list[EvaluatedBatch] = []
        self._window = LogWindow()
        self._data_wait = DataWait(args.device)

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
        return self._dataloader(
            self.train_dataset, batches, self._train_batch_size, args.dataloader_persistent_workers
        )

    def get_eval_dataloader(self, eval_dataset: Pairs | None = None) -> DataLoader:
        """Every pair once, whatever dataloader_drop_last says. The processes take turns: each evaluates whole batches,
        the same ones that a single process would form."""
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        batches = SharedBatches(len(dataset), args.eval_batch_size, shuffle=False)
        rounds = -(-len(batches) // args.world_size)
        mine = range(args.process_index, rounds * args.world_size, args.world_size)
        return self._dataloader(dataset, [batches.local(number) for number in mine], args.eval_batch_size)

    def _dataloader(
        self, dataset: Pairs, batches: Iterable[LocalBatch], batch_size: int, persistent: bool = False
    ) -> DataLoader:
        args = self.args
        batch_bytes = batch_size * dataset.bytes_per_pair
        workers = worker_options(args.dataloader_num_workers, batch_bytes, args.dataloader_prefetch_factor)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=ToSharedMemory(self.data_collator),
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=persistent and workers["num_workers"] > 0,
            worker_init_fn=ignore_signals_in_worker,
            **workers,
        )

    def _prepare_inputs(self, batch: dict) -> dict:
        # The copy from pinned memory is asynchronous. Everything else in the batch is used on the CPU.
        inputs = send_to_device(batch["model_inputs"], self.args.device, non_blocking=True)
        if "pixels" in inputs:
            inputs["pixel_values"] = self._transform.pixel_values(inputs.pop("pixels"), self.args.device)
        return {**batch, "model_inputs": super()._prepare_inputs(inputs)}

    @cached_property
    def _transform(self) -> ImageTransform:
        return ImageTransform(self.processing_class.image_processor)

    def floating_point_ops(self, batch: dict) -> int:
        inputs = batch["model_inputs"]
        return super().floating_point_ops(inputs) if "input_ids" in inputs else 0

    def get_batch_samples(self, *args, **kwargs):
        with self._data_wait.measured():
            return super().get_batch_samples(*args, **kwargs)

    # ---- training ----

    def train(self, *args, **kwargs):
        """Same as the parent's. Also raises `RunFailed` when nothing can be learnt; see `_require_learning`."""
        batch = self._train_batch_size * self.args.world_size
        if min(batch, len(self.train_dataset)) == 1:
            logger.warning(
                "%s: a single pair has no negatives, so the model learns nothing. Contrastive training needs many "
                "pairs in a batch; gradient_accumulation_steps adds no negatives.",
                "per_device_train_batch_size is 1 on one process" if batch == 1 else "train_file has one pair",
            )
        self._bad_images.know("train", self.train_dataset.table.file, self.train_dataset.images.bad)
        output = super().train(*args, **kwargs)
        output.metrics["train_bad_images"] = self._bad_images.count("train")
        return output

    def compute_loss(self, model, batch, return_outputs=False, num_items_in_batch=None):
        inputs, pairs = dict(batch["model_inputs"]), len(batch["rows"])
        taught = {side: inputs.pop(name) for side in ("text", "image") if (name := f"teacher_{side}_embeds") in inputs}
        if not pairs:
            inputs = self._placeholder_pair(inputs)
        recompute = model.training and self.args.contrastive_chunk_size is not None
        with self.accelerator.autocast():  # accelerate wraps the model in it, but not under FSDP
            outputs = model(**inputs, recompute=recompute)
        embeds = outputs.image_embeds[:pairs], outputs.text_embeds[:pairs]
        ids = batch["ids"].to(embeds[0].device, non_blocking=True) if self.args.mask_duplicates else None
        # In evaluation the negatives are the pairs of one batch of one process: the loss does not depend on how many
        # processes there are.
        gather = None
        if model.training and self.args.world_size > 1:
            gather = RowGather(pairs, embeds[0].device)
        dims = self.args.matryoshka_dims or ()
        loss = matryoshka_loss(dims, *embeds, outputs.logit_scale, outputs.logit_bias, ids, gather)
        total = gather.total if gather else pairs
        distances = [
            feature_loss(outputs[f"{side}_as_teacher"][:pairs], teacher_embeds, total)
            for side, teacher_embeds in taught.items()
        ]
        distill_loss = self.args.distill_weight * sum(distances)  # 0 without a teacher
        loss = loss + distill_loss
        if model.training:
            mine = distill_loss * total / max(pairs, 1) if taught else None
            self._window.observe(outputs.logit_scale, *embeds, mine)
        if gather:
            # DDP averages the gradients over the processes, but the loss is the sum of what each computed.
            loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, batch, num_items_in_batch=None) -> Tensor:
        self._bad_images.note("train", self.train_dataset.table.file, batch["bad_images"])
        pairs = len(batch["rows"])
        loss = super().training_step(model, batch, num_items_in_batch)
        self._window.add(pairs, loss)
        counts = loss.isfinite() & (pairs > 0 or self.args.world_size > 1)
        # A batch that does not count is logged as the mean of the others. The parent's logging_nan_inf_filter does the
        # same, but waits for the device at every step.
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(counts, loss, mean)

    def _placeholder_pair(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Model inputs in place of a batch that has no good image. The embeddings are not used.

        The gradients are 0, but they exist: under DDP or FSDP the other processes would wait forever for one that
        skips forward and backward, and the fp16 scaler fails without gradients.

        Args:
            columns: of a batch without pairs: images and texts may enter as features that skip their tower. Under FSDP
                all processes have to agree.
        """
        config = self.model.config
        text = torch.zeros(1, 1, dtype=torch.long)
        inputs = {"input_ids": text, "attention_mask": text + 1, "text_groups": [(1, 1)]}
        if "text_pooler_output" in columns:
            inputs = {"text_pooler_output": torch.zeros(1, config.text_config.hidden_size), "text_groups": [(1, 1)]}
        if self.args.image_vectors:
            inputs["image_embeds"] = torch.zeros(1, config.projection_dim)
        elif "vision_pooler_output" in columns:
            inputs["vision_pooler_output"] = torch.zeros(1, config.vision_config.hidden_size)
        else:
            inputs["pixel_values"] = torch.zeros(1, 3, *image_size(self.processing_class.image_processor))
        return super()._prepare_inputs(inputs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Matrices only: biases, LayerNorm and the class embedding are vectors, logit_scale is a scalar.
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
        """The parent's loop over the batches, with the metrics of `retrieval_metrics` over the pairs of all processes.

        Raises:
            ValueError: no image of the test set can be read.
        """
        start = time.perf_counter()
        table = dataloader.dataset.table
        self._evaluated = []
        self._bad_images.forget("eval")
        self._bad_images.know("eval", table.file, dataloader.dataset.images.bad)
        with naming_lost_process():
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            batches, self._evaluated = gather_object(self._evaluated), []
            self._bad_images.share()
        self._bad_images.require_few_lost(table.file, len(table))
        if not batches:
            raise ValueError(f"{table.file}: none of its images can be read.")
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
            "bad_images": self._bad_images.count("eval"),
        }
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in metrics.items()})
        self._window.exclude(time.perf_counter() - start)
        return output

    # ---- logs ----

    def extra_state(self) -> dict[str, Any]:
        return {"bad_images": self._bad_images.to_text("train")}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._bad_images.restore("train", state.get("bad_images", []))

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._window.logs(self.args.world_size, self._data_wait.take())
        super().log(logs, *args, **kwargs)
        if "loss" in logs or "train_loss" in logs:
            self._bad_images.share()
            self._require_learning()
            self._bad_images.require_few_lost(self.train_dataset.table.file, len(self.train_dataset.table))

    def _require_learning(self) -> None:
        """Save a checkpoint and raise `RunFailed` when no batch since the last log trained the model.

        The image disk may be gone, or the loss is NaN: to continue would only damage the weights.
        """
        reason = self._window.close(self._can_read_an_image)
        if reason:
            self._save_checkpoint(self.model, trial=None)
            raise RunFailed(
                f"training stops at step {self.state.global_step}: {reason}. checkpoint-{self.state.global_step} is "
                f"saved in {self.args.output_dir}, and older ones are kept. Fix the cause, then start again with "
                "resume_from_checkpoint: auto, or give the folder of an older checkpoint."
            )

    def _can_read_an_image(self) -> bool:
        return any(not self.train_dataset.images.load([row]).bad for row in self.train_dataset.some_rows())

    def may_remove_checkpoints(self) -> bool:
        return self._window.learns
