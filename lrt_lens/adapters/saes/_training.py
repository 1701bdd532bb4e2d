"""Training of sparse autoencoders with SAELens' trainer, from scratch or from a transferred SAE.

    trained = train_sae(pair.target, documents, at=3, n_tokens=1_000_000)
    trained.sae                 # a SAELens SAE for inference: trained.sae.save_model("my-sae")
    trained.history             # tokens, flops, explained_variance (held out), l0, dead_fraction
    train_sae(pair.target, documents, at=3, init=stitch.transfer(sae))

Problem: SAELens trains from its own initialisation and data; a transferred SAE must start from its
own weights, on the rows of this package. Mechanism: SAELens' trainer, one step at a time.

The default is SAELens' TopK without auxiliary loss and without ``rescale_acts_by_decoder_norm``.
That flag would make the selection depend on decoder norms, which a transferred SAE already has, so
the arms of a comparison would have different architectures. Decoder norms are not constrained.

The trainer reads rows of one scale (median distance from the mean: √d), so that ``lr`` has the same
effect at each hook point. The factor is folded into the weights before and after training, those of
``init`` included, and changes no code. From scratch, ``b_dec`` starts at the mean of the first
batch.

Limits: ``init`` of another architecture is refused. An SAE that was trained as BatchTopK is
returned as JumpReLU, the form in which SAELens stores it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes._compatibility import (
    model_identity_fields,
    refuse_foreign_sae,
    require_sae,
)
from lrt_lens.adapters.saes._rows import BUFFER_ROWS, SAERows, refuse_non_finite
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae import training_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._belonging import Origin
from lrt_lens.models._drawing import drawing
from lrt_lens.models._hook_points import resolve as resolve_hook
from lrt_lens.models._hooked_model import HookedModel, ModelIdentity

EXPANSION = 8
"""Default number of features per dimension."""
K = 32
"""Default number of active features per token."""
_MEASUREMENTS = 40
"""Default number of rows of the history."""
_EVALUATION_ROWS = 2048
"""Number of held-out rows that are encoded at once."""


@dataclass(frozen=True)
class SAETrainingSettings(Settings):
    """Settings of `train_sae`, which also takes each of them as a keyword."""

    d_sae: int | None = None
    """Number of features; None takes 8 per dimension."""
    k: int = K
    """Number of active features per token of the default TopK SAE."""
    n_tokens: int = 1_000_000
    """Number of training rows, counted again in every epoch."""
    batch_rows: int = 1024
    """Number of rows per step."""
    lr: float = 1e-3
    """Learning rate of Adam, constant except for warm-up and decay."""
    lr_warm_up_steps: int = 0
    """Number of steps of linear warm-up."""
    lr_decay_share: float = 0.0
    """Share of the steps, at the end, during which the learning rate falls linearly to
    0."""
    context_length: int = 256
    """Number of tokens per window, if rows are made from documents."""
    buffer_rows: int = BUFFER_ROWS
    """Number of rows that are shuffled together."""
    n_measurements: int = _MEASUREMENTS
    """Number of rows of the history; half of them are spaced evenly in log tokens."""
    seed: int = 0
    """Seed of the weights, the order of rows, and the split of documents."""
    text_field: str | None = None
    """Column of the texts in files and tables, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in `HarvestSettings`."""


@dataclass(frozen=True, repr=False)
class SAETraining(ShortRepr):
    """A trained SAE with the history of its training."""

    sae: Any = field(repr=False)
    """SAELens SAE for inference."""
    history: pd.DataFrame
    """One row per measurement, the first before any step.

    Columns: tokens, flops (of training steps), explained_variance (1 − FVU on held-out rows), l0,
    dead_fraction (share of features that no held-out row activates).
    """
    flops_per_token: float
    """FLOPs of the matrix products of a training step per row, forward and backward, as
    `torch.utils.flop_counter` counts them.
    """
    decoder_cosine: Tensor = field(repr=False)
    """Cosine of each decoder row to its initial value, [feature]."""
    hook: str
    """Hook point of the rows."""
    seed: int = 0
    """Seed of the weights, the order of rows, and the split of documents."""
    n_held_out: int = 0
    """Number of held-out rows on which the history is measured; 0 if unknown."""

    def tokens_to(self, explained_variance: float) -> float:
        """Training tokens until held-out explained variance reaches a threshold.

        Linear between measurements; NaN if the threshold is never reached.
        """
        return tokens_to(self.history, explained_variance)

    def figure(self) -> Any:
        """Plotly figure of held-out explained variance against training tokens."""
        figure = training_figure(self.history.assign(arm="this run", seed=self.seed))
        return with_counts(figure, {"held-out tokens": self.n_held_out})

    def _repr_html_(self) -> str:
        return card(
            "SAETraining",
            note(f"At {self.hook}: before the first step and at the end, on held-out rows."),
            table(self.history.iloc[[0, -1]]),
        )


@takes(SAETrainingSettings)
def train_sae(
    model: HookedModel | None,
    documents: Documents | SAERows,
    *,
    at: int | str | None = None,
    init: Any = None,
    config: Any = None,
    progress: bool = True,
    settings: SAETrainingSettings | None = None,
    **options: Any,
) -> SAETraining:
    """SAE trained on the states of a model at a hook point, with its history.

    Args:
        model: the model to train on; None if ``documents`` are `SAERows`.
        documents: text, in any form that `fit_stitches` accepts, or `SAERows` (from a cache, or
            kept for several runs).
        at: hook point, or layer.
        init: a SAELens SAE whose weights training starts from, such as ``stitch.transfer(sae)``;
            it is not changed.
        config: a SAELens training configuration, for another architecture or other coefficients;
            by default that of ``init``, or TopK.
        progress: show a bar.
        settings: all settings, see `SAETrainingSettings`.
        options: single fields of the settings, such as ``n_tokens=100_000``.

    Raises:
        MismatchError: rows of another hook point, model or width than ``at`` and ``model``;
            ``init`` belongs to another width, hook point, model, basis or tokenizer than the rows;
            ``config`` has another width, architecture or input normalisation.
        TooFewDocumentsError: less text than one batch, or than each fold needs.
        NonFiniteError: activations are NaN or infinite.
    """
    run = resolve(SAETrainingSettings, settings, options)
    rows = _rows(model, documents, at, run)
    if run.n_tokens < run.batch_rows:
        raise ValueError(
            f"n_tokens is {run.n_tokens}, less than one batch of {run.batch_rows} rows; raise "
            "n_tokens or lower batch_rows"
        )
    identity = rows.model if model is None else model.identity
    if init is not None:
        _refuse_other_init(rows, init, identity)
    batches = rows.batches(run.batch_rows, seed=run.seed, buffer_rows=run.buffer_rows)
    # The first batch only sets the scale; training begins with the second.
    mean, scale = _units(next(batches))
    # SAELens draws initial weights from the global generator, which the caller's code shares.
    with drawing(run.seed):
        training = training_sae(_config(rows, init, config, run), init)
    # From here on the SAE reads scaled rows, until the factor is folded back after training.
    if init is None:
        training.b_dec.data.copy_(mean * scale)
    else:
        # Folding 1/s gives the weights that read rows multiplied by s.
        training.fold_activation_norm_scaling_factor(1 / scale)
    # Cosines do not change with the factor.
    start = training.W_dec.detach().clone()
    trainer = _trainer(training, (batch * scale for batch in batches), run)
    per_token = flops_per_token(training, rows.held_out[: run.batch_rows])
    history = _fit(trainer, rows.held_out * scale, per_token, run, progress)
    training.fold_activation_norm_scaling_factor(scale)
    end = training.W_dec.detach()
    return SAETraining(
        sae=inference_sae(training, None if identity is None else identity.name, rows),
        history=history,
        flops_per_token=per_token,
        decoder_cosine=torch.nn.functional.cosine_similarity(start, end, dim=-1),
        hook=rows.hook,
        seed=run.seed,
        n_held_out=len(rows.held_out),
    )


def tokens_to(history: pd.DataFrame, explained_variance: float) -> float:
    """Training tokens at which a history first reaches a threshold of explained variance.

    Linear between measurements; NaN if the threshold is never reached.
    """
    tokens = history["tokens"].to_numpy(dtype=float)
    values = history["explained_variance"].to_numpy(dtype=float)
    above = (values >= explained_variance).nonzero()[0]
    if len(above) == 0:
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(tokens[0])
    # Linear interpolation: t = t₀ + (v − v₀) / (v₁ − v₀) · (t₁ − t₀)
    share = (explained_variance - values[i - 1]) / (values[i] - values[i - 1])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


def config_like(sae: Any) -> Any:
    """SAELens training configuration of an SAE's architecture and width, without auxiliary loss."""
    from sae_lens.registry import get_sae_training_class

    kind = get_sae_training_class(sae.cfg.architecture())[1]
    names = {
        name for name in kind.__dataclass_fields__ if name not in ("metadata", "dtype", "device")
    }
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key in names}
    # SAELens' default is True, which would multiply the activations of a transferred SAE by norms
    # that its thresholds were not trained with.
    defaults = {"aux_loss_coefficient": 0.0, "rescale_acts_by_decoder_norm": False}
    return kind(**{key: value for key, value in defaults.items() if key in names} | settings)


