"""The keys of transformers 4.18 to today: what they are called now, or why they have no effect any more."""

import difflib
import logging
import re
from typing import Any

from component.recipe.json_file import as_type

logger = logging.getLogger(__name__)

RENAMED = {
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
    "activation_checkpointing": "gradient_checkpointing",  # the other way round: of today, for older transformers
}
VALUES = {
    ("optim", "adamw_hf"): "adamw_torch",
    ("optim", "adamw_apex_fused"): "adamw_torch_fused",
    ("log_level", -1): "passive",
    ("log_level_replica", -1): "passive",
}
# Keys whose choice is gone, and what happens instead.
RETIRED = {
    **dict.fromkeys(
        ("fp16_backend", "fp16_opt_level", "half_precision_backend"), "fp16 and bf16 are torch's own, without apex"
    ),
    **dict.fromkeys(("tpu_metrics_debug", "tpu_num_cores"), "nothing here is made for TPUs"),
    **dict.fromkeys(("mp_parameters", "ray_scope", "past_index"), "what it was for is not done here"),
    **dict.fromkeys(("jit_mode_eval", "use_ipex"), "evaluation runs as training does"),
    **dict.fromkeys(("dispatch_batches", "split_batches"), "each process reads its own part of each batch"),
    "group_by_length": "texts of like lengths are grouped inside of each batch, see text_group_size",
    "include_inputs_for_metrics": "the metrics are those of retrieval",
    "include_tokens_per_second": "the logs have pairs_per_second",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR has taken its place",
    "save_safetensors": "weights are always saved as safetensors",
    "sharded_ddp": "fsdp has taken its place",
    "use_legacy_prediction_loop": "there is one loop for evaluation",
    "use_mps_device": "a GPU is used where there is one",
}
SHARDING = {"full_shard", "shard_grad_op", "offload", "auto_wrap"}  # options of `fsdp` when it was a string


def translate(given: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Replace keys and values of older versions by today's; a key of today's wins over its older name.

    Args:
        known: the keys of today.

    Raises:
        ValueError: a key that nobody knows (the message proposes the nearest), or an older key with a value that has
            no meaning today.
    """
    # transformers writes <HUB_TOKEN> in place of a token.
    given = {key: None if re.fullmatch(r"<[A-Z_]+_TOKEN>", str(value)) else value for key, value in given.items()}
    today = {key: value for key, value in given.items() if key in known}
    older = {key: value for key, value in given.items() if key not in known}
    _translate_warmup_ratio(older, today)
    _translate_hub(older, today)
    _translate_fsdp(older, today)
    if as_type("adafactor", older.pop("adafactor", None), bool | None):
        today.setdefault("optim", "adafactor")
    for key, value in older.items():
        if key in RENAMED:
            if value is not None:
                today.setdefault(RENAMED[key], value)
        elif key in RETIRED:
            logger.warning("`%s` has no effect in this version (%s); remove it.", key, RETIRED[key])
        else:
            near = difflib.get_close_matches(key, [*known, *RENAMED, "warmup_ratio"], n=1)
            raise ValueError(f"Unknown argument `{key}`." + (f" Did you mean `{near[0]}`?" if near else ""))
    for (key, old), new in VALUES.items():
        if today.get(key) == old:
            logger.warning("`%s` %s is gone from transformers: %s has taken its place.", key, old, new)
            today[key] = new
    return today


def _translate_warmup_ratio(older: dict[str, Any], today: dict[str, Any]) -> None:
    """transformers 5 reads a warmup_steps below 1 as a share of all steps."""
    ratio = as_type("warmup_ratio", older.pop("warmup_ratio", None), float | None)
    if not ratio:
        return
    if not 0 < ratio < 1:  # 1 would be one step
        raise ValueError(f"`warmup_ratio` is {ratio}; expected a share of all steps, from 0 to below 1.")
    if not as_type("warmup_steps", today.get("warmup_steps"), float | None):
        today["warmup_steps"] = ratio


def _translate_hub(older: dict[str, Any], today: dict[str, Any]) -> None:
    name, organization = older.pop("push_to_hub_model_id", None), older.pop("push_to_hub_organization", None)
    if name:
        today.setdefault("hub_model_id", f"{organization}/{name}" if organization else name)
    elif organization:
        raise ValueError("`push_to_hub_organization` alone names no model: set hub_model_id to organization/model.")


def _translate_fsdp(older: dict[str, Any], today: dict[str, Any]) -> None:
    """The options that stood in the string `fsdp`, and in keys of their own, stand in fsdp_config now."""
    config: dict[str, Any] = {}
    if size := older.pop("fsdp_min_num_params", None):
        config.update(min_num_params=size, auto_wrap_policy="SIZE_BASED_WRAP")
    if layers := older.pop("fsdp_transformer_layer_cls_to_wrap", None):
        config.update(transformer_layer_cls_to_wrap=layers)
    value = today.get("fsdp")
    if isinstance(value, str) and value.lower() not in ("true", "false", "1", "0"):
        value = value.replace(",", " ").split()
    if isinstance(value, list):
        unknown = [option for option in map(str, value) if option not in SHARDING]
        if unknown:
            raise ValueError(f"`fsdp` holds {', '.join(unknown)}; expected true, or of {', '.join(sorted(SHARDING))}.")
        today["fsdp"] = bool(value)
        if "shard_grad_op" in value:
            config["reshard_after_forward"] = False
        if "offload" in value:
            config["cpu_offload"] = True
    if not (config and today.get("fsdp")):
        return
    given = today.get("fsdp_config") or {}
    if not isinstance(given, dict):
        raise ValueError(f"`fsdp_config` is a file: write {', '.join(config)} into it, and set fsdp to true.")
    today["fsdp_config"] = {**config, **given}
