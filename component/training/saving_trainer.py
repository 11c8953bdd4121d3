"""What a saved BertCLIP folder holds, and how it is published."""

import os

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from component.checkpoint import complete_checkpoint, load_weights
from component.ground.files import replace_folder
from component.training.checkpoint_files import FINAL, UNFINISHED, naming_full_disk, remove_unfinished
from component.training.interruption import RunFailed
from component.training.lora import load_adapter, merged_state_dict, save_adapter
from component.training.model_card import write_model_card
from component.training.parallel import with_scalars
from component.training.resumable_trainer import ResumableTrainer

TO_TEACHER = "to_teacher.safetensors"  # in a checkpoint to resume from, next to the weights of the model


class SavingTrainer(ResumableTrainer):
    """Differences from its parent:

    - A saved folder is complete: weights, config, modeling code, processor, tokenizer and ancestors.
    - What maps embeddings to the width of a teacher is saved in the checkpoints to resume from, and nowhere else.
    - With LoRA, the saved weights are merged into a plain model. Training continues with the adapter, which is saved
      next to them.
    - Weights that are NaN or infinite are not saved; `RunFailed` is raised on all processes instead.
    - `checkpoint-final` and the Hub repository have a model card.
    """

    # ---- saving ----

    def save_final(self) -> None:
        """Save the model to `checkpoint-final` in output_dir. The folder appears only when it is complete."""
        self._require_finite_weights()
        new = os.path.join(self.args.output_dir, UNFINISHED, FINAL)
        with naming_full_disk(self.args.output_dir):
            self.save_model(new, _internal_call=True)  # the push waits for the results
            if self.args.should_save:
                self._write_model_card(new)
                replace_folder(new, os.path.join(self.args.output_dir, FINAL))
                remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model, trial) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        output_dir = output_dir or self.args.output_dir
        if state_dict is not None:
            state_dict = with_scalars(state_dict)
        elif self._has_lora:
            state_dict = merged_state_dict(self.model)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            complete_checkpoint(self.model, self.processing_class, output_dir)
            if self._has_lora:
                save_adapter(self.model, output_dir)
            if self._is_saving and self.model.to_teacher is not None:
                save_file(self.model.to_teacher.state_dict(), os.path.join(output_dir, TO_TEACHER))

    def _require_finite_weights(self) -> None:
        # Under FSDP each process holds a shard of every parameter.
        local = (getattr(parameter, "_local_tensor", parameter) for parameter in self.model.parameters())
        is_finite = torch.stack([tensor.isfinite().all() for tensor in local]).all()  # one wait for the device
        if not all(gather_object([bool(is_finite)])):
            raise RunFailed(
                f"training stops at step {self.state.global_step}: weights are NaN or infinite, and are not saved. "
                f"Older checkpoints in {self.args.output_dir} are kept: start again with "
                "resume_from_checkpoint: auto, and with a lower learning_rate or without fp16."
            )

    # ---- loading ----

    @property
    def _has_lora(self) -> bool:
        return self.args.lora_rank is not None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.model.to_teacher is not None:
            self.model.to_teacher.load_state_dict(load_file(os.path.join(resume_from_checkpoint, TO_TEACHER)))
        if self._has_lora:
            load_adapter(self.model, resume_from_checkpoint)
        elif self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._has_lora:
            load_adapter(self.model, self.state.best_model_checkpoint)
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_weights(self.model, self.state.best_model_checkpoint)

    # ---- publishing ----

    def describe_final(self) -> None:
        """Write the model card of `checkpoint-final` again, with the results measured since it was saved."""
        if self.args.should_save:
            self._write_model_card(os.path.join(self.args.output_dir, FINAL))

    def create_model_card(self, *args, **kwargs) -> None:
        # Called by push_to_hub. The parent would overwrite our card with its own.
        if self.is_world_process_zero():
            self._write_model_card(self.args.output_dir)

    def _write_model_card(self, folder: str) -> None:
        write_model_card(folder, self.args, self.model.config, len(self.train_dataset))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.should_save:
            self.model.config.save_pretrained(self.args.output_dir)  # with the modeling code, which the parent omits
        super()._push_from_checkpoint(checkpoint_folder)
