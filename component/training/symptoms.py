"""What the figures of a training say is wrong with it: each symptom with its cause and its mend, said once.

A symptom is a function of what was logged, and gives a sentence or None.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SETTLED_STEPS = 50  # behind the warm-up, and of these the means: what single steps show may be chance
FEWEST_STEPS = 20  # of a whole training after its warm-up, and of waiting for data
FLAT = 0.97  # of ln(batch)
COLLAPSED_COSINE = 0.99
LOWEST_SCALE = 5  # healthy trainings have 10 to 100
MAX_SCALE = 100
MUCH_WAITING = 0.3


@dataclass
class Log:
    """What was logged until now.

    Attributes:
        warmup_steps, max_steps: of the training.
        repeated: share of all other pairs that have the text or the picture of a pair, where these are no negatives.
        begin: the step at which this process began; 0 unless it was resumed.
        training: logs of the loss, by step.
        evaluations: logs of evaluations that came during training, each with the last `loss` before it, infinite
            where there was none.
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
        """So many steps lie behind the warm-up that something should have been learnt."""
        step = self.training[-1]["step"] if self.training else 0
        is_over = step >= self.max_steps and step - self.warmup_steps >= FEWEST_STEPS
        return step - self.warmup_steps >= SETTLED_STEPS or is_over

    def recent(self, key: str, since: int = 0) -> float:
        """The mean of what was logged after this step and in the last SETTLED_STEPS; NaN where that is nothing."""
        first = max(since, self.training[-1]["step"] - SETTLED_STEPS) if self.training else 0
        logs = takewhile(lambda log: log["step"] > first, reversed(self.training))
        values = [log[key] for log in logs if log.get(key) is not None]
        return sum(values) / len(values) if values else math.nan


def flat_loss(log: Log, args) -> str | None:
    loss, pairs = log.recent("loss", log.warmup_steps), math.exp(log.recent("ln_batch", log.warmup_steps))
    negatives = (pairs - 1) * (1 - log.repeated)
    if not log.is_settled or not negatives > 0:
        return None
    nothing = math.log(1 + negatives)
    if args.loss_type == "siglip":  # of a model that knows how many negatives there are, and nothing else
        nothing += negatives * math.log(1 + 1 / negatives)
    if not loss > FLAT * nothing:
        return None
    return (
        f"the loss is {loss:.3g} behind the warm-up, and that of a model that knows nothing is {nothing:.3g} (of a "
        f"batch of {pairs:.0f}): so far nothing is learnt. Is the learning_rate of {args.learning_rate:g} too low, or "
        "so high that the tower is broken? Does each text belong to its picture, and are the texts not all alike? "
        "check_data: true shows what the model sees."
    )


def over_fitting(log: Log, args) -> str | None:
    best = max(log.evaluations, key=lambda evaluation: evaluation["eval_mean_recall"], default=None)
    if best is None:
        return None
    later = [evaluation for evaluation in log.evaluations if evaluation["step"] > best["step"]][-2:]
    # Two standard errors of a share of so many pairs, at most; and twice, as one evaluation may be chance.
    least = best["eval_mean_recall"] - 1 / math.sqrt(best["eval_pairs"])
    if len(later) < 2 or any(evaluation["eval_mean_recall"] > least for evaluation in later):
        return None
    if not later[-1]["loss"] < best["loss"]:
        return None
    return (
        f"mean_recall on test_file fell from {100 * best['eval_mean_recall']:.1f}% at step {best['step']} to "
        f"{100 * later[-1]['eval_mean_recall']:.1f}%, while the loss fell to {later[-1]['loss']:.3g}: "
        "the training pairs are learnt by heart. Stop there (load_best_model_at_end with "
        "metric_for_best_model mean_recall), train less of the model (lora_rank, or a lower learning_rate), or blend "
        "the result with the weights that it began from (blend_checkpoints.py)."
    )


