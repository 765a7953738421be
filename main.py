"""Train GST. `python main.py -h` lists the options; docs/TRAINING.md has the recipes.

On one machine, with one GPU, several (DataParallel) or none:

    python main.py --root_path DATA --dataset somethingv1

One process for each of 8 GPUs, which is faster:

    torchrun --nproc_per_node=8 main.py --root_path DATA --dataset somethingv1 --sync_bn --resume auto

Two machines with 8 GPUs each (the same command on both; HOST is one of them):

    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \\
        main.py --root_path DATA --dataset somethingv1 --sync_bn --resume auto

Slurm (a job that requeues itself until training is finished):

    sbatch docs/slurm.sbatch
"""

from argparse import Namespace

import torch

from classes import describe_balance, describe_flips
from engine import PixelModel, Predictor, evaluate, train_one_epoch
from frames.resize import decodes_only
from inference.fuse import fuse, to_channels_last
from inference.load import load_fused
from inference.onnx_model import choose_devices
from loader import ClipLoader, evaluation_batches, make_loaders, open_datasets, open_evaluation
from models import TemporalModel, multiply_adds
from opts import describe_recipe, evaluation_batch_size, parse_training_options, parser
from training.describe import map_labels
from training.loss import TrainingLoss, find_class_weights
from training.optim import make_optimizer
from training.pretrained import load_initial_weights
from training.run import Run
from training.state import TrainState
from transforms import evaluation_transform
from utils.cli import log, pluralize, run_program
from utils.distributed import World, init_distributed, leave, use_deterministic_kernels
from utils.metrics import check_result
from utils.precision import DTYPES, evaluation_precision, training_precision, warn_if_emulated


