"""Checks of transformers' own keys, where it would fail in the middle of a run or ignore a value silently.

Each raises ValueError and assigns nothing.
"""

import copy
import logging
import os
from collections.abc import Callable
from enum import Enum
from importlib.util import find_spec

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from component.metrics import retrieval_metrics
from component.recipe.require import in_one_line, require_known, require_number

logger = logging.getLogger(__name__)

WORDS: dict[str, type[Enum]] = {
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
}
# (keys, what is expected, test); null passes where the type of the key allows it.
NUMBERS: list[tuple[str, str, Callable[[float], bool]]] = [
    ("learning_rate weight_decay max_grad_norm adam_epsilon eval_delay", "a number from 0", lambda n: n >= 0),
    ("num_train_epochs", "a number above 0", lambda n: n > 0),
    ("adam_beta1 adam_beta2", "a number from 0 to below 1", lambda n: 0 <= n < 1),
    ("min_crop_area", "a share between 0 and 1, or null", lambda n: 0 < n < 1),
    ("per_device_train_batch_size per_device_eval_batch_size", "a number of pairs from 1", lambda n: n >= 1),
    ("contrastive_chunk_size text_group_size", "a number of pairs from 1, or null", lambda n: n >= 1),
    ("lora_rank early_stopping_patience", "a whole number from 1, or null", lambda n: n >= 1 and n == int(n)),
    ("lora_alpha", "a number above 0, or null", lambda n: n > 0),
    ("text_template_probability text_noise", "a share from 0 to 1", lambda n: 0 <= n <= 1),
    ("lora_dropout", "a number from 0 to below 1", lambda n: 0 <= n < 1),
    ("gradient_accumulation_steps ddp_timeout", "a whole number from 1", lambda n: n >= 1),
    ("dataloader_prefetch_factor eval_accumulation_steps", "a whole number from 1, or null", lambda n: n >= 1),
    ("dataloader_num_workers save_total_limit", "a whole number from 0", lambda n: n >= 0),
    ("max_steps", "a whole number from 1, or -1 for num_train_epochs", lambda n: n >= 1 or n == -1),
    (
        "logging_steps save_steps eval_steps",
        "a number of steps from 1, or a share of all below 1",
        lambda n: 0 < n < 1 or n >= 1 and n == int(n),
    ),
    (
        "warmup_steps",
        "a number of steps from 0, or a share of all below 1",
        lambda n: 0 <= n < 1 or n >= 1 and n == int(n),
    ),
    ("seed data_seed", "a whole number from 0 to 4294967295", lambda n: 0 <= n < 2**32),
    ("max_seq_length", "3 or more, for [CLS], [SEP] and one token", lambda n: n >= 3),
]


def check_numbers(args) -> None:
    for keys, expected, is_valid in NUMBERS:
        for key in keys.split():
            if getattr(args, key) is not None:
                require_number(key, getattr(args, key), expected, is_valid)


def check_words(args) -> None:
    for key, words in WORDS.items():
        require_known(key, getattr(args, key), [word.value for word in words])
    for key in ("log_level", "log_level_replica"):
        require_known(key, getattr(args, key), trainer_log_levels)


def check_evaluation(args) -> None:
    if args.eval_strategy != "no" and not args.test_file:
        raise ValueError(f"`eval_strategy` is {args.eval_strategy!r} but there is no `test_file` to evaluate on.")
    metric = args.metric_for_best_model
    stops_early = args.early_stopping_patience is not None
    if stops_early and args.eval_strategy == "no":
        raise ValueError("`early_stopping_patience` counts evaluations, but there are none: set eval_strategy.")
    if metric is None:
        for key, asks in (("save_strategy", args.save_strategy == "best"), ("early_stopping_patience", stops_early)):
            if asks:
                raise ValueError(
                    f"`{key}` is {getattr(args, key)}, but by which metric? Set metric_for_best_model, e.g. to "
                    "mean_recall."
                )
        return
    if stops_early and not args.load_best_model_at_end:
        logger.warning(
            "`early_stopping_patience` without load_best_model_at_end: checkpoint-final will contain the last "
            "weights, not the best ones."
        )
    one = torch.ones(1, 1)
    known = ["loss", *retrieval_metrics(one, one, np.zeros(1), np.zeros(1))]
    require_known("metric_for_best_model", metric.removeprefix("eval_"), known)


def check_workers(args) -> None:
    for key in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if getattr(args, key) and not args.dataloader_num_workers:
            raise ValueError(f"`{key}` is {getattr(args, key)}, but there are no workers: set dataloader_num_workers.")


