"""Recognises a failing run by its logged figures: each symptom is reported once, with its cause and its remedy.

A symptom is a function of what was logged that returns a sentence or None.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SETTLED_STEPS = 50  # after the warm-up; also the window of means, as single steps may be chance
MIN_STEPS = 20  # after the warm-up of a short run; also of waiting for data
FLAT = 0.97  # of ln(batch)
COLLAPSED_COSINE = 0.99
MIN_SCALE = 5  # healthy runs have 10 to 100
MAX_SCALE = 100
MUCH_WAITING = 0.3


@dataclass
class Log:
    """What was logged so far.

    Attributes:
        warmup_steps, max_steps: of the run.
        repeated: with mask_duplicates, the share of all other pairs that have the text or the image of a pair.
        begin: the step at which this process began; 0 unless the run was resumed.
        training: logs of the loss, by step.
        evaluations: logs of evaluations during training, each with the last `loss` before it, or infinity.
    """

    warmup_steps: int
    max_steps: int
    repeated: float = 0
    begin: int = 0
    training: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def add(self, entry: dict[str, float]) -> None:
        if "loss" in entry:
            self.training.append(entry)
        elif "eval_mean_recall" in entry:
            self.evaluations.append({"loss": self.training[-1]["loss"] if self.training else math.inf, **entry})

    @property
    def is_settled(self) -> bool:
        """Whether enough steps have passed since the warm-up for the model to have learnt something."""
        step = self.training[-1]["step"] if self.training else 0
        is_over = step >= self.max_steps and step - self.warmup_steps >= MIN_STEPS
        return step - self.warmup_steps >= SETTLED_STEPS or is_over

    def recent(self, key: str, since: int = 0) -> float:
        """The mean of what was logged after step `since` in the last SETTLED_STEPS; NaN if nothing was."""
        first = max(since, self.training[-1]["step"] - SETTLED_STEPS) if self.training else 0
        logs = takewhile(lambda log: log["step"] > first, reversed(self.training))
        values = [log[key] for log in logs if log.get(key) is not None]
        return sum(values) / len(values) if values else math.nan


def flat_loss(log: Log, args) -> str | None:
    loss, pairs = log.recent("loss", log.warmup_steps), math.exp(log.recent("ln_batch", log.warmup_steps))
    distill_loss = log.recent("distill_loss", log.warmup_steps)
    if not math.isnan(distill_loss):
        loss -= distill_loss
    negatives = (pairs - 1) * (1 - log.repeated)
    if not log.is_settled or not negatives > 0:
        return None
    nothing = math.log(1 + negatives)
    if args.loss_type == "siglip":  # the loss of a model that knows only the share of negatives
        nothing += negatives * math.log(1 + 1 / negatives)
    if not loss > FLAT * nothing:
        return None
    return (
        f"the loss is {loss:.3g} after the warm-up, while a model that knows nothing has {nothing:.3g} (in a batch "
        f"of {pairs:.0f}): the model has learnt nothing so far. Is the learning_rate of {args.learning_rate:g} too "
        "low, or so high that it destroyed the tower? Does each caption belong to its image, and do the captions "
        "differ? check_data: true shows what the model sees."
    )


def over_fitting(log: Log, args) -> str | None:
    best = max(log.evaluations, key=lambda evaluation: evaluation["eval_mean_recall"], default=None)
    if best is None:
        return None
    later = [evaluation for evaluation in log.evaluations if evaluation["step"] > best["step"]][-2:]
    # At most two standard errors of a share over this many pairs; and two evaluations, as one may be chance.
    least = best["eval_mean_recall"] - 1 / math.sqrt(best["eval_pairs"])
    if len(later) < 2 or any(evaluation["eval_mean_recall"] > least for evaluation in later):
        return None
    if not later[-1]["loss"] < best["loss"]:
        return None
    return (
        f"mean_recall on test_file fell from {100 * best['eval_mean_recall']:.1f}% at step {best['step']} to "
        f"{100 * later[-1]['eval_mean_recall']:.1f}%, while the loss fell to {later[-1]['loss']:.3g}: "
        "the model is overfitting the training pairs. Stop earlier (load_best_model_at_end with "
        "metric_for_best_model mean_recall), train less of the model (lora_rank, or a lower learning_rate), or blend "
        "the result with the weights that it started from (blend_checkpoints.py)."
    )


def scale_at_bound(log: Log, args) -> str | None:
    scale = log.training[-1].get("logit_scale", 0) if log.training else 0
    first = log.training[0].get("logit_scale", 0) if log.training else 0
    if scale < 0.99 * MAX_SCALE or first > 0.9 * MAX_SCALE:  # CLIP's own weights start there
        return None
    return (
        f"logit_scale has risen from {first:.3g} to its maximum of {MAX_SCALE}. That is usual late in a run on "
        "millions of pairs. Early in a run it means that the batches are too easy or memorised: use larger batches, a "
        "lower learning_rate, or fewer epochs."
    )


def scale_collapsed(log: Log, args) -> str | None:
    scale = log.training[-1].get("logit_scale", MIN_SCALE) if log.training else MIN_SCALE
    if scale >= MIN_SCALE:
        return None
    return (
        f"logit_scale has fallen to {scale:.3g} (it was {log.training[0]['logit_scale']:.3g}; healthy runs have 10 to "
        f"{MAX_SCALE}): the model cannot tell the pairs apart and makes all embeddings alike. Check that each caption "
        "belongs to its image (check_data: true), set mask_duplicates if captions repeat, or lower the learning_rate "
        f"of {args.learning_rate:g}."
    )


def collapsed_embeddings(log: Log, args) -> str | None:
    cosines = {"texts": log.recent("text_cosine"), "images": log.recent("image_cosine")}
    alike = [f"{kind} (mean cosine {cosine:.3f})" for kind, cosine in cosines.items() if cosine > COLLAPSED_COSINE]
    if not alike or not log.is_settled:
        return None
    return (
        f"the embeddings of different {' and of different '.join(alike)} have collapsed to one point and are useless. "
        f"Start again from earlier weights with a learning_rate below {args.learning_rate:g} and a longer warm-up. If "
        "they were collapsed from the start, check that captions and images differ (check_data: true)."
    )


def slow_data(log: Log, args) -> str | None:
    steps = log.training[-1]["step"] - log.begin if log.training else 0
    # The first log includes the start of the workers and reads from a cold disk.
    first = next((entry["step"] for entry in log.training if entry["step"] > log.begin), 0)
    wait = log.recent("data_wait", since=first)
    if steps < MIN_STEPS or not wait > MUCH_WAITING:
        return None
    remedies = [f"more dataloader_num_workers than {args.dataloader_num_workers}"]
    if args.image_feature_cache == "off" and not args.images_change:
        remedies.append("image_feature_cache: auto, which runs the locked tower once per image")
    remedies.append("smaller image files, or a faster disk")
    return f"{wait:.0%} of the time is spent waiting for data. What helps: {'; '.join(remedies)}."


def no_negatives(log: Log, args) -> str | None:
    if not log.training or log.recent("ln_batch") != 0 or args.world_size * args.per_device_train_batch_size == 1:
        return None
    return (
        "there is only one good pair in a batch: it has no negatives, so the model learns nothing. Check which images "
        "are left out, and use larger batches; gradient_accumulation_steps adds no negatives."
    )


SYMPTOMS: tuple[Callable, ...] = (
    flat_loss,
    over_fitting,
    scale_at_bound,
    scale_collapsed,
    collapsed_embeddings,
    slow_data,
    no_negatives,
)


class WarnOfSymptoms(TrainerCallback):
    """Logs each symptom once, in the first process."""

    def __init__(self):
        self._log: Log | None = None
        self._reported: set[Callable] = set()

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = train_dataloader.dataset
        repeated = _repeated(dataset.table.ids(dataset.some_rows(10_000))) if args.mask_duplicates else 0
        self._log = Log(args.get_warmup_steps(state.max_steps), state.max_steps, repeated, begin=state.global_step)
        for entry in state.log_history:
            self._log.add(entry)

    def on_log(self, args, state, control, **kwargs):
        if self._log is None or not state.is_world_process_zero:
            return
        self._log.add(state.log_history[-1])
        for sentence in self._new(args):
            logger.warning("step %d: %s", state.global_step, sentence)

    def on_train_end(self, args, state, control, **kwargs):
        self._log = None  # a later evaluation may be of other weights

    def _new(self, args) -> Iterable[str]:
        for symptom in SYMPTOMS:
            sentence = symptom not in self._reported and symptom(self._log, args)
            if sentence:
                self._reported.add(symptom)
                yield sentence


def _repeated(ids: np.ndarray) -> float:
    """The share of all other pairs that have the text or the image of a pair. ids: (n, 2), of text and image."""
    n, counts = len(ids), [np.unique(column, return_counts=True)[1] for column in ids.T]
    both = np.unique(ids, axis=0, return_counts=True)[1]
    text, image, twins = ((count * (count - 1)).sum() / max(n * (n - 1), 1) for count in (*counts, both))
    return text + image - twins
