"""Train BertCLIP: a JSON of arguments in, checkpoints and results out."""

import argparse
import logging
import os
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


def load_model(args):
    """The model with its image tower locked as the arguments say, and its processor."""
    import torch
    from transformers import set_seed

    from component.model import BertCLIPModel
    from component.processor import load_processor

    set_seed(args.seed)  # the new text_projection is drawn here, before the Trainer sets its seed
    if args.load_from_bert_clip:
        model = BertCLIPModel.from_pretrained(args.clip_pretrain_path, dtype=torch.float32)
    else:
        model = BertCLIPModel.from_vision_text_pretrained(args.clip_pretrain_path, args.bert_pretrain_path)
    model.set_loss(args.loss_type)
    if args.trainable_vision_blocks is not None:
        model.lock_vision(args.trainable_vision_blocks)
    positions = model.config.text_config.max_position_embeddings
    if args.max_seq_length > positions:
        raise ValueError(f"`max_seq_length` is {args.max_seq_length}, but the text tower has {positions} positions.")
    tokenizer_path = None if args.load_from_bert_clip else args.bert_pretrain_path
    return model, load_processor(args.clip_pretrain_path, tokenizer_path, max_length=positions)


def load_datasets(args, processor):
    """The pairs for training, their pictures augmented as the arguments say, and those for testing, if any."""
    from component.dataset import PairDataset
    from component.image.transform import ImageTransform

    # Pictures that are decoded once, or tested on, are worth the exact decoder.
    transform = ImageTransform(
        processor.image_processor, args.min_crop_area, args.random_flip, draft=args.images_change
    )
    return tuple(
        PairDataset(file, args.image_path, processor, args.max_seq_length, transform, args.dataloader_num_workers)
        if file
        else None
        for file, transform in ((args.train_file, transform), (args.test_file, None))
    )


def describe(*datasets) -> None:
    """Log what the tables hold, and what of it is left out."""
    for dataset in filter(None, datasets):
        logger.info(
            "%s: %d pairs; left out for an empty text: %d; cut to max_seq_length: %d; repeated captions: %.1f%%",
            dataset.file,
            len(dataset),
            dataset.num_empty_texts,
            dataset.num_long_texts,
            100 * dataset.share_of_repeated_captions,
        )


def cache_images(args, model, *datasets) -> None:
    """Put every picture through the locked tower once, if the arguments allow it."""
    if args.image_feature_cache == "off":
        return
    import torch

    from component.training.feature_cache import FeatureCache, cache_features, fingerprint

    # In the precision of training, so that training on the cache is training without it.
    precision = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32
    tower = model.vision_model.to(args.device)

    @torch.no_grad()
    def encode(pixel_values):
        with torch.autocast(args.device.type, precision, enabled=precision != torch.float32):
            return tower(pixel_values.to(args.device)).pooler_output

    datasets = [dataset for dataset in datasets if dataset is not None]
    key = fingerprint(tower, datasets[0].transform.image_processor, str(precision))
    cache = FeatureCache(args.image_feature_cache, key, tower.config.hidden_size)
    for dataset in datasets:
        cache_features(
            dataset,
            cache,
            encode,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            show_progress=not args.disable_tqdm,
        )


def record(args) -> None:
    """Write down what runs: the resolved arguments, which train_clip.py can read again, and the versions."""
    import torch
    import transformers

    from component.files import write_json

    if args.process_index == 0:
        os.makedirs(args.output_dir, exist_ok=True)
        write_json(os.path.join(args.output_dir, "train_args.json"), args.to_dict())
        versions = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        write_json(os.path.join(args.output_dir, "versions.json"), versions)


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
