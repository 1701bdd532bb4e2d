"""Recentring: the threshold of a transferred probe, set on unlabelled texts.

    recentre = lrt.Recentring(pair, texts)              # unlabelled texts of the probe's domain
    transferred = stitch.transfer(probe, recentre=recentre)
    transferred = lrt.recentre_probe(probe, stitch.transfer(probe), pair, texts)    # the same

Problem: the direction of a transferred probe may arrive while its threshold does not. Texts that
are unlike those on which the map was fitted have states with a common error, which shifts all
scores alike: every text is on one side of the threshold (AUROC .98, accuracy .40). Mechanism: the
probe scores some texts in its own model, the transferred probe scores the same texts in the target,
and the transferred probe's weights are scaled and its bias is moved so that mean and standard
deviation of its scores are those in the source (`lrt_lens.statistics._recentring` has the formula).
The direction stays parallel and no label is read: the texts that the probe was learnt from will do.

Limits: the texts must be of the domain that is classified, with its classes in the proportions of
that domain or any others, as long as both models read the same texts. Few texts give a threshold
with the error of their mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._recentring import FEWEST_ROWS, constant_columns


@dataclass(frozen=True, eq=False)
class Recentring:
    """Models and unlabelled texts on which transferred scores are recentred."""

    pair: ModelPair
    """The probe's own model and the target."""
    texts: Sequence[str]
    """Unlabelled texts of the probe's domain, such as those that it was learnt from."""

    def recentred(self, probe: LinearProbe, transferred: LinearProbe) -> LinearProbe:
        """Return the transferred probe, recentred; see `recentre_probe`."""
        return recentre_probe(probe, transferred, self.pair, self.texts)


def recentre_probe(
    probe: LinearProbe, transferred: LinearProbe, pair: ModelPair, texts: Sequence[str]
) -> LinearProbe:
    """Return the transferred probe with the mean and spread of the source's scores on ``texts``.

    Each model reads the texts once; texts that the mask leaves nothing of in one of them are left
    out. With ``read="every"`` the scores are those of all tokens.

    Args:
        probe: the probe on the source.
        transferred: the same probe, transferred to the target by any map.
        pair: both models.
        texts: unlabelled texts of the probe's domain.

    Raises:
        ValueError: too few texts, probes of different classes or read positions, or scores that do
            not vary over the texts.
        MismatchError: a probe belongs to another model than that of the pair.
    """
    _refuse_other_probe(probe, transferred)
    kept = probe.readable([pair.source, pair.target], text_list(texts))
    read = kept.of(text_list(texts))
    refuse_few(len(read))
    source = probe.logits(probe.rows(pair.source, read)[0])
    target = transferred.logits(transferred.rows(pair.target, read)[0])
    for scores, model in ((source, "source"), (target, "target")):
        if constant_columns(scores).any():
            raise ValueError(
                f"the scores of probe {probe.name!r} are the same for all {len(read)} texts in "
                f"the {model}, so there is no spread to match; give texts that differ, or another "
                "probe"
            )
    return transferred.matched(source, target, read)


def refuse_few(n_texts: int) -> None:
    """Raise `ValueError` if there are too few texts to set a threshold on."""
    if n_texts < FEWEST_ROWS:
        raise ValueError(
            f"{n_texts} texts can be read; recentring needs at least {FEWEST_ROWS}, because a mean "
            "of few scores moves the threshold at random: give more unlabelled texts"
        )


def _refuse_other_probe(probe: LinearProbe, transferred: LinearProbe) -> None:
    """Raise `ValueError` unless the second probe can be the first one, transferred."""
    ours, theirs = ((one.classes, one.read) for one in (probe, transferred))
    if ours != theirs:
        raise ValueError(
            f"the transferred probe has classes {list(theirs[0])} and read {theirs[1]!r}, the "
            f"source's {list(ours[0])} and {ours[1]!r}; give stitch.transfer(probe) of this probe"
        )
