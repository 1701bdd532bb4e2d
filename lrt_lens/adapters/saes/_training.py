"""Training of sparse autoencoders, from scratch or from a transferred SAE: SAELens' own trainer on
rows of our harvest.

    trained = train_sae(pair.target, documents, at=3, n_tokens=1_000_000)
    trained.sae                       # a SAELens SAE for inference; trained.sae.save_model("my-sae")
    trained.history                   # tokens, flops, explained_variance on held-out documents, l0, dead_fraction
    train_sae(pair.target, documents, at=3, init=stitch.transfer(sae))

The default is SAELens' TopK without auxiliary loss and without `rescale_acts_by_decoder_norm`: that
flag would make the selection depend on decoder norms, which a transferred SAE brings along, so arms
of a comparison would not be the same architecture. Decoder norms are free.

The trainer sees rows of one scale (median distance from the mean: √d), so that ``lr`` means the
same on every stream; the factor is folded into the weights at both ends, `init` included, and
changes no code. From scratch, `b_dec` begins at the mean of the first batch.

Limits: ``init=`` of another architecture is refused; a SAE trained as BatchTopK comes back as
JumpReLU, which is how SAELens keeps it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes._rows import BUFFER_ROWS, SAERows, refuse_non_finite
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae import training_figure
from lrt_lens.models._hook_points import resolve, same_place
from lrt_lens.models._hooked_model import HookedModel

EXPANSION = 8
"""Features for each dimension of the stream unless told otherwise."""
K = 32
_MEASUREMENTS = 40
_EVALUATION_ROWS = 2048


@dataclass(frozen=True)
class SAETraining:
    """A trained SAE and how it got there."""

    sae: Any = field(repr=False)
    """SAELens SAE for inference."""
    history: pd.DataFrame
    """A row per measurement, the first before any step: tokens, flops (of training steps),
    explained_variance (1 − FVU on held-out rows), l0, dead_fraction (features that no held-out row
    activates)."""
    flops_per_token: float
    """Of a training step, forward and backward; `torch.utils.flop_counter` counts matrix products.
    """
    decoder_cosine: Tensor = field(repr=False)
    """[feature], cosine of each decoder row to where it started."""
    hook: str
    seed: int = 0

    def tokens_to(self, explained_variance: float) -> float:
        """Training tokens until held-out explained variance reached a threshold, linear between
        measurements; NaN where it never did.
        """
        return tokens_to(self.history, explained_variance)

    def figure(self) -> Any:
        """Held-out explained variance against training tokens (plotly)."""
        return training_figure(self.history.assign(arm="this run", seed=self.seed))

    def _repr_html_(self) -> str:
        return card(
            "SAETraining",
            note(f"At {self.hook}: before the first step and at the end, on held-out rows."),
            table(self.history.iloc[[0, -1]]),
        )


def train_sae(
    model: HookedModel | None,
    documents: Documents | SAERows,
    *,
    at: int | str | None = None,
    init: Any = None,
    config: Any = None,
    d_sae: int | None = None,
    k: int = K,
    n_tokens: int = 1_000_000,
    batch_rows: int = 1024,
    lr: float = 1e-3,
    lr_warm_up_steps: int = 0,
    lr_decay_share: float = 0.0,
    context_length: int = 256,
    buffer_rows: int = BUFFER_ROWS,
    n_measurements: int = _MEASUREMENTS,
    seed: int = 0,
    progress: bool = True,
) -> SAETraining:
    """An SAE trained on the stream at a hook point; see the module docstring.

    Args: model: whose stream; None where ``documents`` are `SAERows`. documents: text, as
        `fit_stitches` takes it, or `SAERows` (from a cache, or kept for several runs). at: hook
        point, or layer. init: a SAELens SAE of the stream's width whose weights training starts
        from, such as ``stitch.transfer(sae)``; it is not changed. config: a SAELens training
        configuration, for another architecture or other coefficients; TopK by default, or what
        ``init`` is. d_sae: features; 8 for each dimension by default. k: active features a token,
        for the default TopK. n_tokens: training rows, counted again every epoch. batch_rows: rows a
        step. lr: of Adam, constant but for warm-up and decay. lr_warm_up_steps: steps of linear
        warm-up. lr_decay_share: share of the steps, at the end, over which the rate falls linearly
        to 0. context_length: tokens a window. buffer_rows: rows that are mixed with each other.
        n_measurements: rows of the history, dense at the beginning. seed: of the weights, the order
        of rows and the split of documents. progress: show a bar.

    Raises:
        MismatchError: ``init`` or ``config`` of another width, hook point or architecture.
        TooFewDocumentsError: less text than one batch, or than every fold needs.
        NonFiniteError: activations that are not finite.
    """
    rows = _rows(model, documents, at, context_length, seed)
    if n_tokens < batch_rows:
        raise ValueError(
            f"n_tokens is {n_tokens}, less than one batch of {batch_rows} rows; raise n_tokens or lower batch_rows"
        )
    name = (
        model.name
        if model is not None
        else rows.model.name
        if rows.model is not None
        else "unknown"
    )
    batches = rows.batches(batch_rows, seed=seed, buffer_rows=buffer_rows)
    mean, scale = _units(next(batches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = training_sae(_config(rows, init, config, d_sae, k), init)
    if init is None:
        training.b_dec.data.copy_(mean * scale)
    else:
        training.fold_activation_norm_scaling_factor(1 / scale)
    start = training.W_dec.detach().clone()
    n_steps = n_tokens // batch_rows
    scaled = (batch * scale for batch in batches)
    trainer = _trainer(
        training, scaled, n_steps, batch_rows, lr, lr_warm_up_steps, round(lr_decay_share * n_steps)
    )
    per_token = flops_per_token(training, rows.held_out[:batch_rows])
    history = _fit(
        trainer, rows.held_out * scale, n_steps, batch_rows, per_token, n_measurements, progress
    )
    training.fold_activation_norm_scaling_factor(scale)
    return SAETraining(
        sae=inference_sae(training, name, rows),
        history=history,
        flops_per_token=per_token,
        decoder_cosine=torch.nn.functional.cosine_similarity(
            start, training.W_dec.detach(), dim=-1
        ),
        hook=rows.hook,
        seed=seed,
    )


def tokens_to(history: pd.DataFrame, explained_variance: float) -> float:
    """Training tokens at which a history first reaches a threshold, linear between measurements;
    NaN where it never does.
    """
    tokens, values = (
        history["tokens"].to_numpy(dtype=float),
        history["explained_variance"].to_numpy(dtype=float),
    )
    above = (values >= explained_variance).nonzero()[0]
    if len(above) == 0:
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(tokens[0])
    share = (explained_variance - values[i - 1]) / (values[i] - values[i - 1])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


def config_like(sae: Any) -> Any:
    """SAELens' training configuration of a SAE's architecture and width, without auxiliary loss."""
    from sae_lens.registry import get_sae_training_class

    kind = get_sae_training_class(sae.cfg.architecture())[1]
    names = {
        name for name in kind.__dataclass_fields__ if name not in ("metadata", "dtype", "device")
    }
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key in names}
    # Their default, True, would weigh a transferred SAE's selection by norms that it does not know.
    settings |= {
        name: value
        for name, value in (("aux_loss_coefficient", 0.0), ("rescale_acts_by_decoder_norm", False))
        if name in names and name not in settings
    }
    return kind(**settings)


def training_sae(config: Any, init: Any = None) -> Any:
    """A SAELens SAE for training, its weights those of ``init`` where one is given."""
    from sae_lens.registry import get_sae_training_class

    sae = get_sae_training_class(config.architecture())[0](config)
    if init is not None:
        state = {
            key: value.detach().clone().to(sae.W_dec) for key, value in init.state_dict().items()
        }
        sae.process_state_dict_for_loading(state)
        missing = sae.load_state_dict(state, strict=False).missing_keys
        if missing:
            raise MismatchError(
                f"init lacks {missing}, which training a {config.architecture()!r} SAE needs; expected an SAE of that architecture: leave config out"
            )
    return sae


def inference_sae(training: Any, model_name: str, rows: SAERows) -> Any:
    """The SAELens SAE for inference that a training SAE becomes, its metadata set."""
    from sae_lens import SAE

    state = {key: value.detach().clone() for key, value in training.state_dict().items()}
    training.process_state_dict_for_saving_inference(state)
    with torch.random.fork_rng(devices=[]):  # SAELens draws weights that are overwritten
        sae = SAE.from_dict(training.cfg.get_inference_sae_cfg_dict())
    sae.load_state_dict(state)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = model_name, rows.hook
    sae.cfg.metadata.context_size = rows.context_length
    sae.cfg.metadata.model_hash = rows.model.config_hash if rows.model is not None else None
    return sae.eval().requires_grad_(requires_grad=False)


def flops_per_token(training: Any, batch: Tensor) -> float:
    """FLOPs of one training step a row, forward and backward, on a dummy batch (Stitching, appendix
    D).
    """
    from sae_lens.saes.sae import TrainStepInput
    from torch.utils.flop_counter import FlopCounterMode

    training.train()
    with FlopCounterMode(display=False) as counter:
        coefficients = {
            name: float(getattr(value, "value", value))
            for name, value in training.get_coefficients().items()
        }
        training.training_forward_pass(
            TrainStepInput(
                batch,
                coefficients=coefficients,
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
        ).loss.backward()
    training.zero_grad()
    return counter.get_total_flops() / len(batch)


@torch.no_grad()
def measure_rows(sae: Any, rows: Tensor) -> dict[str, float]:
    """explained_variance, l0 and dead_fraction of an SAE on rows [row, d]."""
    centre = rows.double().mean(0)
    error, total, active = 0.0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for batch in rows.split(_EVALUATION_ROWS):
        codes = sae.encode(batch)
        codes = codes.to_dense() if codes.is_sparse else codes
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
    context_length: int,
    seed: int,
) -> SAERows:
    if isinstance(documents, SAERows):
        if (
            at is not None
            and model is not None
            and not same_place(resolve(at, model), documents.hook)
        ):
            raise MismatchError(
                f"at is {at!r}, but these rows were taken at {documents.hook!r}; leave at= out, or take rows there"
            )
        return documents
    if model is None or at is None:
        raise ValueError(
            "documents need a model and a hook point: train_sae(model, documents, at=3); or give SAERows"
        )
    return SAERows.from_documents(model, documents, at=at, context_length=context_length, seed=seed)


def _units(batch: Tensor) -> tuple[Tensor, float]:
    """Mean of the rows, and the factor that brings their median distance from it to √d: Adam's step
    is then the same share of every stream.
    """
    mean = batch.mean(0)
    return mean, float(batch.shape[1] ** 0.5 / (batch - mean).norm(dim=1).median().clamp_min(1e-12))


def _config(rows: SAERows, init: Any, config: Any, d_sae: int | None, k: int) -> Any:
    """The training configuration, checked against the rows and ``init``."""
    from sae_lens import TopKTrainingSAEConfig

    if init is not None:
        _refuse_other_init(rows, init)
    if config is None and init is None:
        config = TopKTrainingSAEConfig(
            d_in=rows.width,
            d_sae=d_sae or EXPANSION * rows.width,
            k=k,
            aux_loss_coefficient=0.0,
            rescale_acts_by_decoder_norm=False,
        )
    elif config is None:
        config = config_like(init)
    # A copy: SAELens writes into the metadata.
    config = replace(config)
    expected = rows.width if init is None else init.cfg.d_in
    if config.d_in != rows.width or (
        init is not None
        and (config.d_sae != init.cfg.d_sae or config.architecture() != init.cfg.architecture())
    ):
        found = f"{config.architecture()!r} with d_in {config.d_in} and d_sae {config.d_sae}"
        wanted = (
            f"d_in {expected}"
            if init is None
            else f"{init.cfg.architecture()!r} with d_in {expected} and d_sae {init.cfg.d_sae}"
        )
        raise MismatchError(
            f"config is {found}; expected {wanted}, as the rows at {rows.hook!r} and init are: change config, or leave it out"
        )
    return config


def _refuse_other_init(rows: SAERows, init: Any) -> None:
    if not hasattr(init, "cfg") or not hasattr(init, "W_dec"):
        raise TypeError(
            f"init is a {type(init).__name__}; expected a SAELens SAE, such as stitch.transfer(sae)"
        )
    if init.cfg.d_in != rows.width:
        raise MismatchError(
            f"init has width {init.cfg.d_in}, the stream at {rows.hook!r} has {rows.width}; carry it over first: init=stitch.transfer(sae)"
        )
    hook = init.cfg.metadata.hook_name
    if hook and not same_place(hook, rows.hook):
        raise MismatchError(
            f"init belongs to {hook!r}, these rows to {rows.hook!r}; train at its hook point, or set init.cfg.metadata.hook_name"
        )
    refuse_non_finite(
        torch.stack([init.W_dec.detach().mean(0), init.W_enc.detach().mean(1)]),
        "means of init's weights",
    )


def _trainer(
    training: Any,
    batches: Iterator[Tensor],
    n_steps: int,
    batch_rows: int,
    lr: float,
    lr_warm_up_steps: int,
    lr_decay_steps: int,
) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = SAETrainerConfig(
        total_training_samples=n_steps * batch_rows,
        train_batch_size_samples=batch_rows,
        lr=lr,
        lr_warm_up_steps=lr_warm_up_steps,
        lr_decay_steps=lr_decay_steps,
        lr_end=lr / 10,
        device=str(training.W_dec.device),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=settings, sae=training, data_provider=batches)


def _fit(
    trainer: Any,
    held_out: Tensor,
    n_steps: int,
    batch_rows: int,
    per_token: float,
    n_measurements: int,
    progress: bool,
) -> pd.DataFrame:
    """SAELens' own loop (its public steps), measured on the way."""
    held_out = held_out.to(trainer.sae.W_dec)
    due = _schedule(n_steps, n_measurements)
    records = [{"tokens": 0, "flops": 0.0} | measure_rows(trainer.sae, held_out)]
    with tqdm(
        total=n_steps * batch_rows,
        desc="training SAE",
        unit="token",
        disable=not progress,
        leave=False,
    ) as bar:
        for step in range(1, n_steps + 1):
            trainer.maybe_reset_sparsity()
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
            bar.update(batch_rows)
            if step in due:
                tokens = step * batch_rows
                records.append(
                    {"tokens": tokens, "flops": tokens * per_token}
                    | measure_rows(trainer.sae, held_out)
                )
                bar.set_postfix(explained_variance=f"{records[-1]['explained_variance']:.3f}")
    trainer.set_final_sae_metadata()
    return pd.DataFrame(records)


def _schedule(n_steps: int, n_measurements: int) -> set[int]:
    """Steps after which to measure: half of them evenly in the logarithm, half evenly."""
    half = max(n_measurements // 2, 1)
    early = {round(n_steps ** (i / half)) for i in range(half + 1)}
    return early | {round(n_steps * (i + 1) / half) for i in range(half)}
