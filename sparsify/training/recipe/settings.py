"""The sections of a recipe on model, data and training, as frozen, strict pydantic models.

No torch here: recipes are read, checked and turned into a JSON schema without it. The text below a field is its
description in that schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ...datasets import default_of_each, known_names
from .lr_schedules import LR_SCHEDULES, ConstantSchedule, LrSchedule
from .values import (
    DEVICE,
    EVERY,
    ByName,
    Count,
    CountOrZero,
    Pixels,
    Settings,
    Share,
    Tracker,
    Word,
    a_path,
    known_device,
    known_interval,
)

# Arguments of a model's constructor that are keys of a recipe, or that download or read files.
_OWN_KEYS = {
    "name": "model.name",
    "num_classes": "data.num_classes",
    "pretrained": "model.pretrained",
    "checkpoint": "model.checkpoint",
    "checkpoint_path": "model.checkpoint",
    "weights": "model.pretrained",
    "weights_backbone": "model.pretrained",
    "pretrained_backbone": "model.pretrained",
}


def model_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` if a recipe may give them; raises ValueError, in one line, for one with a key of its own."""
    for key, value in arguments.items():
        if key in _OWN_KEYS and value is not None:
            raise ValueError(f"'{key}' is set by {_OWN_KEYS[key]}; leave it out here")
    return arguments


_CROP = (
    "pixels added on every side before a random crop back to the image's size, 0 for none; by default "
    f"{default_of_each(lambda row: row.crop_padding)}; image files are cropped as timm does"
)
_FLIP = (
    "mirror a training image left to right with probability 1/2; by default "
    f"{default_of_each(lambda row: row.flip)}, true for image files"
)


PathText = Annotated[str, AfterValidator(a_path)]


class ModelSettings(Settings):
    """The network that is trained."""

    name: Word
    """timm:NAME, torchvision:NAME, transformers:NAME_OR_FOLDER[:AUTOCLASS], of an image classifier, or
    cifar:resnet20|resnet32|resnet56|vgg19_bn"""
    pretrained: bool = False
    """start from the weights that the model's library publishes"""
    checkpoint: PathText | None = None
    """what to start from, masks included: a sparse, shrunk or plain file (safetensors, or a torch file that holds
    tensors only), a run's or a hub folder, or hf:OWNER/NAME"""
    masks: PathText | None = None
    """file of masks (masks alone, or a sparse model's) under which it is trained; they stay, so there is no prune"""
    arguments: Annotated[dict[str, Any], AfterValidator(model_arguments)] = Field(default_factory=dict)
    """further arguments of the model's constructor, e.g. {drop_rate: 0.1}"""


class DataSettings(Settings):
    """The images the network is trained and tested on."""

    name: Annotated[Word, AfterValidator(a_path), Field(description=f"{known_names()} such as torch/mnist")] = "digits"
    dir: PathText | None = None
    """folder that holds the data set, or into which it is downloaded"""
    batch_size: Count = 128
    """images in a training batch"""
    test_batch_size: Count = 512
    """images in a test batch; only speed and memory depend on it"""
    image_size: Pixels | None = None
    """height and width the model sees, in pixels; by default the data's own unless the model refuses it, then the
    smallest it takes"""
    crop_padding: Annotated[Annotated[int, Field(ge=0, le=1024)] | None, Field(description=_CROP)] = None
    padding_mode: Literal["zero", "reflect"] = "zero"
    """what the added pixels are"""
    flip: Annotated[bool | None, Field(description=_FLIP)] = None
    limit: Count | None = None
    """use this many images at most for training, and for the test, spread evenly over the set: to try things out"""
    drop_last: bool = False
    """leave out the last batch of an epoch if it is smaller than the others"""
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """processes that read image files; data in memory need none"""
    train_split: Word = "train"
    """name of the training part, for timm.data and hf:"""
    test_split: Word = "validation"
    """name of the test part, for timm.data and hf:, which takes `test` where there is no validation"""
    label: Word | None = None
    """hf: the column of the classes, by default the only one that has names of classes"""
    skip_bad: bool = False
    """leave out image files that cannot be read, with a warning that counts them; by default the first ends the run"""
    num_classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """number of classes, for a set of timm.data or hf: that does not tell it"""


