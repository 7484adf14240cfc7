"""What a line of results.jsonl holds: the only thing that the comparison and the report share.

Every record is one JSON object on one line with a ``kind``. JSON has no infinity: what was never reached is null.
Losses and accuracies are of the test split (of the validation split while tuning); times are seconds; sizes are bytes.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from dldw.card import Published

FORMAT = 1
"""Raised whenever a reader of the older format would misread the newer one."""

Study = Literal["curves", "width", "learning-rate", "memory"]
"""Why a training run was made: the learning curves; the same over network width, over learning rates, in bounded memory."""


class Run(TypedDict):
    """The first line: what was asked for, and where it ran."""

    kind: Literal["run"]
    format: int
    dldw: str
    torch: str
    python: str
    machine: dict[str, Any]  # system, processor, cores, threads, memory (bytes), accelerator (name or null)
    config: dict[
        str, Any
    ]  # task, methods (specs), seeds, budget (name and figures), studies; equal config -> may resume
    started: str  # ISO 8601, UTC


class MethodRecord(TypedDict):
    """One method of the run with its card and the settings it ran with."""

    kind: Literal["method"]
    method: str  # the label used in every other record, e.g. "spsa" or "spsa[directions=8]"
    name: str  # the registered name, "spsa"
    claim: str
    needs: str
    forwards: str  # the card's formula
    forwards_per_step: float  # the formula worked out for this task
    memory: str
    paper: str
    note: str
    settings: dict[str, Any]
    baseline: bool
    published: NotRequired[list[Published]]  # those of the card that have these settings


class TaskRecord(TypedDict):
    """The task of the run."""

    kind: Literal["task"]
    task: str
    summary: str
    metric: str  # "accuracy", "loss", or another that evaluations then hold under its own name, such as "return"
    maximise: bool
    target: float
    weights: int  # d at the task's own width
    batch_size: int
    train_examples: int
    test_examples: int


class Evaluation(TypedDict):
    """One point of a learning curve."""

    kind: Literal["evaluation"]
    study: Study
    task: str
    method: str
    seed: int
    width: int | None  # hidden units, where the task has a width
    factor: float  # learning rate over the tuned one; 1.0 outside the learning-rate study
    step: int
    forwards: float  # forward-pass equivalents by the card, so far
    examples: int
    seconds: float  # spent in steps alone, evaluation excluded; from the parallel pass, so indicative
    train_loss: float | None  # of the last step
    loss: float | None  # null when not finite
    accuracy: float | None  # null where the task has none
    interactions: NotRequired[int | None]  # steps of a simulator taken so far; null where the task has none
    generation_best: NotRequired[float | None]  # loss on its batch of the last generation's best; of searchers alone
    generation_median: NotRequired[float | None]  # the same of its median candidate; null when not finite
    diversity: NotRequired[float | None]  # rms distance of a weight from its mean over that generation


class End(TypedDict):
    """How one training run ended."""

    kind: Literal["end"]
    study: Study
    task: str
    method: str
    seed: int
    width: int | None
    factor: float
    weights: int
    lr: float | None  # the learning rate, where the method has one; over widths the best of three for each
    reason: Literal["budget", "target", "diverged", "error"]
    failed: bool  # the target was not reached within the budget
    forwards_to_target: float | None
    seconds_to_target: float | None
    interactions_to_target: NotRequired[int | None]  # steps of a simulator; null also where the task has none
    forwards: float
    metric: float | None  # the task's metric at the end
    best: float | None  # the best value of the metric on the way
    error: str | None


class Cost(TypedDict):
    """What one step costs, measured alone and interleaved with bare forwards; one for each method and width."""

    kind: Literal["cost"]
    task: str
    method: str
    width: int | None
    weights: int
    step_seconds: float  # median
    two_forwards_seconds: float  # median, of the interleaved pairs of bare forwards without grad
    time_ratio: float  # median of step / two forwards, pair by pair
    time_ratio_low: float  # quartiles of the same
    time_ratio_high: float
    repeats: int
    step_flops: int
    forward_flops: int
    forwards_measured: float  # step_flops / forward_flops
    forwards_card: float
    peak_bytes: int  # allocator peak of a step above the loaded model
    forward_peak_bytes: int  # the same of one bare forward without grad


class Depth(TypedDict):
    """What a backward pass of a network of so many blocks costs, measured alone and interleaved with plain autograd."""

    kind: Literal["depth"]
    task: str
    method: str
    depth: int  # blocks
    weights: int
    step_seconds: float  # median of one gradient
    time_ratio: float  # median of that over plain autograd's, pair by pair
    time_ratio_low: float  # quartiles of the same
    time_ratio_high: float
    repeats: int
    peak_bytes: int  # allocator peak above the weights and their gradients
    gradient_error: float  # relative, against plain autograd in float64


class Fit(TypedDict):
    """The largest batch of a method within the task's bound of memory; its runs are those of the study ``memory``."""

    kind: Literal["fit"]
    task: str
    method: str
    bound: int  # bytes above the loaded model
    rows: int  # examples in a batch; 0 where not even one fits
    peak_bytes: int  # of that batch, or of one example; the learner's own buffers included
    rate_factor: float  # learning rate over the tuned one, the best of three on the validation split


