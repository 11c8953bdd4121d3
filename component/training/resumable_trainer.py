"""transformers' Trainer with checkpoints from which an interrupted run continues as if it had never stopped."""

import os
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState

from component.ground.files import write_json
from component.hub.quiet import quiet_transformers
from component.training.best import set_best
from component.training.checkpoint_files import (
    UNFINISHED,
    batch_of,
    complete_checkpoint,
    naming_full_disk,
    read_record,
    remove_oldest,
    remove_unfinished,
)
from component.training.interruption import SaveAndStop, naming_lost_process
from component.training.reporters import let_fail
from component.training.run_identity import Run, read_run

# ResumableTrainer, SavingTrainer and CLIPTrainer rest on these private names of transformers.Trainer, which any
# release may change. requirements.txt therefore caps transformers at the newest release that the tests pass with. To
# lift the cap, compare these in the two releases; tests/test_train.py fails when one is missing.
#   overridden: _determine_best_metric _finalize_training _get_output_dir _init_training_state _inner_training_loop
#               _load_best_model _load_from_checkpoint _prepare_inputs _push_from_checkpoint _run_epoch _save
#               _save_checkpoint
#   read:       _globalstep_last_logged _tr_loss _train_batch_size


class StepsFromArguments(TrainerCallback):
    """Take logging_steps, eval_steps and save_steps from the arguments; the parent keeps those of the checkpoint."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)


class SaveAfterEvaluation(TrainerCallback):
    """Delay a checkpoint at the end of an epoch until the evaluation there is done, so that it holds the results."""

    def __init__(self):
        self._is_due = False

    def on_step_end(self, args, state, control, **kwargs):
        self._is_due = control.should_save and args.eval_strategy == "epoch" and not state.epoch % 1
        control.should_save &= not self._is_due

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self._is_due


class SaveTheEnd(TrainerCallback):
    """With save_strategy best, also save where the run ends, as the other strategies do: by a checkpoint of its last
    step, a run is known to be finished."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= args.save_strategy == "best" and state.global_step >= state.max_steps


class ResumableTrainer(Trainer):
    """Differences from its parent:

    - A checkpoint folder appears only when it is complete, with the RNG states of all processes.
    - A subclass can store more in a checkpoint; see `extra_state`.
    - SIGTERM, SIGINT and SIGHUP save a checkpoint and raise `Interrupted` from `train`.
    - A callback that only reports (wandb, TensorBoard, the terminal) may fail without ending the run.
    - The last checkpoint is kept, and the best of a resumed run is found in its own log and output_dir.
    - Evaluation does not change the random numbers of training.
    - Resuming a finished run takes no further step.
    - `auto_find_batch_size` writes the batch size that it found into the arguments.

    Attributes:
        took_steps: whether the last `train` changed the weights.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.took_steps = False
        self._is_saving = False
        self._run: Run | None = None
        self._checkpoint: str | None = None  # that the last `train` resumed
        self._interruption = SaveAndStop()
        self.add_callback(self._interruption)
        self.add_callback(StepsFromArguments())
        self.add_callback(SaveTheEnd())
        self.add_callback(SaveAfterEvaluation())

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint stores, as JSON. Called on all processes; the result of the first is stored."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `extra_state`; {} for a checkpoint of an older version."""

    def may_remove_checkpoints(self) -> bool:
        """Whether the new checkpoint may replace an older one, as save_total_limit demands."""
        return True

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        """Same as the parent's; resume_from_checkpoint is a folder. Raises `Interrupted` and `RunFailed`."""
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
            self._run = read_run(self.args.output_dir)
        self.took_steps = False
        for callback in self.callback_handler.callbacks:
            let_fail(callback)
        if resume_from_checkpoint:
            self.load_extra_state(read_record(resume_from_checkpoint)["extra_state"])
        self._checkpoint = resume_from_checkpoint
        with naming_lost_process(), self._interruption.listening():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_state(self) -> None:
        """Write trainer_state.json atomically."""
        if self.args.should_save:
            write_json(os.path.join(self.args.output_dir, "trainer_state.json"), asdict(self._portable_state()))

    def _portable_state(self) -> TrainerState:
        """The state with its path relative to output_dir, which may move."""
        best = self.state.best_model_checkpoint
        return replace(self.state, best_model_checkpoint=best and os.path.basename(best))

    def _init_training_state(self, *args, **kwargs):
        # The parent warns that it does not find the best checkpoint, and that steps changed which StepsFromArguments
        # sets.
        with quiet_transformers():
            found = super()._init_training_state(*args, **kwargs)
        if self._checkpoint:
            set_best(self.args, self.state, self._checkpoint)
        return found

    def _determine_best_metric(self, *args, **kwargs) -> bool:
        # With save_strategy best, the result replaces should_save: a signal and the end of the run save, too.
        return super()._determine_best_metric(*args, **kwargs) or self.control.should_save

    def _finalize_training(self, *args, **kwargs):
        # With save_total_limit 1 and a best checkpoint, the parent removes all others, of other runs too.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _inner_training_loop(self, batch_size: int | None = None, *args, **kwargs):
        if self.args.auto_find_batch_size:
            self.args.per_device_train_batch_size = batch_size
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        # When a run that is finished or stopped early is resumed inside an epoch, the parent takes one step before it
        # checks.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.took_steps = True
            super()._run_epoch(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with torch.random.fork_rng(devices=()):  # the DataLoader draws a seed for its workers
            return super().evaluation_loop(*args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        output_dir = super()._get_output_dir(trial)
        return os.path.join(output_dir, UNFINISHED) if self._is_saving else output_dir

    def _save_checkpoint(self, model, trial) -> None:
        with naming_full_disk(self.args.output_dir):
            self._save_whole_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_from_checkpoint(os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}"))

    def _save_whole_checkpoint(self, model, trial) -> None:
        name = f"checkpoint-{self.state.global_step}"
        self._is_saving = True
        super()._save_checkpoint(model, trial)
        self._is_saving = False
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = os.path.join(self.args.output_dir, name)
        extra_state = self.extra_state()
        self.accelerator.wait_for_everyone()  # until their RNG states are written
        if self.args.should_save:
            self._portable_state().save_to_json(
                os.path.join(self.args.output_dir, UNFINISHED, name, "trainer_state.json")
            )
            batch = batch_of(self.args, self._train_batch_size)
            complete_checkpoint(name, self.args.output_dir, batch, self._run, extra_state)
            best = os.path.basename(self.state.best_model_checkpoint or "")
            if self.may_remove_checkpoints():
                remove_oldest(self.args.output_dir, self.args.save_total_limit, keep={name, best})
            remove_unfinished(self.args.output_dir)
        self.accelerator.wait_for_everyone()  # the checkpoint can be read from now on

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # the upload would continue while the folder is moved
            super()._push_from_checkpoint(checkpoint_folder)
