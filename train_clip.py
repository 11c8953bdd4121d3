"""Train BertCLIP from a JSON of arguments: build model and data, check them, train, save and evaluate."""

import logging
import os
import shlex
import signal
import sys

from component.ground.command import TRY_AGAIN, run_script
from component.ground.options import Parser, input_file
from component.ground.quick_imports import quick_imports

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
    options, others = parser.parse_known_args()
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}; keys of the JSON are given by --set KEY=VALUE")

    # These imports take seconds. They follow the options, so that --help and a mistyped option are answered at once.
    with quick_imports():
        from component.argument import load_arguments
        from component.ground.lock import sole_writer

    args = load_arguments(options.train_args_file, options.set)
    log_on_first_process(args.process_index)
    with sole_writer(args.output_dir if args.process_index == 0 else None, inside=True):
        return check(args) if args.check_data else train(args)


def check(args) -> None:
    with quick_imports():
        from component.report.data_check import write_data_check
        from component.training.build import load_model
        from component.training.check_data import check_data

    found = check_data(args, *load_model(args))
    if args.process_index == 0:
        logger.info("the findings are shown in %s", write_data_check(args.output_dir, found))


def train(args) -> int | None:
    with quick_imports():
        from component.report.curves import draw_training
        from component.trainer import CLIPTrainer
        from component.training.build import load_model
        from component.training.curves import WriteCurves
        from component.training.data import load_datasets
        from component.training.interruption import Interrupted
        from component.training.locked_towers import cache_images, cache_texts
        from component.training.preflight import preflight
        from component.training.results import write_arguments
        from component.training.resume import begin, checkpoint_to_resume, finished_step
        from component.training.run_identity import compare_tables
        from component.training.shared_disk import require_shared_folders
        from component.training.spot_check import spot_check
        from component.training.teacher import load_teacher, with_teacher

    require_shared_folders(args)
    compare_tables(args)
    if step := finished_step(args):
        logger.info("the run in %s finished at step %d: there is nothing to train.", args.output_dir, step)
        return None

    # Build
    checkpoint = checkpoint_to_resume(args)
    model, processor = load_model(args)
    train_dataset, test_dataset = load_datasets(args, processor)
    teacher = load_teacher(args, model, processor)

    # Preflight
    preflight(args, model, train_dataset, test_dataset)
    spot_check(args, model, processor, train_dataset)

    # Train
    begin(args, checkpoint, model, processor, teacher and teacher.identity)
    train_dataset, test_dataset = cache_images(args, model, train_dataset, test_dataset)
    train_dataset, test_dataset = cache_texts(args, model, processor.tokenizer, train_dataset, test_dataset)
    if teacher:
        train_dataset = with_teacher(args, teacher, processor.tokenizer, train_dataset)
        teacher = None  # its embeddings are on disk
    curves = WriteCurves(draw_training)
    trainer = CLIPTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        processing_class=processor,
        callbacks=[curves],
    )
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted as interruption:
        logger.warning(
            "%s: checkpoint-%d is saved in %s. To continue, start again with resume_from_checkpoint auto.",
            interruption,
            trainer.state.global_step,
            args.output_dir,
        )
        return 128 + interruption.signal  # as a shell reports a process that a signal ended
    finally:
        curves.write(args, trainer.state)  # after a failure too
        if args.auto_find_batch_size:
            write_arguments(args)  # with the batch size that was found
    save_and_evaluate(trainer, result.metrics)


def save_and_evaluate(trainer, train_metrics: dict[str, float]) -> None:
    from component.training.results import remove_results, write_results
    from component.training.run_identity import mark_finished

    # A finished run that was resumed took no step: its results are those of the weights and stay.
    if trainer.took_steps:
        remove_results(trainer.args)
    trainer.save_final()
    trainer.save_state()
    if trainer.took_steps:
        write_results(trainer, "train", train_metrics)
    if trainer.eval_dataset is not None:
        write_results(trainer, "test", trainer.evaluate())
        trainer.describe_final()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    mark_finished(trainer.args, trainer.state.global_step)
    log_next_steps(trainer.args, trainer.model.config.has_image_half)


def log_next_steps(args, has_image_half: bool) -> None:
    def short(path: str) -> str:
        relative = os.path.relpath(path)
        return shlex.quote(path if relative.startswith("..") else relative)

    names = ("checkpoint-final", "similarity.html", "gallery")
    model, page, gallery = (short(os.path.join(args.output_dir, name)) for name in names)
    if not has_image_half:
        logger.info("the text tower is in %s. For use with the vectors of your images, export it:", model)
        for name in ("sentence-transformers", "onnx"):
            output = short(os.path.join(args.output_dir, name))
            logger.info("python export_model.py --model %s --format %s --output %s", model, name, output)
        return
    images = short(args.image_path) if os.path.isdir(args.image_path or "") else "FOLDER"
    logger.info("the model is in %s. Next, compare images with texts, or search images in the browser:", model)
    logger.info("python predict_similarity.py --model %s --html %s", model, page)
    logger.info("python search_image.py index --model %s --images %s --gallery %s", model, images, gallery)
    logger.info("python search_image.py serve --gallery %s", gallery)


def log_on_first_process(process_index: int) -> None:
    for name in ("train_clip", "component"):
        logging.getLogger(name).setLevel(logging.INFO if process_index == 0 else logging.ERROR)


if __name__ == "__main__":
    # During training, SIGTERM and SIGINT save a checkpoint. Before and after it there is nothing to save, and a
    # process that waits for others in a collective would not run a Python handler: the default ends it at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = run_script(main, signals=(), log_format="%(asctime)s %(message)s", needs_stdout=False)
    if status not in (2, TRY_AGAIN):  # after an error, the other processes may not answer
        from component.training.interruption import leave_group

        leave_group()
    sys.exit(status)
