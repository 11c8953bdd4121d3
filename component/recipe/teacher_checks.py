"""Checks of the keys by which a model learns from a teacher."""

from component.recipe.require import require_apart, require_number


def check_teacher(args) -> None:
    """What can be checked without the teacher; `component.training.teacher` compares the models. Raises ValueError."""
    require_number("distill_weight", args.distill_weight, "a number above 0", lambda n: n > 0)
    if args.distill_from:
        require_apart(args, "distill_from", "fsdp", "deepspeed")
        if args.distill_cache == "off":
            raise ValueError("`distill_cache` is off, but the teacher's embeddings are always kept: name a folder.")
        return
    for key, is_given in (
        ("distill_weight", args.distill_weight != type(args).distill_weight),
        ("distill_cache", args.distill_cache != "off"),
    ):
        if is_given:
            raise ValueError(f"`{key}` is given, but without `distill_from` there is no teacher: set it.")