def training_sae(config: Any, init: Any = None) -> Any:
    """SAELens SAE for training, with the weights of ``init`` if there is one.

    Raises:
        MismatchError: ``init`` lacks a weight that the architecture needs.
    """
    from sae_lens.registry import get_sae_training_class

    sae = get_sae_training_class(config.architecture())[0](config)
    if init is not None:
        state = {
            key: value.detach().clone().to(sae.W_dec) for key, value in init.state_dict().items()
        }
        # Converts weights of older SAELens files, such as logarithms of thresholds.
        sae.process_state_dict_for_loading(state)
        missing = sae.load_state_dict(state, strict=False).missing_keys
        if missing:
            raise MismatchError(
                f"init lacks {missing}, which training a {config.architecture()!r} SAE needs; "
                "expected an SAE of that architecture: leave config out"
            )
    return sae


def inference_sae(training: Any, model_name: str | None, rows: SAERows) -> Any:
    """SAELens SAE for inference with the weights of a training SAE and the metadata of its rows."""
    from sae_lens import SAE

    state = {key: value.detach().clone() for key, value in training.state_dict().items()}
    training.process_state_dict_for_saving_inference(state)
    # SAELens draws weights on construction, which are overwritten: the caller's random state stays.
    with drawing(0):
        sae = SAE.from_dict(training.cfg.get_inference_sae_cfg_dict())
    sae.load_state_dict(state)
    metadata = {
        "model_name": model_name,
        "hook_name": rows.hook,
        "context_size": rows.context_length,
        "model_hash": None,
    }
    for key, value in (metadata | model_identity_fields(rows.model)).items():
        setattr(sae.cfg.metadata, key, value)
    return sae.eval().requires_grad_(requires_grad=False)


