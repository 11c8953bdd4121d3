"""All checks of a recipe, in the order in which they report faults. Each raises ValueError and assigns nothing."""

from component.recipe.own_checks import (
    check_files,
    check_image_feature_cache,
    check_image_vectors,
    check_loss,
    check_model,
    check_parallel,
    check_text_augmentation,
)
from component.recipe.teacher_checks import check_teacher
from component.recipe.trainer_checks import (
    check_compiler,
    check_evaluation,
    check_numbers,
    check_optimizer,
    check_packages,
    check_unsupported,
    check_wandb,
    check_words,
    check_workers,
)
from component.recipe.tuning_checks import check_freeze_text, check_learning_rates, check_lora

_CHECKS = (
    check_files,
    check_numbers,
    check_words,
    check_model,
    check_text_augmentation,
    check_image_vectors,
    check_image_feature_cache,
    check_loss,
    check_freeze_text,
    check_lora,
    check_learning_rates,
    check_teacher,
    check_evaluation,
    check_workers,
    check_packages,
    check_unsupported,
)
_CHECKS_WITH_DEVICES = (check_parallel, check_wandb, check_optimizer, check_compiler)


def check_recipe(args) -> None:
    """Everything that can be checked before transformers has detected the devices."""
    for check in _CHECKS:
        check(args)


def check_with_devices(args) -> None:
    """The rest."""
    for check in _CHECKS_WITH_DEVICES:
        check(args)