def main(args: Namespace) -> None:
    """Train a model, or evaluate a checkpoint on the validation list with --evaluate."""
    world = init_distributed(args.gpus, args.sync_bn, args.compile)
    if args.evaluate:
        evaluate_checkpoint(args, world)
        return
    run = Run(args, world)
    checkpoint = run.find_checkpoint() or {}
    checkpoint_args = checkpoint.get("options", {})
    precision = training_precision(args.amp, checkpoint_args.get("amp"), world.device)
    val_precision = evaluation_precision(None, precision.amp, world.device)
    warn_if_emulated(precision, world.device)

    # Data: lists and videos are checked first, because later steps are slow
    data = open_datasets(args, checkpoint)
    class_weights = find_class_weights(args.class_weights, data.train.labels, data.categories, data.mirrored)
    if checkpoint:
        run.check_data(checkpoint, data, class_weights)
    labels, val_labels = (videos.labels[videos.included] for videos in (data.train, data.val))
    balance, warning = describe_balance(data.categories, labels, val_labels)
    log.info(balance)
    if warning:
        log.warning(warning)
    val_batch_size = evaluation_batch_size(None, args.batch_size, len(world.devices))
    train_loader, val_loader = make_loaders(args, world, data, val_batch_size)

    # Model, with the weights of a checkpoint, ImageNet weights or random weights
    torch.manual_seed(args.seed)
    model = TemporalModel(
        len(data.categories),
        args.num_segments,
        args.type,
        args.arch,
        args.alpha,
        args.beta,
        args.dropout,
        args.input_size,
        args.consensus,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    costs = f"{num_parameters / 1e6:.2f} M parameters, {multiply_adds(model) / 1e9:.1f} G multiply-adds"
    log.info(
        f"{model.description}: {costs}, {args.num_segments} frames of {args.input_size} x {args.input_size}"
    )
    has_new_classifier = load_initial_weights(model, args, checkpoint, data.categories, world)
    if args.freeze:
        model.freeze(args.freeze)
        num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        log.info(f"frozen: {', '.join(args.freeze)}; {num_trainable / 1e6:.2f} M parameters are trained")
    model.to(world.device)
    if args.deterministic:
        use_deterministic_kernels(world.device)
    to_channels_last(model, world.device, for_training=True)
    log.info(world.describe(args.batch_size))
    for line in describe_flips(data.categories, data.mirrored):
        log.info(line)
    log.info(f"precision: training in {precision}; validation in {val_precision}")

    # Loss, optimizer, and everything else that changes during training
    criterion = TrainingLoss(args.label_smoothing, args.mixup, class_weights).to(world.device)
    optimizer = make_optimizer(model, args, args.lr_mult_new if has_new_classifier else 1.0)
    if args.lr_mult_new != 1 and not has_new_classifier:
        log.info("--lr_mult_new has no effect: the classifier did not start from scratch")
    scaler = torch.amp.GradScaler(world.device.type, enabled=precision.amp == "fp16")
    metadata = run.metadata(data, precision.amp, has_new_classifier, class_weights)
    state = TrainState(model, optimizer, scaler, world, metadata)
    state.epoch = args.start_epoch or 0
    if checkpoint:
        state.resume(checkpoint, run.checkpoint)
        del checkpoint
    for line in describe_recipe(args):
        log.info(line)
    pixel_model = PixelModel(model, precision.amp, compiled=args.compile)
    ddp_model = world.wrap(pixel_model, for_training=True, sync_bn=args.sync_bn)

    # Training: after any step, a checkpoint may be saved, and a signal may stop the run
    sampler = train_loader.batch_sampler
    run.begin(state, data, sampler)
    for epoch in range(state.epoch, args.epochs):
        state.batch_sizes = sampler.start(epoch, state.step)
        for step in train_one_epoch(ddp_model, train_loader, state, args, criterion):
            run.after_step(state, step)
        run.log_training_results(state)
        result = None
        if run.is_validation_due(epoch):
            world.broadcast_buffers(model)
            predictor = Predictor(fuse(model, world.device, DTYPES[val_precision.amp]), world)
            result = evaluate(val_loader, predictor, world, args.print_freq, run.interruption.get_signal)
            if result:
                log.info(f"{result}{data.val.coverage()}")
        run.end_epoch(state, result)
    if run.files.best.exists():
        log.info(f"best checkpoint, {state.describe_best()}: {run.files.best}")
    leave()


def evaluate_checkpoint(args: Namespace, world: World) -> None:
    """Evaluate the checkpoint of `--resume` on the validation list, like the validation during training."""
    # Model
    world = choose_devices(args.resume, args, world)
    loaded, precision = load_fused(args.resume, args, world, args.amp, plain=args.compile)
    checkpoint, path = loaded.checkpoint, loaded.path
    warn_if_emulated(precision, world.device)
    log.info(loaded.describe())

    # Data
    preferred = loaded.options.get("source", "frames")
    transform = evaluation_transform(loaded.model.input_size)
    paths, val_set = open_evaluation(args, loaded.model.num_segments, transform, preferred)
    map_labels(val_set, checkpoint, paths.categories, path)
    clips = pluralize(len(val_set.included), "validation clip")
    log.info(f"{args.dataset}: {clips} from {paths.source}, {len(paths.categories)} classes")
    batch_size = evaluation_batch_size(
        None, min(args.batch_size, loaded.options.get("batch_size", args.batch_size)), len(world.devices)
    )
    batches = evaluation_batches(val_set.included, batch_size, world.rank, world.size)
    loader = ClipLoader(val_set, batches, args.workers, decodes_only(args.resize, world.device))

    # Evaluation
    log.info(world.describe(batch_size * world.size))
    log.info(f"precision: validation in {precision}")
    predictor = Predictor(loaded.model, world, compiled=args.compile)
    result = evaluate(loader, predictor, world, args.print_freq)
    log.info(f"{result}{val_set.coverage()}")
    check_result(result, path)
    leave()


if __name__ == "__main__":
    parser.epilog = __doc__.partition("\n\n")[2]
    run_program(main, parse_training_options)
