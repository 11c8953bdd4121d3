"""All checks of a recipe, in the order in which they report faults. Each raises ValueError and assigns nothing."""

from component.recipe import own_checks, teacher_checks, trainer_checks, tuning_checks


def check_recipe(args) -> None:
    """What can be checked before transformers has detected the devices."""
    own_checks.check_files(args)
    trainer_checks.check_numbers(args)
    trainer_checks.check_words(args)
    own_checks.check_model(args)
    own_checks.check_text_augmentation(args)
    own_checks.check_image_vectors(args)
    own_checks.check_image_feature_cache(args)
    own_checks.check_loss(args)
    tuning_checks.check_freeze_text(args)
    tuning_checks.check_lora(args)
    tuning_checks.check_learning_rates(args)
    teacher_checks.check_teacher(args)
    trainer_checks.check_evaluation(args)
    trainer_checks.check_workers(args)
    trainer_checks.check_packages(args)
    trainer_checks.check_unsupported(args)


def check_with_devices(args) -> None:
    """What depends on the devices and processes."""
    own_checks.check_parallel(args)
    trainer_checks.check_wandb(args)
    trainer_checks.check_optimizer(args)
    trainer_checks.check_compiler(args)
