"""Train BertCLIP: a JSON of arguments in, checkpoints and results out."""

import logging
import signal
import sys

from component.ground.command import Parser, input_file, run_script

logger = logging.getLogger("train_clip")


def main() -> int | None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--train_args_file",
        type=input_file,
        default="train_args/train_clip.json",
        help="JSON of training arguments (%(default)s)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the JSON; repeatable"
    )
    options = parser.parse_args()

    # Only now, because these imports take seconds: --help and a mistyped option are answered at once.
    from component.argument import load_arguments
    from component.ground.lock import sole_writer

    args = load_arguments(options.train_args_file, options.set)
    log_on_first_process(args.process_index)
    with sole_writer(args.output_dir if args.process_index == 0 else None, inside=True):
        return check(args) if args.check_data else train(args)


def check(args) -> None:
    from component.report.data_check import write_data_check
    from component.training.build import load_model
    from component.training.check_data import check_data

    found = check_data(args, *load_model(args))
    if args.process_index == 0:
        logger.info("what was found is shown in %s", write_data_check(args.output_dir, found))


def train(args) -> int | None:
    from component.datacollator import PairCollator
    from component.report.curves import draw_training
    from component.trainer import CLIPTrainer
    from component.training.build import (
        cache_images,
        check_tokens,
        describe,
        load_datasets,
        load_model,
        record,
        require_a_step,
        require_hub,
        require_images,
        warn_of_texts,
    )
    from component.training.curves import WriteCurves
    from component.training.interruption import Interrupted
    from component.training.results import remove_results, write_results
    from component.training.resume import begin, checkpoint_to_resume

    checkpoint = checkpoint_to_resume(args)
    require_hub(args)
    model, processor = load_model(args)
    train_dataset, test_dataset = load_datasets(args, processor)
    require_images(train_dataset, test_dataset)
    describe(train_dataset, test_dataset)
    check_tokens(args, model, train_dataset, test_dataset)
    warn_of_texts(args, model, train_dataset, test_dataset)
    require_a_step(args, len(train_dataset))
    begin(args, checkpoint)
    record(args)
    train_dataset, test_dataset = cache_images(args, model, train_dataset, test_dataset)

    curves = WriteCurves(draw_training)
    trainer = CLIPTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        data_collator=PairCollator(processor.tokenizer.pad_token_id, args.group_size, args.group_costs),
        processing_class=processor,
        callbacks=[curves],
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
    finally:
        curves.write(args, trainer.state)  # also of a run that did not come to its end
        if args.auto_find_batch_size:
            record(args)  # with the batch that was found
    if trainer.took_steps:
        remove_results(args)
    trainer.save_final()
    trainer.save_state()
    if trainer.took_steps:  # else the results are those of the training that is long done
        write_results(trainer, "train", result.metrics)
    if test_dataset is not None:
        write_results(trainer, "test", trainer.evaluate())
        trainer.describe_final()
    if args.push_to_hub:
        trainer.push_to_hub()


def log_on_first_process(process_index: int) -> None:
    for name in ("train_clip", "component"):
        logging.getLogger(name).setLevel(logging.INFO if process_index == 0 else logging.ERROR)


if __name__ == "__main__":
    # SIGTERM and SIGINT are training's own. Outside of it there is nothing to save, and a process that waits for the
    # others would not hear of them: they end it at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = run_script(main, signals=(), log_format="%(asctime)s %(message)s")
    if status != 2:  # after an error, the other processes may not answer
        from component.training.interruption import leave_group

        leave_group()
    sys.exit(status)
