"""LoRA, and learning rates by part."""

from component.ground.optional import import_optional
from component.recipe.json_file import as_type
from component.recipe.trainer_checks import require_number

TOWERS = ("text_model", "vision_model")


def check_lora(args) -> None:
    if isinstance(args.lora_targets, str):
        args.lora_targets = [args.lora_targets]
    if args.lora_targets is not None and not (args.lora_targets and all(args.lora_targets)):
        raise ValueError(f"`lora_targets` is {args.lora_targets}; expected names of layers, or null.")
    if args.lora_rank is None:
        for key in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(args, key):
                raise ValueError(f"`{key}` is given, but without `lora_rank` there is no LoRA: set it, e.g. to 8.")
        return
    for key in ("fsdp", "deepspeed"):
        if getattr(args, key):
            raise ValueError(
                f"`lora_rank` does not go with `{key}`, which shares out an optimizer state that LoRA hardly has: "
                "leave one of them out."
            )
    import_optional("peft", "`lora_rank`")


def check_learning_rates(args) -> None:
    """What can be told without the model; whether it has such weights, `component.training.learning_rates` sees."""
    rates, decay = args.learning_rates, args.layer_decay
    if rates is not None:
        if not (isinstance(rates, dict) and rates):
            raise ValueError(f'`learning_rates` is {rates!r}; expected {{"prefix of names": rate}}, or null.')
        args.learning_rates = {prefix: _rate(f"learning_rates.{prefix}", rate) for prefix, rate in rates.items()}
    if isinstance(decay, dict):
        if not decay or any(tower not in TOWERS for tower in decay):
            raise ValueError(f"`layer_decay` is {decay!r}; expected a number, or one for each of {', '.join(TOWERS)}.")
        args.layer_decay = {tower: _decay(f"layer_decay.{tower}", number) for tower, number in decay.items()}
    elif decay is not None:
        args.layer_decay = _decay("layer_decay", decay)
    if args.optim_target_modules and not (rates is None and decay is None):
        name = "layer_decay" if rates is None else "learning_rates"
        raise ValueError(f"`{name}` does not go with `optim_target_modules`: leave one of them out.")


def _rate(key: str, value) -> float:
    return require_number(key, as_type(key, value, float), "a number from 0", lambda n: n >= 0)


def _decay(key: str, value) -> float:
    return require_number(key, as_type(key, value, float), "a number above 0, up to 1", lambda n: 0 < n <= 1)