class OptimizerSettings(Settings):
    """The optimiser, by its name in timm.optim."""

    name: Word = "sgd"
    """a name of timm.optim, e.g. sgd, adamw, lamb"""
    lr: Annotated[float, Field(ge=0)] = 0.1
    """learning rate; lr_schedule multiplies it by a factor in [0, 1]"""
    momentum: Share = 0.9
    """momentum, where the optimiser has one"""
    nesterov: bool | None = None
    """Nesterov momentum; by default as timm has it for the optimiser (sgd: true)"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """weight decay"""
    weight_decay_exclude: Literal["none", "bias_and_norm"] = "none"
    """parameters spared by weight decay: none, or all with fewer than two dimensions"""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """further arguments of the optimiser, e.g. {betas: [0.9, 0.99]}"""


class PluginSettings(Settings):
    """The plugin that a run was made with; it is named anew on the command line (`--plugin`), never found by this."""

    name: Word
    """the file's name"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """the SHA-256 of its content: no other file is taken"""


class CheckpointSettings(Settings):
    """When a checkpoint is written, from which a run that was stopped or killed goes on."""

    every: Annotated[str, AfterValidator(known_interval), Field(json_schema_extra={"pattern": EVERY})] | None = None
    """steps, epochs or time between two checkpoints: 500it, 2ep, 30s, 10min or 1h; by default an epoch, more where
    writing would take over 5 % of the time, and at most ten minutes"""
    keep: Annotated[int, Field(ge=2)] = 2
    """how many of the newest checkpoints are kept; if the newest is damaged, a run resumes from the one before"""


class EmaSettings(Settings):
    """A moving average of the weights, under the model's own masks: it is what is tested and saved."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """share of the average that stays at each optimiser step; the rest is the model's weights"""
    warmup: bool = True
    """a share of 1 - t^(-2/3) at step t, where that is below `decay`: the first weights are soon forgotten"""


class TrainSettings(Settings):
    """How the network is trained."""

    epochs: Count = 60
    """passes over the training images"""
    max_steps: Count | None = None
    """optimiser steps after which training ends, however many epochs; fractions of training refer to these"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """seed of everything random: initial weights, order, augmentation, masks"""
    optimizer: Annotated[OptimizerSettings, ByName()] = Field(default_factory=lambda: OptimizerSettings())
    """the optimiser; its name alone stands for its defaults"""
    lr_schedule: Annotated[LrSchedule, ByName(*LR_SCHEDULES)] = Field(default_factory=lambda: ConstantSchedule())
    """the learning rate over training; its name alone stands for its defaults"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision; no is float32 throughout"""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """largest norm of all gradients together"""
    accumulate: Count = 1
    """batches whose gradients are averaged in one optimiser step"""
    label_smoothing: Share = 0.0
    """share of the target that is spread over all classes"""
    device: Annotated[str, AfterValidator(known_device), Field(json_schema_extra={"pattern": DEVICE})] = "auto"
    """auto, cpu, cuda, cuda:N, xpu, xpu:N or mps"""
    channels_last: bool = False
    """keep images and weights in channels-last memory order"""
    compile: bool = False
    """run the model through torch.compile"""
    shard: bool = False
    """keep only a part of weights, gradients and optimiser state in each of several processes (torch's fully_shard)"""
    sync_batch_norm: bool = False
    """take batch-norm statistics over all processes, where several train on GPUs; else each has its own"""
    recalibrate_batch_norm: CountOrZero = 0
    """training batches on which batch-norm statistics are recomputed after training, 0 for none"""
    ema: EmaSettings | None = None
    """test and save an exponential moving average of the weights, batch-norm statistics averaged with them; {} stands
    for its defaults"""
    log_every: Count = 10
    """optimiser steps between two records of loss and accuracy"""
    trackers: Annotated[tuple[Tracker, ...], Field(strict=False)] = ()
    """further places to which records go, by accelerate's loggers; TensorBoard events are written in any case"""
    evaluate_every: Count = 1
    """epochs between two evaluations on the test images"""
    checkpoint: CheckpointSettings = Field(default_factory=lambda: CheckpointSettings())
    """when checkpoints are written and how many are kept"""

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimiser steps of the whole training."""
        steps = steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)