class Estimate(TypedDict):
    """How good the estimate is at one point in training: against the exact gradient of the same batch."""

    kind: Literal["estimate"]
    task: str
    method: str
    seed: int
    width: int | None
    weights: int
    draws: int
    cosine: float  # mean over draws
    cosine_low: float  # 95 % interval of the mean
    cosine_high: float
    relative_variance: float | None  # E|ghat - E ghat|^2 / |g|^2; single weights scaled by d/k, so that E ghat = g
    relative_bias: float | None  # |E ghat - g| / |g|, as far as the draws show it: 0 where it may be 0 (95 %)
    theory_variance: float | None  # closed form where the card's method has one: (d-1)/n, (d+1)/n, ...
    cosine_rms: NotRequired[float]  # the root mean square of the cosine, whose closed form is 1 / sqrt(1 + variance)
    variance_low: NotRequired[float | None]  # 95 % interval
    variance_high: NotRequired[float | None]
    bias: NotRequired[float | None]  # the bias itself, whose 95 % interval begins at relative_bias
    bias_high: NotRequired[float | None]
    relative_error: NotRequired[float | None]  # sqrt(E|ghat - g|^2) / |g|
    forwards: NotRequired[float]  # forward-pass equivalents of one estimate
    seconds: NotRequired[float]  # of one estimate, the median
    decrease: NotRequired[float | None]  # of the loss by one step along an estimate at the best length; null: not tried
    decrease_low: NotRequired[float | None]  # 95 % interval
    decrease_high: NotRequired[float | None]


class Sigma(TypedDict):
    """The error of slopes along random directions, by central differences at each sigma, against the exact ones."""

    kind: Literal["sigma"]
    task: str
    width: int | None
    weights: int
    dtype: str
    sigma: list[float]  # ascending
    error: list[float | None]  # root mean squares, relative; null where the loss was not finite
    recommended: float  # the middle of the valley


class Displacement(TypedDict):
    """Where the first steps from one point in training move the weights, against -dL/dw on the batch of each step."""

    kind: Literal["displacement"]
    task: str
    method: str
    seed: int
    steps: int
    still: int  # steps that moved nothing; their cosine counts as 0
    cosine: float  # of w' - w with -dL/dw, mean over steps
    cosine_low: float  # 95 % interval of the mean
    cosine_high: float
    needs: NotRequired[
        str
    ]  # by the card: the method may be in no other record, where it cannot run on the task of the run
    forwards_per_step: NotRequired[float]
    criterion_cosine: NotRequired[
        float
    ]  # of the estimate with the (sub)gradient of the method's own criterion, if it has one
    off_criterion: NotRequired[float]  # largest entry of their difference