def flops_per_token(training: Any, batch: Tensor) -> float:
    """FLOPs of one training step per row, forward and backward (Stitching, appendix D)."""
    from sae_lens.saes.sae import TrainStepInput
    from torch.utils.flop_counter import FlopCounterMode

    training.train()
    coefficients = {
        name: float(getattr(value, "value", value))
        for name, value in training.get_coefficients().items()
    }
    step = TrainStepInput(
        batch,
        coefficients=coefficients,
        dead_neuron_mask=None,
        n_training_steps=0,
        is_logging_step=False,
    )
    # Counts matrix products, forward and backward; elementwise operations are not counted.
    with FlopCounterMode(display=False) as counter:
        training.training_forward_pass(step).loss.backward()
    training.zero_grad()
    return counter.get_total_flops() / len(batch)


@torch.no_grad()
def measure_rows(sae: Any, rows: Tensor) -> dict[str, float]:
    """Explained variance, L0 and share of dead features of an SAE on rows [row, d]."""
    centre = rows.double().mean(0)
    error, total, active = 0.0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for batch in rows.split(_EVALUATION_ROWS):
        codes = sae.encode(batch)
        codes = codes.to_dense() if codes.is_sparse else codes
        # 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², summed in float64.
        error += float((batch - sae.decode(codes)).double().square().sum())
        total += float((batch.double() - centre).square().sum())
        on = codes != 0
        active += float(on.sum())
        fired |= on.any(0)
    return {
        "explained_variance": 1 - error / total,
        "l0": active / len(rows),
        "dead_fraction": float((~fired).float().mean()),
    }


# ------------------------------------------------------------------------------------------ private


def _rows(
    model: HookedModel | None,
    documents: Documents | SAERows,
    at: int | str | None,
    run: SAETrainingSettings,
) -> SAERows:
    """Rows to train on, checked against ``at`` if they already are `SAERows`."""
    if isinstance(documents, SAERows):
        if model is not None:
            # at= may repeat the hook point of the rows, but must not name another one.
            hook = documents.hook if at is None else resolve_hook(at, model)
            asked = Origin("this SAE", hook, model.identity, model.d_model, "is trained")
            documents.refuse_foreign(asked)
        return documents
    if model is None or at is None:
        raise ValueError(
            "documents need a model and a hook point: train_sae(model, documents, at=3); or give "
            "SAERows"
        )
    source = DocumentSource.of(documents, run.text_field, run.group)
    return SAERows.from_documents(
        model, source, at=at, context_length=run.context_length, seed=run.seed
    )


def _units(batch: Tensor) -> tuple[Tensor, float]:
    """Mean of the rows, and the factor that scales their median distance from it to √d.

    Adam's step is then the same share of the states' size at each hook point.
    """
    mean = batch.mean(0)
    # s = √d / median ‖x − mean‖
    return mean, float(batch.shape[1] ** 0.5 / (batch - mean).norm(dim=1).median().clamp_min(1e-12))


