"""Checks of a locked text tower, of LoRA and of learning rates by part. Each raises ValueError and assigns nothing."""

from component.ground.optional import import_optional
from component.recipe.require import require_apart, require_number

TOWERS = ("text_model", "vision_model")


def check_freeze_text(args) -> None:
    if args.texts_change and args.text_feature_cache != "off":
        raise ValueError(
            f"`text_feature_cache` is {args.text_feature_cache}, but features can be kept only if they are the same "
            "in every step. Set it to off, or train with freeze_text true and without text_templates and text_noise."
        )
    if not args.freeze_text:
        return
    if args.lora_rank is not None:
        raise ValueError("`lora_rank` trains the text tower, and `freeze_text` locks it: leave one of them out.")
    if args.layer_decay is not None and args.freeze_vision is True:
        raise ValueError("`layer_decay` has no effect, because both towers are locked: leave it out.")


def check_lora(args) -> None:
    if args.lora_targets is not None and not (args.lora_targets and all(args.lora_targets)):
        raise ValueError(f"`lora_targets` is {args.lora_targets}; expected names of layers, or null.")
    if args.lora_rank is None:
        for key in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(args, key):
                raise ValueError(f"`{key}` is given, but without `lora_rank` there is no LoRA: set it, e.g. to 8.")
        return
    why = ", which shards an optimizer state that LoRA hardly has"
    require_apart(args, "lora_rank", "fsdp", "deepspeed", why=why)
    import_optional("peft", "`lora_rank`")


def check_learning_rates(args) -> None:
    """What can be checked without the model. `component.training.learning_rates` checks the names of the weights."""
    rates, decay = args.learning_rates, args.layer_decay
    if rates is not None:
        if not (isinstance(rates, dict) and rates):
            raise ValueError(f'`learning_rates` is {rates!r}; expected {{"prefix of names": rate}}, or null.')
        for prefix, rate in rates.items():
            require_number(f"learning_rates.{prefix}", rate, "a number from 0", lambda n: n >= 0)
    if isinstance(decay, dict):
        if not decay or any(tower not in TOWERS for tower in decay):
            raise ValueError(f"`layer_decay` is {decay!r}; expected a number, or one for each of {', '.join(TOWERS)}.")
        for tower, factor in decay.items():
            _require_decay(f"layer_decay.{tower}", factor)
    elif decay is not None:
        _require_decay("layer_decay", decay)
    for key in ("learning_rates", "layer_decay"):
        if getattr(args, key) is not None:
            require_apart(args, key, "optim_target_modules")


def _require_decay(key: str, factor: float) -> None:
    require_number(key, factor, "a number above 0, up to 1", lambda n: 0 < n <= 1)
