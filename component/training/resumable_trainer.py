"""transformers' Trainer, such that a run that was killed goes on as if it never had been."""

import os
from typing import Any

import torch
from transformers import Trainer

from component.training.interruption import SaveAndStop, naming_lost_process
from component.training.resume import UNFINISHED, finish, read_record, remove_oldest, remove_unfinished


class ResumableTrainer(Trainer):
    """Differences from its parent:

    - A checkpoint folder appears when it is whole, with every process's RNG state in it.
    - A subclass may keep more in a checkpoint: `extra_state`.
    - SIGTERM and SIGINT save a checkpoint, and raise `Interrupted` out of `train`.
    - Evaluation draws no random numbers from training.
    - A finished run that is resumed takes no further step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._is_saving = False
        self._interruption = SaveAndStop()
        self.add_callback(self._interruption)

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps, as JSON; called on all processes, the first one's result is kept."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `extra_state` gave; {} for a checkpoint of an older version."""

    def may_remove_checkpoints(self) -> bool:
        """Whether a new checkpoint is worth one of the older ones, beyond save_total_limit."""
        return True

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        """As the parent's; resume_from_checkpoint is a folder. Raises `Interrupted`, `RunFailed`."""
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
        if resume_from_checkpoint:
            self.load_extra_state(read_record(resume_from_checkpoint).get("extra_state", {}))
        with self._interruption.listening(), naming_lost_process():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        # With max_steps in the middle of an epoch, the parent takes one step before it looks.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with torch.random.fork_rng(devices=()):  # a DataLoader draws a seed for its workers
            return super().evaluation_loop(*args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        output_dir = super()._get_output_dir(trial)
        return os.path.join(output_dir, UNFINISHED) if self._is_saving else output_dir

    def _save_checkpoint(self, model, trial) -> None:
        name = f"checkpoint-{self.state.global_step}"
        self._is_saving = True
        super()._save_checkpoint(model, trial)
        self._is_saving = False
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = os.path.join(self.args.output_dir, name)
        extra_state = self.extra_state()
        self.accelerator.wait_for_everyone()  # for their RNG states
        if self.args.should_save:
            self.state.save_to_json(os.path.join(self.args.output_dir, UNFINISHED, name, "trainer_state.json"))
            finish(name, self.args, extra_state)
            best = os.path.basename(self.state.best_model_checkpoint or "")
            if self.may_remove_checkpoints():
                remove_oldest(self.args.output_dir, self.args.save_total_limit, keep={name, best})
            remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()  # it may be read from now on
        if self.args.push_to_hub:
            self._push_from_checkpoint(os.path.join(self.args.output_dir, name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # uploading goes on while the folder is moved
            super()._push_from_checkpoint(checkpoint_folder)
