"""Rows of one block about a centre, and their products without loss of precision.

Problem: products in float32 lose digits if the rows are far from the shift relative to their
spread, and if one row is many times as long as the others; a map fitted on such sums is wrong
without a warning. Mechanism: the products of a block are computed about the shift of the harvest,
or about the mean of the block if that is more than 4 standard deviations away in some dimension.
Rows that are much longer than the median take no part in these products and are multiplied in
float64. The sums are then moved to the shift in float64, which is exact for any distance:

    Σ(x − c)(y − c')ᵀ = Sxy + sₓ·δ_yᵀ + δₓ·s_yᵀ + n·δₓδ_yᵀ      δ = centre − c,  s = Σ(x − centre)

    block = CentredRows.of(rows, shift, torch.float32)
    total, second = block.sums()             # about the shift
    block.light.T @ other.light + block.rest(other)      # cross-products about both shifts

Limits: rows of a block that form two clusters far apart have a large spread, and their products
have the precision that float32 gives to that spread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._scatter import full_precision, gram

_ROUNDS = 3
"""Largest number of times that the centre of a block is moved; the mean changes again if rows turn
out to be heavy."""
_FAR = 4.0
"""Distance of a block's mean from the shift, in standard deviations of one dimension, above which
products are computed about the mean."""
_FIRST_ROWS = 4096
"""Largest number of rows whose mean is the shift."""
LARGEST_PRODUCT = 2**26
"""Largest product of several hook points at once, in numbers."""
_HEAVY = (4.0, 50.0)
"""Smallest and largest multiple of the median norm above which a row is multiplied in float64."""


@dataclass(frozen=True, eq=False)
class CentredRows:
    """Rows of one hook point in one block."""

    light: Tensor
    """Rows minus the centre in the precision of products [row, d]; heavy rows are zero."""
    total: Tensor
    """Sum of ``light`` over the rows [d]."""
    second: Tensor | None
    """Product ``lightᵀ light`` [d, d]; None if it was not wanted."""
    raw: Tensor
    """Rows as they came [row, d]."""
    centre: Tensor
    """Centre that was subtracted [d], float64."""
    delta: Tensor | None = None
    """Centre minus the shift of the sums [d], float64; None if they are equal."""
    heavy: Tensor | None = None
    """Indices of the rows that are zero in ``light``; None if there are none."""

    @classmethod
    def of(
        cls, raw: Tensor, shift: Tensor, dtype: torch.dtype, *, second: bool = True
    ) -> "CentredRows":
        """Return the rows of a block, ready for products in ``dtype``.

        Args:
            raw: [row, d].
            shift: [d], float64 with values that ``dtype`` can hold.
            dtype: precision of products.
            second: compute the product of the rows with themselves.
        """
        block, far = cls._about(raw, shift, dtype, second)
        for _ in range(_ROUNDS):
            if not far:
                break
            # Rounded to the precision of products: the value that is subtracted must be exactly
            # the value that is stored.
            n_light = len(raw) - (0 if block.heavy is None else len(block.heavy))
            centre = (block.centre + block.total.double() / n_light).to(dtype).double()
            block, far = cls._about(raw, centre, dtype, second)
        return block if block.centre is shift else replace(block, delta=block.centre - shift)

    @classmethod
    def _about(
        cls, raw: Tensor, centre: Tensor, dtype: torch.dtype, wants_second: bool
    ) -> tuple["CentredRows", bool]:
        """Return (the rows about a centre, whether the centre is far from their mean)."""
        light = _minus(raw, centre, dtype)
        norms = torch.linalg.vector_norm(light, dim=1)
        least, most = _HEAVY
        is_heavy = norms > min(most, max(least, len(raw) ** 0.5 / 2)) * norms.median()
        total, second, is_far = _sums(light, len(light), wants_second)
        # One question to the device for both; a second one only in the rare case.
        if not bool(is_heavy.any() | is_far):
            return cls(light, total, second, raw, centre), False
        heavy = is_heavy.nonzero()[:, 0]
        if not len(heavy):
            return cls(light, total, second, raw, centre), bool(is_far)
        light[heavy] = 0
        total, second, is_far = _sums(light, len(light) - len(heavy), wants_second)
        return cls(light, total, second, raw, centre, heavy=heavy), bool(is_far)

    @property
    def is_plain(self) -> bool:
        """True if ``light`` holds all rows, about the shift of the sums itself."""
        return self.heavy is None and self.delta is None

    def exact(self, index: Tensor) -> Tensor:
        """Return some rows minus the centre, [index, d] in float64."""
        return self.raw[index].double() - self.centre

    def whole_total(self) -> Tensor:
        """Return the sum of all rows minus the centre, heavy ones included, [d] in float64."""
        total = self.total.double()
        return total if self.heavy is None else total + self.exact(self.heavy).sum(0)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return Σ(x − c) [d] and Σ(x − c)(x − c)ᵀ [d, d] about the shift c.

        Raises:
            ValueError: the products of these rows were not wanted.
        """
        if self.second is None:
            raise ValueError("these rows have no second moments; make them with second=True")
        if self.is_plain:
            return self.total, self.second
        total, second = self.whole_total(), self.second.double()
        if self.heavy is not None:
            exact = self.exact(self.heavy)
            second = second + exact.T @ exact
        if self.delta is not None:
            # With δ = centre − c:  Σ(x − c) = s + n·δ
            second = second + _moved(total, self.delta, total, self.delta, len(self.raw))
            total = total + len(self.raw) * self.delta
        return total, second

    def rest(
        self, other: "CentredRows", pairing: Tensor | None = None, basis: Tensor | None = None
    ) -> Tensor:
        """Return what ``self.lightᵀ other.light`` lacks of Σ(x − c)(y − c')ᵀ, in float64.

        It lacks nothing if both are plain.

        Args:
            other: rows y of the same block.
            pairing: [row], index of the y paired with each x; None: the same row.
            basis: [d_target, column], columns onto which y is projected.
        """
        project = (lambda rows: rows) if basis is None else (lambda rows: rows @ basis.double())
        width = len(other.centre) if basis is None else basis.shape[1]
        rest = self.centre.new_zeros(len(self.centre), width)
        if self.heavy is not None or other.heavy is not None:
            mine, theirs = self._is_heavy(), other._is_heavy()
            # Row i is missing if x_i is heavy or the y that is paired with it.
            rows = (mine | (theirs if pairing is None else theirs[pairing])).nonzero()[:, 0]
            partners = rows if pairing is None else pairing.to(rows.device)[rows]
            rest = rest + self.exact(rows).T @ project(other.exact(partners))
        if self.delta is not None or other.delta is not None:
            mine, theirs = (
                torch.zeros_like(block.centre) if block.delta is None else block.delta
                for block in (self, other)
            )
            # A pairing takes every y once, so the sum over y is that of the true pairs.
            rest = rest + _moved(
                self.whole_total(),
                mine,
                project(other.whole_total()),
                project(theirs),
                len(self.raw),
            )
        return rest

    def heaviest(self) -> tuple[float, int] | None:
        """Return (‖x − centre‖², row) of the longest row if any row is heavy."""
        if self.heavy is None:
            return None
        squares = self.exact(self.heavy).square().sum(1)
        longest = int(squares.argmax())
        return float(squares[longest]), int(self.heavy[longest])

    def _is_heavy(self) -> Tensor:
        mask = torch.zeros(len(self.raw), dtype=torch.bool, device=self.raw.device)
        if self.heavy is not None:
            mask[self.heavy] = True
        return mask


