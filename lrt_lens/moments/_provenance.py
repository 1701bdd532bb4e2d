"""Where moments and maps come from: which models, which tokens, which rules. Travels in every file
and is compared on every merge.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lrt_lens.data._window_cutter import Aligned
from lrt_lens.errors import MismatchError
from lrt_lens.models._identity import ModelIdentity

_SAME_HARVEST = ("source", "target", "context_length", "skip_first", "chat_template", "seed", "lag")


@dataclass(frozen=True)
class Provenance:
    """Origin of a harvest; everything may be unknown for activations that a user brings along."""

    source: ModelIdentity | None = None
    target: ModelIdentity | None = None
    context_length: int | None = None
    skip_first: int | None = None
    """Masked positions at the start of each window."""
    chat_template: str | None = None
    """Hash of the chat template that documents went through; None for plain text."""
    seed: int = 0
    n_documents: int = 0
    corpus: str = ""
    """Sum of the documents' hashes: the same for any order, another for another text."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that made it."""
    source_dtype: str = ""
    """Precision in which the source ran; empty where unknown."""
    target_dtype: str = ""
    n_tokens: int | None = None
    """Unmasked tokens after which no further document was taken; None where all were."""
    shard: tuple[int, int] | None = None
    """(i, N): only every Nth block, from the i-th on; None for the whole."""
    stream: str = ""
    """Hash of all blocks in their order, those of other shards included: equal for shards of one
    run. Set on shards only.
    """
    lag: int = 0
    """Rows by which the target was read later than the source: above 0 a control of the pairing."""
    aligned: tuple[int, int, int] | None = None
    """Where the models read different tokens: aligned positions, and tokens of source and target,
    in these documents.
    """

    def merged(self, other: "Provenance") -> "Provenance":
        """The provenance of both shards together; `MismatchError` names what differs."""
        for name in _SAME_HARVEST:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, ModelIdentity) and isinstance(theirs, ModelIdentity):
                ours.refuse_other(theirs, f"the {name} model of the other shard")
            elif ours != theirs:
                raise MismatchError(
                    f"shards differ in {name}: {ours!r} and {theirs!r}; harvest every shard with the same arguments"
                )
        if self.n_documents and self.corpus and self.corpus == other.corpus:
            raise MismatchError(
                f"both shards hold the same {self.n_documents} documents (corpus {self.corpus}); merging would count them twice"
            )
        whole = replace(self, n_tokens=self.n_tokens if self.n_tokens == other.n_tokens else None)
        if self.shard != other.shard:
            whole = replace(whole, shard=None, stream="")
        return whole.with_documents_of(other)

    def with_documents_of(self, other: "Provenance") -> "Provenance":
        """With the documents of another part of the same harvest."""
        return self.with_documents(
            other.n_documents, int(other.corpus, 16) if other.corpus else None, other.aligned
        )

    def with_documents(
        self,
        n_documents: int,
        digest: int | None = None,
        aligned: tuple[int, int, int] | None = None,
    ) -> "Provenance":
        """With so many documents more, whose hashes add up to ``digest`` and which align so far (as
        in the field).
        """
        corpus = (
            self.corpus
            if digest is None
            else f"{(int(self.corpus or '0', 16) + digest) % 2**64:016x}"
        )
        if aligned is not None and self.aligned is not None:
            aligned = (Aligned(*self.aligned) + Aligned(*aligned)).counts
        return replace(
            self,
            n_documents=self.n_documents + n_documents,
            corpus=corpus,
            aligned=aligned or self.aligned,
        )

    @property
    def alignment(self) -> str:
        """One sentence on which positions were paired."""
        later = f", the target's {self.lag} row(s) later (a control)" if self.lag else ""
        if self.aligned is not None:
            return f"positions behind the same characters: {Aligned(*self.aligned)}{later}"
        two = (
            self.source is not None
            and self.target is not None
            and not self.source.reads_as(self.target)
        )
        return f"{'positions behind the same characters' if two else 'equal positions of one tokenization'}{later}"

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Back from `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        for role in ("source", "target"):
            if fields.get(role) is not None:
                fields[role] = ModelIdentity(**fields[role])
        for name in ("shard", "aligned"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        return cls(**fields)

    def swapped(self) -> "Provenance":
        """With source and target exchanged."""
        aligned = self.aligned and (self.aligned[0], self.aligned[2], self.aligned[1])
        return replace(
            self,
            source=self.target,
            target=self.source,
            source_dtype=self.target_dtype,
            target_dtype=self.source_dtype,
            aligned=aligned,
            lag=-self.lag,
        )


def package_versions() -> dict[str, str]:
    """Versions of this package and of the libraries that numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("lrt-lens", "torch", "transformers", "transformer-lens", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