def _config(rows: SAERows, init: Any, config: Any, run: SAETrainingSettings) -> Any:
    """SAELens training configuration, checked against the rows and ``init``."""
    from sae_lens import TopKTrainingSAEConfig

    if config is None and init is None:
        config = TopKTrainingSAEConfig(
            d_in=rows.width,
            d_sae=run.d_sae or EXPANSION * rows.width,
            k=run.k,
            aux_loss_coefficient=0.0,
            rescale_acts_by_decoder_norm=False,
        )
    elif config is None:
        config = config_like(init)
    # A copy, because SAELens writes into the metadata of the configuration.
    config = replace(config)
    expected = f"d_in {rows.width}"
    fits = config.d_in == rows.width
    if init is not None:
        architecture, d_sae = init.cfg.architecture(), init.cfg.d_sae
        expected = f"{architecture!r} with {expected} and d_sae {d_sae}"
        fits = fits and (config.architecture(), config.d_sae) == (architecture, d_sae)
    if not fits:
        raise MismatchError(
            f"config is {config.architecture()!r} with d_in {config.d_in} and d_sae "
            f"{config.d_sae}; expected {expected}, as the rows at {rows.hook!r} and init have: "
            "change config, or leave it out"
        )
    if config.normalize_activations != "none":
        # The scale of the rows is folded into the weights, which is exact for unscaled inputs only.
        raise MismatchError(
            f"normalize_activations is {config.normalize_activations!r}; expected 'none': "
            "train_sae scales the rows itself, so leave normalize_activations out of config, or "
            "give an init that was trained without it"
        )
    return config


def _refuse_other_init(rows: SAERows, init: Any, model: ModelIdentity | None) -> None:
    """Raise unless ``init`` is a SAELens SAE of finite weights that belongs to the rows."""
    require_sae(init, "cfg", "W_dec")
    refuse_foreign_sae(init, rows.hook, model, width=rows.width, context_length=rows.context_length)
    # NaN or infinity in any weight survives in the mean of its row or column.
    means = torch.stack([init.W_dec.detach().mean(0), init.W_enc.detach().mean(1)])
    refuse_non_finite(means, "means of init's weights")


def _trainer(training: Any, batches: Iterator[Tensor], run: SAETrainingSettings) -> Any:
    """SAELens' trainer of an SAE on batches of scaled rows."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    # Whole batches only: the rows that remain are not trained on.
    n_steps = run.n_tokens // run.batch_rows
    settings = SAETrainerConfig(
        total_training_samples=n_steps * run.batch_rows,
        train_batch_size_samples=run.batch_rows,
        lr=run.lr,
        lr_warm_up_steps=run.lr_warm_up_steps,
        lr_decay_steps=round(run.lr_decay_share * n_steps),
        # Required by the trainer, which ignores it: the schedule is constant, then decays from lr.
        lr_end=run.lr,
        device=str(training.W_dec.device),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=settings, sae=training, data_provider=batches)


def _fit(
    trainer: Any, held_out: Tensor, per_token: float, run: SAETrainingSettings, progress: bool
) -> pd.DataFrame:
    """History of SAELens' own training loop, run by its public steps and measured on the way."""
    held_out = held_out.to(trainer.sae.W_dec)
    n_steps = run.n_tokens // run.batch_rows
    due = _schedule(n_steps, run.n_measurements)
    records = [{"tokens": 0, "flops": 0.0} | measure_rows(trainer.sae, held_out)]
    with tqdm(
        total=n_steps * run.batch_rows,
        desc="training SAE",
        unit="token",
        disable=not progress,
        leave=False,
    ) as bar:
        # SAELens' own loop takes no measurements on held-out rows, so its steps are called one by
        # one.
        for step in range(1, n_steps + 1):
            trainer.maybe_reset_sparsity()
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
            bar.update(run.batch_rows)
            if step in due:
                tokens = step * run.batch_rows
                cost = {"tokens": tokens, "flops": tokens * per_token}
                records.append(cost | measure_rows(trainer.sae, held_out))
                bar.set_postfix(explained_variance=f"{records[-1]['explained_variance']:.3f}")
    trainer.set_final_sae_metadata()
    return pd.DataFrame(records)


def _schedule(n_steps: int, n_measurements: int) -> set[int]:
    """Steps after which to measure: half of them spaced evenly in log steps, half evenly."""
    half = max(n_measurements // 2, 1)
    # n^(i/half) for i = 0 … half: from step 1 to step n.
    early = {round(n_steps ** (i / half)) for i in range(half + 1)}
    return early | {round(n_steps * (i + 1) / half) for i in range(half)}