def _minus(raw: Tensor, centre: Tensor, dtype: torch.dtype) -> Tensor:
    # Subtracted before rounding, so that float64 rows with a large mean keep their digits.
    wide = torch.promote_types(raw.dtype, dtype)
    rows, centre = raw.to(wide), centre.to(wide)
    # A conversion has made new memory, which the difference may use.
    return (rows - centre if rows is raw else rows.sub_(centre)).to(dtype)


def _sums(light: Tensor, n: int, wants_second: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (Σx, XᵀX or None, whether a mean is more than `_FAR` standard deviations from 0)."""
    with full_precision():
        total, second = light.sum(0), gram(light) if wants_second else None
    squares = light.square().sum(0) if second is None else second.diagonal()
    # m² > κ²·(q/n − m²) with m = Σx/n and q = Σx²:  (1 + κ²)·(Σx)² > κ²·n·q
    share = _FAR**2 / (1 + _FAR**2)
    return total, second, (total**2 > share * n * squares).any()


def _moved(total_x: Tensor, delta_x: Tensor, total_y: Tensor, delta_y: Tensor, n: int) -> Tensor:
    """Return sₓ·δ_yᵀ + δₓ·s_yᵀ + n·δₓδ_yᵀ of the module docstring."""
    return torch.outer(total_x, delta_y) + torch.outer(delta_x, total_y + n * delta_y)


def first_shifts(streams: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the shift of each hook point, [d]: the mean of the first rows."""
    # Rounded to the precision of products: the value that is subtracted from the rows must be
    # exactly the value that is stored.
    return {hook: rows[:_FIRST_ROWS].double().mean(0).to(dtype) for hook, rows in streams.items()}


def refuse_non_finite(streams: Sequence[tuple[str, Tensor]], n: Tensor) -> None:
    """Raise `NonFiniteError` if any rows of a block are NaN or infinite.

    Args:
        streams: (hook point, rows [row, d]) of both models.
        n: number of rows of each part that were added before [part].
    """
    for hook, rows in streams:
        if bad := n_non_finite(rows):
            raise non_finite(hook, bad, len(rows), int(n.sum()))


def n_non_finite(rows: Tensor) -> int:
    """Return the number of rows [row, d] that have a NaN or an infinite number."""
    # One sum is NaN or infinite if any of its terms is. In float32, because a float16 sum of
    # finite numbers may overflow.
    if torch.isfinite(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))):
        return 0
    return int((~torch.isfinite(rows)).any(1).sum())


