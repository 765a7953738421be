"""The two loops: one epoch of training, one pass of evaluation."""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from frames.resize import Batch, DecodedClips, resize_clips
from inference.fuse import compile_function, compiler_errors, float32_convolutions
from models import TemporalModel
from training.loss import TrainingLoss
from training.optim import set_learning_rate
from training.state import Step, TrainState
from utils.cli import log
from utils.distributed import World
from utils.metrics import ClipMeters, ProgressLog, Result, average_views, averages, batch_sums, summarise
from utils.precision import DTYPES


class PixelModel(nn.Module):
    """A model whose input is pixels: it resizes and normalises them, and calls the model under autocast.

    Resizing and autocast are in `forward`, so that each device of DataParallel processes its part of the
    batch, and because the threads of DataParallel do not inherit autocast's dtype.

    Input:  uint8, videos x (views x) frames x height x width x channel (RGB); or decoded clips
    Output: float32, videos x (views x) classes (logits)

    Args:
        model: takes clips x frames x channel x height x width; has `input_mean` and `input_std`.
        amp: a key of `utils.precision.DTYPES`, for autocast; 'off' computes in the type of the weights.
        max_clips: maximum number of clips to compute at once; a video may have more views.
        compiled: compile the model for the size of the first batch. Other sizes, such as that of the last
            batch, run without compilation, which would take longer than it saves.
    """

    def __init__(
        self,
        model: TemporalModel,
        amp: str = "off",
        max_clips: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.amp = amp
        self.max_clips = max_clips
        for name in ("input_mean", "input_std"):
            values = torch.tensor(getattr(model, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.compiled = compile_function(self.compute) if compiled else None
        self.compiled_shape: torch.Size | None = None

    def forward(self, clips: torch.Tensor | DecodedClips) -> torch.Tensor:
        if isinstance(clips, DecodedClips):
            clips = resize_clips(clips)
        views = clips.flatten(0, -5)
        logits = [self.call(part) for part in views.split(self.max_clips or len(views))]
        return torch.cat(logits).unflatten(0, clips.shape[:-4])

    def call(self, clips: torch.Tensor) -> torch.Tensor:
        if self.compiled is None:
            return self.compute(clips)
        self.compiled_shape = self.compiled_shape or clips.shape
        with compiler_errors():
            return (self.compiled if clips.shape == self.compiled_shape else self.compute)(clips)

    def compute(self, clips: torch.Tensor) -> torch.Tensor:
        clips = clips.permute(0, 1, 4, 2, 3).float().div(255).sub(self.input_mean).div(self.input_std)
        dtype = None if self.amp == "off" else DTYPES[self.amp]
        with torch.autocast(clips.device.type, dtype=dtype, enabled=self.amp != "off"):
            return self.model(clips).float()


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Batch],
    state: TrainState,
    args: Namespace,
    criterion: TrainingLoss | None = None,
) -> Iterator[Step]:
    """Train for an epoch, or for the rest of it (paper, section 4.2).

    Args:
        model: the `PixelModel` around `state.model`, wrapped for several devices (`World.wrap`).
        loader: the batches of this process from `state.step` on.
        state: state of the run. After each step, its `step` is the number of finished steps.
        args: options of main.py.
        criterion: the loss; None for cross entropy.

    Yields:
        Each finished step. The loss is checked at the logged steps and before saving.
    """
    world, optimizer, scaler = state.world, state.optimizer, state.scaler
    criterion = criterion or TrainingLoss()
    num_steps = len(state.batch_sizes)
    model.train()
    freeze_batch_norm(model, only_frozen=not args.freeze_bn)
    batches = iter(loader)
    progress = ProgressLog(world, f"epoch {state.epoch}", state.step, num_steps)
    for step in progress:
        batch_sizes = state.batch_sizes[step]
        if not batch_sizes:  # all clips of the step are excluded
            state.step = step + 1
            continue

        # The learning rate changes within an epoch. Dropout and mixup depend only on the seed and the step.
        rate = set_learning_rate(optimizer, args, state.epoch + step / num_steps)
        world.seed(args.seed, state.epoch, step)

        # Forward and backward, for each batch of the step
        optimizer.zero_grad()
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        first_batch = None
        for number in range(len(batch_sizes)):
            with progress.loading():
                batch = next(batches)
            clips, labels = to_devices(batch, world)
            clips, targets = criterion.mix(clips, labels)
            first_batch = first_batch or (clips, labels)
            # The processes exchange gradients in the last batch of the step only.
            is_last = number == len(batch_sizes) - 1
            without_exchange = model.no_sync() if world.size > 1 and not is_last else nullcontext()
            with without_exchange, compiler_errors(), world.lost_process():
                logits = model(clips)
                loss = criterion(logits, targets)
                # DistributedDataParallel averages the gradients over the processes. The factor turns this
                # average of sums into the gradient of the mean loss over all clips of the step.
                scaler.scale(loss * (world.size / sum(batch_sizes))).backward()
            sums += batch_sums(loss.detach(), logits.detach(), labels)

        # Clip the gradient and update the weights
        scaler.unscale_(optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip_gradient)
        scaler.step(optimizer)
        scaler.update()

        # Log. Reading a value waits for the GPU, so values are read only every `print_freq` steps.
        state.finish_step(step, sums, gradient_norm)
        progress.update(sum(batch_sizes))
        curves = {}
        if step % args.print_freq == 0:
            state.check_loss()
            title = f"Epoch: [{state.epoch}][{step}/{num_steps}], lr: {rate:.5f}"
            curves = progress.log(title, str(state.meters), args.epochs - state.epoch - 1)
            curves |= averages(state.meters.last.tolist())
            curves |= {"lr": rate, "gradient_norm": float(gradient_norm)}
        yield Step(*first_batch, {f"train/{name}": value for name, value in curves.items()})


class Predictor:
    """The inference core: computes the logits of a batch of clips, averaged over the views of each video.

    Float32 convolutions are computed in float32, without TF32.

    Args:
        model: a fused model (`inference.fuse.fuse`) or an `OnnxModel`.
        world: the devices.
        compiled: compile the model. This changes the last digits of the logits.
        mirrored: see `utils.metrics.average_views`.
        max_clips: maximum number of clips to compute at once; a video may have more views.
        with_features: also return the input of the classifier, combined over the frames like the logits.
    """

    def __init__(
        self,
        model: TemporalModel,
        world: World,
        compiled: bool = False,
        mirrored: Sequence[int] | None = None,
        max_clips: int | None = None,
        with_features: bool = False,
    ) -> None:
        self.world = world
        self.num_class = None
        if with_features:
            self.num_class = model.classifier.out_features
            model = copy.deepcopy(model)
            model.replace_classifier(_WithInput(model.classifier))
        self.model = world.wrap(PixelModel(model, max_clips=max_clips, compiled=compiled).eval())
        self.mirrored = mirrored

    @torch.inference_mode()
    @float32_convolutions()
    def __call__(self, clips: torch.Tensor | DecodedClips) -> list[torch.Tensor]:
        """Compute the logits of clips.

        Args:
            clips: see `PixelModel`; on the CPU.

        Returns:
            The logits, videos x classes, on the device; with `with_features` also the features.

        Raises:
            UserError: the model cannot be compiled.
        """
        outputs = self.model(*to_devices([clips], self.world))
        logits, features = outputs[..., : self.num_class], outputs[..., self.num_class :]
        if logits.dim() == 3:  # videos x views x classes
            logits, features = average_views(logits, self.mirrored), features.mean(dim=1)
        return [logits] if self.num_class is None else [logits, features]


def evaluate(
    loader: DataLoader,
    predictor: Predictor,
    world: World,
    print_freq: int,
    should_stop: Callable[[], int] | None = None,
) -> Result | None:
    """Score every video of a list once.

    Args:
        loader: the batches of this process (`loader.evaluation_batches`).
        predictor: computes the logits.
        world: the processes that share the evaluation.
        print_freq: number of batches between log lines.
        should_stop: called after each batch; a number other than 0 in any process stops the evaluation.

    Returns:
        The same result in every process, in the order of the list; None if stopped.
    """
    meters = ClipMeters(World(0, 1, world.devices))  # of this process, for the log
    outputs: list[tuple[torch.Tensor, ...]] = []
    batches = iter(loader)
    num_batches = world.all_reduce_max(len(loader))[0]
    progress = ProgressLog(world, "test", 0, num_batches)
    for step in progress:
        if step < len(loader):  # another process may have one batch more
            clips, labels = next(batches)
            logits, *features = predictor(clips)
            has_labels = bool((labels >= 0).all())
            labels = labels.to(world.device, non_blocking=True)
            if has_labels:
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                meters.update(batch_sums(loss, logits, labels))
            outputs.append((logits, labels, *features))
        progress.update(0)
        if step % print_freq == 0 and world.is_main:
            so_far = f"\t{meters}" if has_labels else ""
            log.info(f"Test: [{step}/{num_batches}]\tTime {progress.batch_time}{so_far}")
        if should_stop and world.all_reduce_max(should_stop())[0]:
            return None
    shares = world.all_gather([tuple(tensor.cpu() for tensor in output) for output in outputs])
    in_order = [share[step] for step in range(num_batches) for share in shares if step < len(share)]
    return summarise(*(torch.cat(tensors) for tensors in zip(*in_order, strict=True)))


def to_devices(batch: Batch, world: World) -> Batch:
    """Copy a batch (clips, optionally labels) to the GPU, without waiting for it.

    With several devices, DataParallel copies each device's share of the clips itself.
    """
    clips, *labels = batch
    if len(world.devices) == 1:
        clips = clips.to(world.device, non_blocking=True)
    return [clips, *(tensor.to(world.device, non_blocking=True) for tensor in labels)]


def freeze_batch_norm(model: nn.Module, only_frozen: bool = False) -> None:
    """Use the running statistics of batch norm in training without updating them (mmaction2's `norm_eval`).

    With `only_frozen`, only for batch norms whose weights are not trained (`TemporalModel.freeze`).
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            is_trained = all(parameter.requires_grad for parameter in module.parameters())
            if not (only_frozen and is_trained):
                module.eval()


class _WithInput(nn.Module):
    """A classifier that appends its input to its output, so that both are combined over the frames."""

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.classifier(inputs), inputs], dim=1)