def scale_at_bound(log: Log, args) -> str | None:
    scale = log.training[-1].get("logit_scale", 0) if log.training else 0
    first = log.training[0].get("logit_scale", 0) if log.training else 0
    if scale < 0.99 * MAX_SCALE or first > 0.9 * MAX_SCALE:  # CLIP's own weights begin there
        return None
    return (
        f"logit_scale has climbed from {first:.3g} to its bound of {MAX_SCALE}. That is usual late in a training "
        "on millions of pairs. Early, the batches are too easy or known by heart: take larger batches, a lower "
        "learning_rate, or fewer epochs."
    )


def scale_collapsed(log: Log, args) -> str | None:
    scale = log.training[-1].get("logit_scale", LOWEST_SCALE) if log.training else LOWEST_SCALE
    if scale >= LOWEST_SCALE:
        return None
    return (
        f"logit_scale has fallen to {scale:.3g} (it was {log.training[0]['logit_scale']:.3g}; healthy trainings have "
        f"10 to {MAX_SCALE}): the model finds no way to tell the pairs apart, and makes all alike. Check that "
        "each text belongs to its picture (check_data: true), set mask_duplicates if captions repeat, or lower the "
        f"learning_rate of {args.learning_rate:g}."
    )


def collapsed_embeddings(log: Log, args) -> str | None:
    cosines = {"texts": log.recent("text_cosine"), "pictures": log.recent("image_cosine")}
    alike = [f"{kind} (mean cosine {cosine:.3f})" for kind, cosine in cosines.items() if cosine > COLLAPSED_COSINE]
    if not alike or not log.is_settled:
        return None
    return (
        f"the embeddings of different {' and of different '.join(alike)} have become one point: nothing can be found "
        f"with them. Start again from earlier weights with a lower learning_rate than {args.learning_rate:g} and a "
        "longer warm-up; if they were so from the start, check that texts and pictures differ (check_data: true)."
    )


def slow_data(log: Log, args) -> str | None:
    steps = log.training[-1]["step"] - log.begin if log.training else 0
    # The first log has the start of the workers in it, and what the disk did not have in memory.
    first = next((entry["step"] for entry in log.training if entry["step"] > log.begin), 0)
    wait = log.recent("data_wait", since=first)
    if steps < FEWEST_STEPS or not wait > MUCH_WAITING:
        return None
    mends = [f"more dataloader_num_workers than {args.dataloader_num_workers}"]
    if args.image_feature_cache == "off" and not args.images_change:
        mends.append("image_feature_cache: auto, which puts each picture through the locked tower once")
    mends.append("smaller image files, or a faster disk")
    return f"{wait:.0%} of the time goes by in waiting for data. What helps: {'; '.join(mends)}."


def no_negatives(log: Log, args) -> str | None:
    if not log.training or log.recent("ln_batch") != 0 or args.world_size * args.per_device_train_batch_size == 1:
        return None
    return (
        "there is one good pair in a batch: it has no negatives to be told from, and nothing is learnt. Check which "
        "pictures are left out, and take more pairs in a batch; gradient_accumulation_steps adds none."
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


class NameSymptoms(TrainerCallback):
    """Warns once of each symptom, in the log of the first process."""

    def __init__(self):
        self._log: Log | None = None
        self._named: set[Callable] = set()

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
        self._log = None  # an evaluation behind it may be of other weights

    def _new(self, args) -> Iterable[str]:
        for symptom in SYMPTOMS:
            sentence = symptom not in self._named and symptom(self._log, args)
            if sentence:
                self._named.add(symptom)
                yield sentence


def _repeated(ids: np.ndarray) -> float:
    """The share of all other pairs that have the text or the picture of a pair, of (n, 2) ids of both."""
    n, counts = len(ids), [np.unique(column, return_counts=True)[1] for column in ids.T]
    both = np.unique(ids, axis=0, return_counts=True)[1]
    text, image, twins = ((count * (count - 1)).sum() / max(n * (n - 1), 1) for count in (*counts, both))
    return text + image - twins
