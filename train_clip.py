"""Train BertCLIP: a JSON of arguments in, checkpoints and results out."""

import argparse
import logging
import signal
import sys

logger = logging.getLogger("train_clip")


def main() -> str | int | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_args_file", default="train_args/train_clip.json", help="JSON of training arguments")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the JSON; repeatable"
    )
    options = parser.parse_args()

    # Only now, because these imports take seconds: --help and a mistyped option are answered at once.
    from component.argument import load_arguments
    from component.datacollator import PairCollator
    from component.trainer import CLIPTrainer
    from component.training.build import cache_images, describe, load_datasets, load_model, record
    from component.training.interruption import Interrupted, LostProcess
    from component.training.resume import checkpoint_to_resume

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        args = load_arguments(options.train_args_file, options.set)
        log_on_first_process(args.process_index)
        checkpoint = checkpoint_to_resume(args)
        model, processor = load_model(args)
        train_dataset, test_dataset = load_datasets(args, processor)
        for dataset in filter(None, (train_dataset, test_dataset)):
            dataset.require_an_image()
        describe(train_dataset, test_dataset)
        record(args)
        cache_images(args, model, train_dataset, test_dataset)
    except (ValueError, OSError, ImportError) as error:
        return f"train_clip.py: {error}"

    trainer = CLIPTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        data_collator=PairCollator(processor.tokenizer.pad_token_id, args.group_size),
        processing_class=processor,
    )
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted as interruption:
        logger.warning(
            "%s: checkpoint-%d is saved in %s. To go on, start again with resume_from_checkpoint auto.",
            interruption,
            trainer.state.global_step,
            args.output_dir,
        )
        return 128 + interruption.signal  # as a shell reports a process that the signal ended
    except LostProcess as error:
        return f"train_clip.py: {error}"
    trainer.save_final()
    trainer.save_state()
    report(trainer, "train", result.metrics)
    if test_dataset is not None:
        report(trainer, "test", trainer.evaluate())


def log_on_first_process(process_index: int) -> None:
    for name in ("train_clip", "component"):
        logging.getLogger(name).setLevel(logging.INFO if process_index == 0 else logging.ERROR)


def report(trainer, split: str, metrics: dict) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics, combined=False)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C outside of training has nothing to save: no traceback
    status = main()
    if not isinstance(status, str):  # after an error, the other processes may not answer
        from component.training.interruption import leave_group

        leave_group()
    sys.exit(status)