def check_packages(args) -> None:
    """Packages and accounts that other keys need."""
    if args.deepspeed and find_spec("deepspeed") is None:
        raise ValueError("`deepspeed` needs a package that is not installed: pip install deepspeed")
    for name in args.report_to:
        require_known("report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
        if name in INTEGRATION_TO_CALLBACK and name not in [*get_available_reporting_integrations(), "flyte"]:
            raise ValueError(
                f"`report_to` is {name}, whose package is not installed. Install it, or set report_to to none."
            )
    if args.push_to_hub:
        from huggingface_hub import get_token

        if not (args.hub_token or get_token()):
            raise ValueError("`push_to_hub` needs a token: run `hf auth login`, or set HF_TOKEN, or leave it out.")


def check_wandb(args) -> None:
    """Let wandb ask for its login now, not after the data is read. Without a terminal, it raises."""
    if args.process_index or "wandb" not in args.report_to or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    import wandb

    try:
        wandb.login()
    except Exception as error:  # UsageError without credentials, others from the network
        raise ValueError(
            "`report_to` wandb needs a login: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline "
            f"({in_one_line(error)})."
        ) from error


def check_unsupported(args) -> None:
    """Keys that this model and trainer do not support."""
    if args.use_liger_kernel:
        raise ValueError("`use_liger_kernel` does not support this model: leave it out.")
    if args.neftune_noise_alpha:
        raise ValueError("`neftune_noise_alpha` is for the embeddings of a language model: leave it out.")
    if args.enable_jit_checkpoint:
        raise ValueError("`enable_jit_checkpoint` is not needed: SIGTERM saves a checkpoint here. Leave it out.")
    if args.parallelism_config:
        raise ValueError("`parallelism_config` does not support this model: use fsdp or deepspeed, or leave it out.")
    if "underflow_overflow" in str(args.debug):
        raise ValueError("`debug` underflow_overflow cannot inspect this model's inputs: leave it out.")
    if args.dataloader_multiprocessing_context:
        logger.warning("`dataloader_multiprocessing_context` has no effect: workers start the way torch starts them.")
    if args.lr_scheduler_type == "constant" and args.warmup_steps:
        logger.warning("`lr_scheduler_type` constant ignores warmup_steps; constant_with_warmup uses them.")


def check_optimizer(args) -> None:
    """Build optimizer and schedule for one weight, to find missing packages and wrong or missing arguments."""
    from transformers import Trainer, get_scheduler

    # These optimizers need the modules of the real model.
    if args.optim_target_modules:
        return
    keys = f"`optim` {args.optim.value}, `optim_args` {args.optim_args}"
    try:
        model = nn.Linear(1, 1)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        _require_known_optim_args(args, model)
        optimizer = kind(**{"params": model.parameters(), **options})
        keys = f"`lr_scheduler_type` {args.lr_scheduler_type.value}, `lr_scheduler_kwargs` {args.lr_scheduler_kwargs}"
        steps = args.max_steps if args.max_steps > 0 else 10_000
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    except Exception as error:  # each optimizer's package raises its own classes
        raise ValueError(f"{keys}: {in_one_line(error)}") from error


def _require_known_optim_args(args, model: nn.Module) -> None:
    """transformers ignores keys of `optim_args` that the optimizer does not have."""
    from transformers import Trainer

    def options(optim_args: str | None):
        other = copy.copy(args)
        other.optim_args = optim_args
        return Trainer.get_optimizer_cls_and_kwargs(other, model)

    def has_effect(key: str) -> bool:
        try:
            return options(f"{key}=?") != options(None)
        except Exception:  # the key is known: `?` is not a number
            return True

    keys = [item.partition("=")[0].strip() for item in (args.optim_args or "").split(",")]
    if unknown := [key for key in keys if key and not has_effect(key)]:
        raise ValueError(f"this optimizer has no argument {', '.join(unknown)}")


def check_compiler(args) -> None:
    """Let torch validate backend and mode. Nothing is compiled until the model runs."""
    if not args.torch_compile:
        return
    backend, mode = args.torch_compile_backend.lower(), args.torch_compile_mode
    require_known("torch_compile_backend", backend, [known.value.lower() for known in DynamoBackend])
    try:
        torch.compile(nn.Linear(1, 1), backend=backend, mode=mode)
    except Exception as error:  # each backend raises its own classes
        raise ValueError(
            f"`torch_compile_backend` {backend}, `torch_compile_mode` {mode}: {in_one_line(error)}"
        ) from error
