"""One pass over two models on the same documents, which returns `CrossMoments`.

Problem: activations of two models on millions of tokens do not fit into memory. Mechanism: blocks
of windows (`lrt_lens.data._blocks`) run through both models, the rows of unmasked tokens are added
to the moments, and the rows are dropped. Memory does not grow with the number of tokens. Neither
model runs past its deepest requested hook point or computes logits. A thread cuts the next blocks
while the models compute.

    moments = harvest(pair, documents, source_layers="all", target_layers="all", n_tokens=200_000)
    moments = harvest(pair, documents, checkpoint="run-7")     # called again, it resumes
    moments = harvest(pair, documents, shard=(3, 8))           # `merge_shards` adds all eight

Everything that decides the numbers, except the documents, is a `HarvestRun`: it is checked before
a document is read, and compared with the checkpoint when a run resumes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from lrt_lens._numbers import checked_seconds
from lrt_lens._progress import tqdm
from lrt_lens._settings import resolve, takes
from lrt_lens.data._blocks import (
    ItemsAhead,
    WindowCutter,
    check_folds,
    iterate_blocks,
    running_ahead,
)
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.data._file_shares import FileShares
from lrt_lens.data._windows import Block, BlockPlan, Share
from lrt_lens.models._hook_points import EMBED, HookPair
from lrt_lens.models._loading import torch_dtype
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._accumulator import Accumulator
from lrt_lens.moments._block_rows import KeptStates, provenance_of, window_length
from lrt_lens.moments._block_streams import (
    BlockStream,
    EndOfShare,
    FileStreams,
    SharedFiles,
    WholeStream,
)
from lrt_lens.moments._checkpoint import Checkpoint
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._feeding import BlockFeed, OnBlock, Sides
from lrt_lens.moments._harvest_settings import HarvestSettings, SurveySettings
from lrt_lens.moments._placement import placed, refuse_unfit
from lrt_lens.moments._plan import (
    FEWER_COLUMNS,
    HarvestPlan,
    ModelShape,
    choose_pairs,
    moment_bytes,
    null_kind,
    rows_of_block,
)
from lrt_lens.moments._provenance import BY_GROUP, Provenance, group_column
from lrt_lens.moments._survey_moments import SurveyMoments
from lrt_lens.moments._survey_sums import Sketch, survey_bytes
from lrt_lens.moments.cache._manifest import Manifest
from lrt_lens.moments.cache._writer import CacheWriter

logger = logging.getLogger(__name__)

# Fields of a provenance that change while documents are read, or with the installed packages: two
# runs may differ in them and still add to the same moments.
_NOT_COMPARED = (
    "versions",
    "n_documents",
    "corpus",
    "stream",
    "aligned",
    "n_capped",
    "part_documents",
    "heaviest_rows",
)


@takes(HarvestSettings)
def harvest(
    pair: ModelPair,
    documents: Documents,
    *,
    settings: HarvestSettings | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
    on_block: OnBlock | None = None,
    cache: str | Path | None = None,
    cache_dtype: str = "bfloat16",
    progress: bool = True,
    **options: Any,
) -> CrossMoments:
    """Return the moments of all requested hook pairs, and of token identity with each target.

    Args:
        pair: source model and target model.
        documents: texts, chats, a file, a table or a data set; see `lrt_lens.data._documents`.
        settings: a `HarvestSettings`, whose fields are described there.
        checkpoint: folder for checkpoints. If it holds checkpoints of the same arguments and
            documents, the harvest resumes; `remove_checkpoints` removes them.
        checkpoint_every: seconds between two checkpoints; longer if writing would otherwise take
            more than 5 % of the time.
        on_block: called with each block that this process harvests.
        cache: folder for an `ActivationCache` of the same rows; resumes like the checkpoint. It
            needs the default numbers of folds and test groups.
        cache_dtype: precision of the cached rows.
        progress: show a progress bar.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        HookPointError: a model does not have a requested layer.
        TooFewDocumentsError: a fold has no document.
        MismatchError: the tokenizers differ and no position of the documents aligns, or the
            documents are chats; or the checkpoint is of another run.
        NonFiniteError: an activation is NaN or infinite; the message names hook point and batch.
        ValueError: a setting is out of range, or the moments need more memory than is free.
    """
    settings = resolve(HarvestSettings, settings, options)
    checkpoint_every = checked_seconds(checkpoint_every)
    settings = with_fields_of(documents, settings)
    run = settle(pair, settings=settings)
    with (
        nullcontext()
        if cache is None
        else CacheWriter(cache, run.cache_manifest(cache_dtype)) as writer
    ):
        # The checkpoint is closed before the cache, and the cache writes its buffered rows also
        # after an error.
        moments: CrossMoments = run.harvest_share(
            documents,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            on_block=on_block,
            cache=writer,
            progress=progress,
        )
    return moments


def harvest_survey(
    pair: ModelPair,
    documents: Documents,
    settings: SurveySettings,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
    progress: bool = True,
) -> SurveyMoments:
    """Return the sketched moments of all requested hook pairs; see `lrt_lens.survey`."""
    run = settle(pair, settings=with_fields_of(documents, settings))
    moments: SurveyMoments = run.harvest_share(
        documents,
        checkpoint=checkpoint,
        checkpoint_every=checked_seconds(checkpoint_every),
        progress=progress,
    )
    return moments


Cutter = Callable[[BlockPlan], WindowCutter]
"""Function that returns what cuts the documents of a harvest with that plan."""


def _token_hook(pair: ModelPair | Sides) -> str | None:
    """Return the source hook point of the embedding; None if the model does not have it."""
    return EMBED if EMBED in pair.source.hook_points else None


Kind = TypeVar("Kind", bound=HarvestSettings)


def with_fields_of(documents: Documents, settings: Kind) -> Kind:
    """Return the settings with the columns of a `DocumentSource`."""
    if not isinstance(documents, DocumentSource):
        return settings
    source = DocumentSource.of(documents, settings.text_field, settings.group)
    return replace(settings, text_field=source.text_field, group=source.group)


@takes(HarvestSettings)
def settle(
    pair: ModelPair | Sides, *, settings: HarvestSettings | None = None, **options: Any
) -> "HarvestRun":
    """Return the run that `harvest` would do with these settings; no document is read.

    Raises:
        HookPointError: a model does not have a requested layer.
        ValueError: a setting is out of range.
    """
    settings = resolve(HarvestSettings, settings, options)
    pairs = choose_pairs(settings, pair.source, pair.target)
    # Everything is resolved to explicit values here, because they are compared between ranks and
    # with checkpoints.
    token_hook = _token_hook(pair)
    widths = (pair.source.d_model, pair.target.d_model)
    plan = BlockPlan(
        context_length=window_length(
            settings.context_length, pair.source, pair.target, skip_first=settings.skip_first
        ),
        skip_first=settings.skip_first,
        n_tokens=settings.n_tokens,
        max_document_tokens=settings.max_document_tokens,
        block_rows=rows_of_block(settings.block_rows, pairs, token_hook, *widths),
        seed=settings.seed,
        lag=settings.lag,
        parts=settings.parts,
    )
    return HarvestRun(
        models=pair,
        pairs=pairs,
        plan=plan,
        null=null_kind(settings.null, pairs, pair.source.d_model, pair.target.d_model),
        moment_dtype=torch_dtype(settings.moment_dtype),
        shard=settings.shard,
        batch_tokens=settings.batch_tokens,
        text_field=settings.text_field,
        group=settings.group,
        placement=(settings.placement, settings.placement_folder),
        sketch=settings.sketch if isinstance(settings, SurveySettings) else None,
        file_shares=settings.file_shares,
    )


@dataclass(frozen=True)
class HarvestRun:
    """Everything that decides the numbers of a harvest except the documents."""

    models: ModelPair | Sides
    pairs: tuple[HookPair, ...]
    plan: BlockPlan
    null: str
    """``"full"``, ``"sketch"`` or ``"none"``."""
    moment_dtype: torch.dtype
    shard: tuple[int, int] | None = None
    batch_tokens: int = 4096
    """Padded tokens per forward pass; it does not change the numbers and is not compared."""
    text_field: str | None = None
    """Column of the texts, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in `HarvestSettings`."""
    placement: tuple[str, str | Path | None] = ("auto", None)
    """Place of the sums, and the folder of a mapped file; not compared."""
    sketch: Sketch | None = None
    """Random columns of a survey; None for exact moments."""
    file_shares: int | None = None
    """Number of shares of the files, as in `HarvestSettings`."""
    files: SharedFiles | None = None
    """The documents in these shares, from `with_files_of`."""
    cutter: Cutter | None = field(default=None, compare=False)
    """Function that returns the cutter of the documents; None: a `WindowCutter` of both models."""

    @property
    def token_hook(self) -> str | None:
        """The source hook point of the embedding; None if the model does not have it."""
        return _token_hook(self.models)

    @property
    def provenance(self) -> Provenance:
        """Provenance of this run before any document is read."""
        provenance = provenance_of(
            self.plan,
            {"source": self.models.source, "target": self.models.target},
            shard=self.shard,
            group=self.group,
        )
        return replace(provenance, file_shares=self.file_shares)

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON values that must be equal in all ranks of a run and in a run that resumes it."""
        fields = self.provenance.stored
        compared = {name: value for name, value in fields.items() if name not in _NOT_COMPARED}
        return (
            compared
            | {
                "pairs": self.pairs,
                "token_hook": self.token_hook,
                "null": self.null,
                "moment_dtype": str(self.moment_dtype).removeprefix("torch."),
                "block_rows": self.plan.block_rows,
            }
            | ({"sketch": asdict(self.sketch)} if self.sketch else {})
            | (self.files.arguments if self.files else {})
        )

    def with_files_of(self, documents: Documents) -> "HarvestRun":
        """Return this run with the documents in shares, if it has ``file_shares``.

        The first block of the first share is read.

        Raises:
            FileFormatError: there are fewer files than shares, or one of them is damaged.
            TooFewDocumentsError: the first share has no row.
            ValueError: the documents cannot be divided by files.
        """
        if self.file_shares is None or self.files is not None:
            return self
        shares = FileShares.of(self._source(documents), self.file_shares)
        models = (self.models.source, self.models.target)
        return replace(self, files=SharedFiles.of(shares, self.plan, *models))

    def _source(self, documents: Documents) -> DocumentSource:
        return DocumentSource.of(documents, self.text_field, self.group)

    def cache_manifest(self, dtype: str) -> Manifest:
        """Return the manifest of an empty activation cache of this harvest."""
        return Manifest(
            self.provenance,
            dtype,
            streams={},
            pairs=self.pairs,
            token_hook=self.token_hook,
            block_rows=self.plan.block_rows,
        )

    def with_pairs(self, pairs: tuple[HookPair, ...]) -> "HarvestRun":
        """Return this run with other hook pairs: one of several passes within a memory budget."""
        return replace(self, pairs=pairs)

    def begin(self) -> CrossMoments | SurveyMoments:
        """Return empty moments, sketched ones for a survey.

        Raises:
            ValueError: the moments need more memory than is free.
        """
        source, target = self.models.source, self.models.target
        # Checked here, before the first block: the system would kill the process later.
        widths, device = (source.d_model, target.d_model), source.device
        if self.sketch is not None:
            itemsize = self.moment_dtype.itemsize
            sizes = survey_bytes(self.pairs, self.token_hook, self.sketch, *widths, itemsize)
            refuse_unfit(sum(sizes.values()), device, FEWER_COLUMNS)
            return SurveyMoments(
                self.pairs, self.token_hook, self.moment_dtype, self.sketch, self.provenance
            )
        n_parts = self.plan.parts.n_parts
        n_bytes = moment_bytes(self.pairs, self.token_hook, self.null, *widths, n_parts)
        placement = placed(
            self.placement[0],
            device,
            sum(n_bytes.values()),
            self._workspace,
            folder=self.placement[1],
        )
        return CrossMoments(
            self.pairs,
            self.token_hook,
            self.moment_dtype,
            self.null,
            self.provenance,
            placement=placement,
        )

    @property
    def _workspace(self) -> int:
        """Bytes of one block on the device of the models."""
        shapes = map(ModelShape.of_model, (self.models.source, self.models.target))
        return HarvestPlan(
            *shapes,
            passes=(self.pairs,),
            null=self.null,
            token_hook=self.token_hook,
            moment_dtype=self.moment_dtype,
            context_length=self.plan.context_length,
            block_rows=self.plan.block_rows,
        ).workspace

    def harvest_share(
        self,
        documents: Documents,
        *,
        checkpoint: str | Path | None,
        checkpoint_every: float,
        **options: Any,
    ) -> Any:
        """Return the moments of this process's shard, or of all blocks without shards.

        ``options`` are keywords of `harvest`.
        """
        run, share = self.with_files_of(documents), Share(shard=self.shard or (0, 1))
        folder = (
            nullcontext()
            if checkpoint is None
            else Checkpoint(Path(checkpoint), run.arguments, share, every=checkpoint_every)
        )
        with folder as opened:
            moments = run.harvest(documents, share, checkpoint=opened, **options)[0]
        if run.shard is None:
            check_whole(moments)
        return moments

    def harvest(
        self,
        documents: Documents,
        share: Share,
        *,
        checkpoint: Checkpoint | None = None,
        on_block: OnBlock | None = None,
        cache: CacheWriter | None = None,
        progress: bool = True,
    ) -> tuple[Any, int]:
        """Return (moments of the work of ``share``, number of its units of all processes).

        Units are the blocks of the whole stream, or the shares of the files.

        Raises:
            ValueError: there are fewer shares of the files than processes.
        """
        source = self._source(documents)
        # A cache resumes from its own position, so that it needs finished shares again.
        streams = self._streams(source, share, None if cache is not None else checkpoint)
        moments = self.begin()
        feed = BlockFeed(self.models, self.plan.seed, self.batch_tokens, on_block, cache)
        if source.group is not None:
            moments.provenance = replace(
                moments.provenance, fold_rule=BY_GROUP, group_column=group_column(source.group)
            )
        if checkpoint is not None:
            checkpoint.after_write = lambda: self._delete_states(checkpoint.own)
            checkpoint.resume(moments, self.models.source.device)
        bar = tqdm(
            total=streams.n_tokens,
            desc="harvest",
            unit="tok",
            unit_scale=True,
            disable=not progress,
            leave=False,
        )
        blocks = running_ahead(streams.read())
        # `_saved` is the innermost context: an interrupt writes the checkpoint first, and then ends
        # the threads that read.
        with bar, blocks as arriving, closing(feed), _saved(checkpoint, moments):
            upcoming = partial(_upcoming, arriving, streams)
            for block in arriving:
                if isinstance(block, EndOfShare):
                    if checkpoint is not None:
                        checkpoint.end_share(block.share, block.n_blocks)
                    continue
                is_ours = streams.takes(block)
                feed.take(moments, block, checkpoint, is_ours=is_ours, upcoming=upcoming)
                # The bar counts blocks of other ranks too if all walk through the same stream.
                if is_ours or self.file_shares is None:
                    bar.update(min(block.n_rows, bar.total - bar.n) if bar.total else block.n_rows)
            if checkpoint is not None:
                if self.file_shares is None:
                    checkpoint.refuse_shorter_stream(streams.n_units)
                checkpoint.write(moments)
        moments.finish()
        if checkpoint is None:
            self._delete_states(filter(share.takes, range(streams.n_units)))
        for sentence in feed.far.warnings():
            logger.warning("%s", sentence)
        moments.warn_of_heavy_rows()
        # `merge_shards` compares it, so that shards of other documents are refused.
        if self.shard is not None:
            moments.provenance = replace(moments.provenance, stream=streams.digest)
        return moments, streams.n_units

    def _streams(
        self, source: DocumentSource, share: Share, checkpoint: Checkpoint | None
    ) -> BlockStream:
        """Return the blocks that a process reads for its share of the work."""
        files = self.with_files_of(source).files
        if files is not None and checkpoint is not None:
            return FileStreams(files, share, checkpoint.is_complete)
        if files is not None:
            return FileStreams(files, share)
        blocks = iterate_blocks(
            source,
            self.models.source,
            self.plan,
            target=self.models.target,
            cutter=self.cutter and self.cutter(self.plan),
        )
        return WholeStream(blocks, self.plan.n_tokens, share)

    def _delete_states(self, finished: Iterable[int]) -> None:
        """Delete the kept states of blocks that are finished, where that is wanted."""
        for side in (self.models.source, self.models.target):
            if isinstance(side, KeptStates):
                side.delete(finished)


def check_whole(moments: Accumulator) -> None:
    """Refuse an empty fold in moments of all shares of the files; warn of uneven folds.

    Moments of one stream were checked while it was read.

    Raises:
        TooFewDocumentsError: a fold has no document; the message names it.
    """
    if moments.provenance.file_shares is not None:
        tokens, parts = [int(number) for number in moments.n.tolist()], moments.parts
        # Those of a survey have one test part.
        tokens += [0] * (parts.n_parts - len(tokens))
        check_folds(moments.provenance.part_documents, tokens, parts)


def _upcoming(arriving: ItemsAhead[Block | EndOfShare], streams: BlockStream) -> Iterator[Block]:
    """Yield the blocks of this process that are cut and were not taken yet."""
    for block in arriving.ready():
        if not isinstance(block, EndOfShare) and streams.takes(block):
            yield block


def _saved(checkpoint: Checkpoint | None, moments: Accumulator) -> AbstractContextManager[None]:
    return checkpoint.saving(moments) if checkpoint else nullcontext()
