"""Origin of moments and maps: models, texts and settings.

Problem: sums of different models or texts can be added without an error, and the result means
nothing. Mechanism: each file holds a `Provenance`, and `Provenance.merged` compares two of them
before their moments are added.

    moments.provenance.source.name          # "gpt2"
    moments.provenance.alignment            # "equal positions of one tokenization"

Limits: fields are empty for activations that a user adds, unless the user names the models; an
empty field means unknown, and is compared too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text
from lrt_lens.data._parts import DEFAULT_PARTS, Parts
from lrt_lens.data._windows import Aligned
from lrt_lens.errors import MismatchError
from lrt_lens.models._identity import ModelIdentity

_SAME_HARVEST = (
    "source",
    "target",
    "context_length",
    "skip_first",
    "chat_template",
    "seed",
    "lag",
    "fold_rule",
    "group_column",
    "parts",
)
BY_TEXT, BY_GROUP, BY_EXACT_TEXT = "normalised text", "group", "exact text"
"""Rules that decide the fold of a document; files of earlier versions have the exact text."""

UNSTORED: dict[str, Any] = {"parts": asdict(DEFAULT_PARTS), "frequent_tokens": None}
"""Fields that files leave out if they have these values, as versions without the fields do."""


@dataclass(frozen=True)
class Provenance:
    """Models, texts and settings of a harvest; fields of a user's own activations may be empty."""

    source: ModelIdentity | None = None
    target: ModelIdentity | None = None
    context_length: int | None = None
    skip_first: int | None = None
    """Masked positions at the start of each window."""
    chat_template: str | None = None
    """Hash of the chat template that was applied to the documents; None for plain text."""
    seed: int = 0
    n_documents: int = 0
    corpus: str = ""
    """Sum of the documents' hashes modulo 2⁶⁴: independent of their order."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that computed the numbers; several are separated by commas."""
    source_dtype: str = ""
    """Precision in which the source ran; empty if unknown."""
    target_dtype: str = ""
    """Precision in which the target ran; empty if unknown."""
    n_tokens: int | None = None
    """Unmasked tokens after which no further document was read; None if all were read."""
    shard: tuple[int, int] | None = None
    """Shard as (i, N): every Nth block, or every Nth of ``file_shares``, beginning with number i;
    None for all.
    """
    stream: str = ""
    """Hash of all blocks in their order, other shards included: equal for all shards of one run.
    With ``file_shares`` it is a hash of the files' names and sizes and of the first block. Empty
    unless this is a shard.
    """
    lag: int = 0
    """Rows by which the target was read later than the source; above 0 for a control only."""
    aligned: tuple[int, int, int] | None = None
    """Numbers of (aligned positions, source tokens, target tokens) in these documents; None if both
    models read the same tokens.
    """
    fold_rule: str = BY_TEXT
    """Rule that decides the fold of a document: ``"normalised text"``, or ``"group"``."""
    group_column: str | None = None
    """Column that held the groups; None without groups, or if they came from elsewhere."""
    max_document_tokens: int | Literal["auto"] | None = None
    """Largest number of tokens per document, as in `HarvestSettings`."""
    n_capped: int = 0
    """Number of documents that are longer than that."""
    part_documents: tuple[int, ...] | None = None
    """Number of documents of each part; None if it is not known."""
    launch: str = ""
    """Name of the launch of several processes that computed the numbers together; empty for one."""
    heaviest_rows: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Squared distance from the centre of its block, and name, of the longest row by hook point
    (``"source HOOK"``, ``"target HOOK"``); only rows that are many times as long as the median.
    """
    file_shares: int | None = None
    """Number of shares of the files, each with its own blocks; None if all documents were one."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and of groups of the test fold; files name them unless they are the default.
    """
    frequent_tokens: tuple[int, ...] | None = None
    """Ids of the tokens that have one column each in the baseline of token identity; None if it is
    an embedding or there is none.
    """

    @property
    def stored(self) -> dict[str, Any]:
        """Fields as a file stores them, without those that are the default of ``UNSTORED``."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if UNSTORED.get(name, ...) != fields[name]}

    def documents_of(self, parts: Sequence[int]) -> list[int] | None:
        """Return the number of documents of each of these parts; None if it is not known."""
        return None if self.part_documents is None else [self.part_documents[p] for p in parts]

    def merged(self, other: "Provenance") -> "Provenance":
        """Return the provenance of two parts of one harvest together.

        Raises:
            MismatchError: the parts differ in model or settings, or hold the same documents.
        """
        for name in _SAME_HARVEST:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, ModelIdentity) and isinstance(theirs, ModelIdentity):
                ours.refuse_other(theirs, f"the {name} model of the other shard")
            elif ours != theirs:
                raise MismatchError(
                    f"shards differ in {name}: {ours!r} and {theirs!r}; "
                    "harvest every shard with the same arguments"
                )
        if self.frequent_tokens != other.frequent_tokens:
            raise MismatchError(
                "shards differ in frequent_tokens, the tokens that have a column each: give "
                "frequent_tokens=first.provenance.frequent_tokens for the second, or embedding=… "
                "for both"
            )
        if self.n_documents and self.corpus and self.corpus == other.corpus:
            raise MismatchError(
                f"both shards hold the same {self.n_documents} documents (corpus {self.corpus}); "
                "merging would count them twice: give each shard once"
            )
        whole = replace(self, n_tokens=self.n_tokens if self.n_tokens == other.n_tokens else None)
        # Two shards together are not a shard: they have no number and no hash of the stream.
        if self.shard != other.shard:
            whole = replace(whole, shard=None, stream="")
        return whole.with_documents_of(other)

    def with_documents_of(self, other: "Provenance") -> "Provenance":
        """Return this provenance with the documents of another part of the same harvest."""
        whole = self.with_documents(
            other.n_documents,
            int(other.corpus, 16) if other.corpus else None,
            other.aligned,
            n_capped=other.n_capped,
            part_documents=other.part_documents,
        )
        rows = dict(self.heaviest_rows)
        for hook, row in other.heaviest_rows.items():
            rows[hook] = max(rows.get(hook, row), row)
        versions = {
            name: _either(self.versions.get(name, ""), other.versions.get(name, ""))
            for name in self.versions | other.versions
        }
        return replace(whole, heaviest_rows=rows, versions=versions)

    def with_documents(
        self,
        n_documents: int,
        digest: int | None = None,
        aligned: tuple[int, int, int] | None = None,
        *,
        n_capped: int = 0,
        part_documents: tuple[int, ...] | None = None,
    ) -> "Provenance":
        """Return this provenance with ``n_documents`` more documents.

        ``digest`` is the sum of their hashes, the other arguments are counts as in the fields.
        """
        # Hashes are added, not chained, so that documents count the same in any order and shard.
        corpus = (
            self.corpus
            if digest is None
            else f"{(int(self.corpus or '0', 16) + digest) % 2**64:016x}"
        )
        if aligned is not None and self.aligned is not None:
            aligned = (Aligned(*self.aligned) + Aligned(*aligned)).counts
        # Unknown parts make the sum unknown, unless there is no document to be in a part.
        if not n_documents:
            part_documents = self.part_documents
        elif self.n_documents:
            known = None not in (self.part_documents, part_documents)
            counts = zip(self.part_documents or (), part_documents or (), strict=known)
            part_documents = tuple(one + other for one, other in counts) if known else None
        return replace(
            self,
            n_documents=self.n_documents + n_documents,
            corpus=corpus,
            aligned=aligned or self.aligned,
            n_capped=self.n_capped + n_capped,
            part_documents=part_documents,
        )

    def refuse_other_folds(self, group: Any) -> None:
        """Raise `MismatchError` if documents would get other folds than in this harvest.

        ``group`` is that of the documents, as in `DocumentSource`; None if they have no groups.
        Values and functions are not compared with the harvest's.
        """
        ours, column = BY_TEXT if group is None else BY_GROUP, group_column(group)
        if self.fold_rule == ours:
            if None not in (column, self.group_column) and column != self.group_column:
                raise MismatchError(
                    f"the folds of this harvest were decided by the groups in the column"
                    f" {self.group_column!r}, those of these documents would be by {column!r}, so"
                    " that fitted documents would be in the test fold; give"
                    f" group={self.group_column!r}, or the same values as a list"
                )
            return
        remedies = {
            BY_GROUP: "give the groups of the harvest: DocumentSource(documents, group=…)",
            BY_TEXT: "leave the groups out, or harvest with them",
        }
        raise MismatchError(
            f"the folds of this harvest were decided by {self.fold_rule}, those of these documents"
            f" would be by {ours}, so that its test fold is not found; "
            + remedies.get(self.fold_rule, "harvest and fit again with this version")
        )

    @property
    def is_of_own_rows(self) -> bool:
        """True if no windows of text were read, so that a user gave the rows."""
        return self.context_length is None and self.aligned is None

    @property
    def alignment(self) -> str:
        """Description of the positions that were paired, as one sentence."""
        later = f", the target's {self.lag} row(s) later (a control)" if self.lag else ""
        if self.is_of_own_rows:
            return f"rows in the order in which they were given; their positions are unknown{later}"
        if self.aligned is not None:
            return f"positions behind the same characters: {Aligned(*self.aligned)}{later}"
        has_two_tokenizers = (
            self.source is not None
            and self.target is not None
            and not self.source.reads_as(self.target)
        )
        if has_two_tokenizers:
            return f"positions behind the same characters{later}"
        return f"equal positions of one tokenization{later}"

    def to_json(self) -> str:
        """Return the fields as one JSON object.

        Raises:
            ValueError: a field is of another type than it should be.
        """
        return stored_text(Provenance, self.stored)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Return the provenance that `to_json` wrote.

        Raises:
            FileFormatError: the text is no JSON, or a field is missing, unknown or of another type.
        """
        path = Path("provenance")
        return stored_provenance(path, json_object(path, text, "the text"))

    def swapped(self) -> "Provenance":
        """Return the provenance with source and target exchanged."""
        # (aligned positions, source tokens, target tokens); a lag of the target becomes a lead.
        aligned = self.aligned and (self.aligned[0], self.aligned[2], self.aligned[1])
        other_role = {"source": "target", "target": "source"}
        rows = {
            f"{other_role[role]} {point}": row
            for hook, row in self.heaviest_rows.items()
            for role, _, point in [hook.partition(" ")]
        }
        return replace(
            self,
            source=self.target,
            target=self.source,
            source_dtype=self.target_dtype,
            target_dtype=self.source_dtype,
            aligned=aligned,
            lag=-self.lag,
            heaviest_rows=rows,
        )


def stored_provenance(path: Path, content: dict[str, Any]) -> Provenance:
    """Return the provenance that a file stores as `Provenance.to_json` writes it.

    Raises:
        FileFormatError: a field is missing, unknown or of another type.
    """
    # Files from before this field decided the folds by the exact text.
    content = {"fold_rule": BY_EXACT_TEXT} | content
    fields = stored_fields(path, Provenance, content)
    with as_damage(path):
        found = Provenance(**fields)
        # Sums of hashes are read as such when documents are added.
        int(found.corpus or "0", 16)
        index, count = found.shard or (0, 1)
        if not 0 <= index < count:
            raise ValueError(f"shard {index} of {count}")
    return found


def group_column(group: Any) -> str | None:
    """Return the column that ``group`` of a `DocumentSource` names; None if it names none."""
    return group if isinstance(group, str) else None


def _either(one: str, other: str) -> str:
    """Return the versions in both lists, each once."""
    return ", ".join(dict.fromkeys(text for text in f"{one}, {other}".split(", ") if text))


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that numbers depend on."""
    versions = {}
    for name in ("lrt-lens", "torch", "transformers", "transformer-lens", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