class Bias(TypedDict):
    """The question's difference quotient against the exact derivative of the same weight, for one size of nudge."""

    kind: Literal["bias"]
    task: str
    nudge: float  # |dw|
    weights_tried: int
    relative_error: float  # median over weights of |quotient - derivative| / rms derivative
    relative_error_low: float  # quartiles
    relative_error_high: float
    wrong_sign: float  # share of weights whose quotient has the wrong sign


class Landscape(TypedDict):
    """The loss over two weights, all others fixed at a trained point."""

    kind: Literal["landscape"]
    task: str
    width: int | None  # of the network they belong to: a narrow one, in which two weights matter
    names: list[str]  # of the two weights
    x: list[float]
    y: list[float]
    loss: list[list[float]]  # [len(y)][len(x)]


class Path(TypedDict):
    """A method's way through the two-weight landscape, every method from the same start."""

    kind: Literal["path"]
    task: str
    method: str
    x: list[float]
    y: list[float]
    loss: list[float]
    forwards: list[float]


class Angles(TypedDict):
    """Where one estimate points, at one evaluation of a training run, in degrees from the exact gradient."""

    step: int
    forwards: float
    angle: float | None  # over all weights; null where one of the two is zero
    first: float | None  # over the weights of the first layer


class LayerAccuracy(TypedDict):
    """What a linear read-out makes of what a layer hands on: of the input for layer 0; last of all, the model itself."""

    layer: int
    features: int
    accuracy: float | None  # on the test split; null where the model's is not finite


class PictureRecord(TypedDict):
    """Images of what a model has learnt; see ``dldw.tasks.picture.Picture``."""

    name: str
    size: list[int]  # height and width
    pixels: list[list[list[int]]]  # [rows][columns][height * width], 0 to 255
    rows: list[str]
    columns: list[str]
    signed: bool
    figures: dict[str, float]


class Inside(TypedDict):
    """What was seen inside one model as a method trained it."""

    kind: Literal["inside"]
    task: str
    method: str
    seed: int
    forwards: float
    metric: float | None  # at the end
    angles: list[Angles]  # of gradient sources that are not exact
    layers: list[LayerAccuracy]  # where examples have labels
    pictures: list[PictureRecord]


class SamplingBias(TypedDict):
    """The mean of many estimates of contrastive divergence beside the exact gradient of the log-likelihood."""

    kind: Literal["sampling"]
    task: str
    step: int  # of exact gradient descent before
    estimator: str  # CD-k or PCD-k
    cosine: float
    norm: float  # of the mean estimate over that of the gradient
    error: float  # norm of their difference over that of the gradient


class Crossed(TypedDict):
    """The accuracy of a model trained in one way and evaluated in another."""

    kind: Literal["crossed"]
    task: str
    trained: str
    evaluated: str
    steps: int
    accuracy: float
    published: float | None


class Tuning(TypedDict):
    """One trial of the search over a method's settings, on the validation split."""

    kind: Literal["tuning"]
    task: str
    method: str
    trial: int
    settings: dict[str, Any]
    score: (
        float | None
    )  # dldw.compare.tune.trial_score on the validation split, higher is better; null: diverged, or no step made
    forwards: float
    seconds: float
    chosen: bool


class Note(TypedDict):
    """Something the run wants the reader to know, such as what it could not show in its time."""

    kind: Literal["note"]
    text: str


class Done(TypedDict):
    """The last line of a complete run."""

    kind: Literal["done"]
    seconds: float
    peak_bytes: int  # resident, largest process


Record = (
    Run
    | MethodRecord
    | TaskRecord
    | Evaluation
    | End
    | Cost
    | Depth
    | Fit
    | Estimate
    | Sigma
    | Displacement
    | Bias
    | Landscape
    | Path
    | Inside
    | SamplingBias
    | Crossed
    | Tuning
    | Note
    | Done
)