def non_finite(hook: str, bad: int, n_rows: int, n_before: int) -> NonFiniteError:
    """Return the error about a batch with ``bad`` rows that are NaN or infinite."""
    return NonFiniteError(
        f"{bad} of {n_rows} activations at {hook!r} are NaN or infinite, in the batch "
        f"that starts at token {n_before:,}; nothing of this batch was added: "
        "load the model in float32 or bfloat16 instead of float16, or drop the text"
    )


def refuse_other_widths(streams: Mapping[str, Tensor], widths: Mapping[str, int]) -> None:
    """Raise `MismatchError` if rows have another width than the sums they are added to.

    Args:
        streams: rows [row, d] by hook point.
        widths: d of the sums by hook point.
    """
    for hook, rows in streams.items():
        refuse_other_width(hook, rows.shape[-1], widths[hook])


def refuse_other_width(hook: str, width: int, expected: int) -> None:
    """Raise `MismatchError` if rows have another width than the sums they are added to."""
    if width != expected:
        raise MismatchError(
            f"{hook!r} has {width} dimensions; these moments were begun with "
            f"{expected}: give rows of the same hook points and models"
        )


def cross_products(
    pairs: Sequence[HookPair], x: Mapping[str, Tensor], y: Mapping[str, Tensor]
) -> Iterator[tuple[HookPair, Tensor]]:
    """Yield (hook pair, XᵀY) of each hook pair.

    Source hook points with the same targets are multiplied together, as far as the product does not
    exceed ``LARGEST_PRODUCT``.
    """
    # [X₁ X₂ …]ᵀ[Y₁ Y₂ …] has the products XₛᵀYₜ as blocks; one large product is faster than many
    # small ones.
    targets: dict[str, list[str]] = {}
    for s, t in pairs:
        targets.setdefault(s, []).append(t)
    by_targets: dict[tuple[str, ...], list[str]] = {}
    for s, hooks in targets.items():
        by_targets.setdefault(tuple(hooks), []).append(s)
    for target_hooks, all_sources in by_targets.items():
        right = _joined([y[t] for t in target_hooks])
        for source_hooks in product_groups(
            all_sources, [x[s].shape[1] for s in all_sources], right.shape[1]
        ):
            with full_precision():
                product = _joined([x[s] for s in source_hooks]).T @ right
            rows = product.split([x[s].shape[1] for s in source_hooks], 0)
            for s, block in zip(source_hooks, rows, strict=True):
                columns = block.split([y[t].shape[1] for t in target_hooks], 1)
                yield from (((s, t), part) for t, part in zip(target_hooks, columns, strict=True))


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Return rows side by side [row, Σd]; those of one hook point are not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), 1)


def pair_products(
    pairs: Sequence[HookPair],
    x: Mapping[str, CentredRows],
    y: Mapping[str, CentredRows],
    pairing: Tensor | None = None,
    bases: Mapping[str, Tensor | None] | None = None,
) -> Iterator[tuple[HookPair, Tensor]]:
    """Yield products of hook pairs, of which those of one pair add up to Σ(x − c)(y − c')ᵀ.

    Args:
        pairs: hook pairs.
        x: source rows of a block by hook point.
        y: target rows of the same block.
        pairing: [row], index of the y paired with each x; None: the same row.
        bases: [d_target, column], columns onto which the rows of a target hook point are projected;
            None: they are not projected.
    """
    light = {}
    for hook, rows in y.items():
        basis = None if bases is None else bases.get(hook)
        projected = rows.light if basis is None else rows.light @ basis.to(rows.light)
        light[hook] = projected if pairing is None else projected[pairing]
    for (s, t), product in cross_products(pairs, {hook: x[hook].light for hook in x}, light):
        yield (s, t), product
        if not (x[s].is_plain and y[t].is_plain):
            basis = None if bases is None else bases.get(t)
            basis = None if basis is None else basis.to(product.device)
            yield (s, t), x[s].rest(y[t], pairing, basis)


def product_groups(
    hooks: Sequence[str], widths: Sequence[int], right_width: int
) -> Iterator[list[str]]:
    """Yield hook points in groups whose product with ``right_width`` columns is not too large.

    A group has at least one hook point.
    """
    group: list[str] = []
    filled = 0
    for hook, width in zip(hooks, widths, strict=True):
        if group and (filled + width) * right_width > LARGEST_PRODUCT:
            yield group
            group, filled = [], 0
        group.append(hook)
        filled += width
    if group:
        yield group
