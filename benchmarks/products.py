"""Accuracy and speed of products from split bfloat16 and TF32 factors, compared with float32.

    python -m benchmarks.products                          # accuracy, on any machine
    python -m benchmarks.products --device cuda --out benchmarks/products.json    # and speed

Rows are split into terms x = x₁ + x₂ + … that bfloat16 (8 bits) or TF32 (11 bits) hold exactly, and
the products of the largest terms are added in float32. The error is that of a ridge map fitted on
the sums, relative to float64. On a CUDA device the products run on tensor cores; elsewhere the same
rounded terms are multiplied in float32, which gives the same accuracy and says nothing of speed.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""Function of [m, row] and [row, n] to their product [m, n]."""
SCHEMES: dict[str, tuple[str, int, int]] = {
    "float32": ("float32", 1, 1),
    "tf32": ("tf32", 1, 1),
    "tf32, 2 terms, 3 products": ("tf32", 2, 3),
    "bfloat16": ("bfloat16", 1, 1),
    "bfloat16, 2 terms, 3 products": ("bfloat16", 2, 3),
    "bfloat16, 3 terms, 6 products": ("bfloat16", 3, 6),
}
"""Precision of the terms, number of terms, and number of products, by name."""
LARGEST_ERROR = 1e-5
"""Error of a map up to which a scheme could replace float32."""
ALPHA = 1e-4
"""Penalty of the map relative to the mean variance: small, so that errors of the sums show."""
_SHAPE, _ROWS, _RUNS = (2304, 3584), 4096, 20
"""Widths and rows of the products that are timed, and number of products."""


def main(
    out: Path | None = None, device: str = "cpu", n_rows: int = 100_000, seed: int = 0
) -> None:
    """Measure the error of a map and the time of a product for each scheme.

    Args:
        out: JSON file of the results; by default none is written.
        device: device on which to run.
        n_rows: rows that the map is fitted on.
        seed: seed of the rows.
    """
    timed = device.startswith("cuda")
    if timed and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --device cpu measures the accuracy")
    x, y = streams(n_rows, seed)
    exact = ridge_weights(x, y, torch.matmul, torch.float64)
    results: dict[str, Any] = {}
    for name in SCHEMES:
        multiply = product_of(name, tensor_cores=timed)
        weight = ridge_weights(x.to(device), y.to(device), multiply, torch.float32)
        error = relative_error(weight, exact)
        results[name] = {"map_error": error, "accurate": error <= LARGEST_ERROR}
        if timed:
            results[name]["milliseconds"] = 1e3 * seconds_of(multiply, device)
        print(f"{name:32} {json.dumps(results[name])}", flush=True)
    if out is not None:
        machine = torch.cuda.get_device_name() if timed else "cpu"
        content = {"device": machine, "torch": torch.__version__, "schemes": results}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def streams(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows like those of residual streams, [row, 256] and [row, 320].

    A few dimensions are very large, the others fall like a power law, and the mean is far from 0.
    """
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    scales = torch.arange(1, 257).float() ** -0.5
    scales[:4] = 30.0
    x = draw(n_rows, 256) * scales + 5 * draw(256)
    y = x @ draw(256, 320) / 16 + draw(n_rows, 320)
    return x, y


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm; ``expected`` is on the CPU."""
    return float((actual.cpu() - expected).norm() / expected.norm())


def ridge_weights(x: Tensor, y: Tensor, multiply: Product, dtype: torch.dtype) -> Tensor:
    """Weights of a ridge map, [256, 320], from sums over blocks of centred products.

    As in a harvest, rows are centred on the mean of the first block, products have the precision of
    the scheme, and sums are float64.
    """
    shift_x, shift_y = (side[:_ROWS].double().mean(0).to(dtype) for side in (x, y))
    second = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    total_x, total_y = second.new_zeros(x.shape[1]), second.new_zeros(y.shape[1])
    for block_x, block_y in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
        a, b = block_x.to(dtype) - shift_x, block_y.to(dtype) - shift_y
        second += multiply(a.T, a)
        cross += multiply(a.T, b)
        total_x += a.double().sum(0)
        total_y += b.double().sum(0)
    second -= torch.outer(total_x, total_x) / len(x)
    cross -= torch.outer(total_x, total_y) / len(x)
    penalty = ALPHA * second.trace() / len(second) * torch.eye(len(second)).to(second)
    return torch.linalg.solve(second + penalty, cross)


def product_of(scheme: str, *, tensor_cores: bool) -> Product:
    """The product of a scheme, a function of [m, row] and [row, n]."""
    precision, n_terms, n_products = SCHEMES[scheme]
    if precision == "float32":
        return torch.matmul
    # (i, j) of the largest terms xᵢyⱼ; term i is about 2⁻ᵇⁱ of x, for b bits.
    orders = sorted(((i, j) for i in range(n_terms) for j in range(n_terms)), key=sum)
    kept = orders[:n_products]

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        left, right = (terms_of(factor, precision, n_terms) for factor in (a, b))
        # The smallest products first, so that they are not lost in the sum of the large ones.
        products = (one_product(left[i], right[j], precision, tensor_cores) for i, j in kept[::-1])
        total = next(products)
        for product in products:
            total = total + product
        return total

    return multiply


def terms_of(factor: Tensor, precision: str, n_terms: int) -> list[Tensor]:
    """Terms whose sum is the factor, each rounded to the precision, in float32."""
    terms, rest = [], factor
    for _ in range(n_terms):
        terms.append(rounded(rest, precision))
        rest = rest - terms[-1]
    return terms


def rounded(values: Tensor, precision: str) -> Tensor:
    """float32 values rounded to 8 bits (bfloat16) or 11 bits (TF32)."""
    if precision == "bfloat16":
        return values.bfloat16().float()
    # Veltkamp's splitting: adding and removing a multiple leaves 24 - 13 bits.
    large = values * (2.0**13 + 1)
    return large - (large - values)


def one_product(a: Tensor, b: Tensor, precision: str, tensor_cores: bool) -> Tensor:
    """One product of rounded terms, with sums in float32."""
    if not tensor_cores:
        return a @ b
    if precision == "bfloat16":
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)


def seconds_of(multiply: Product, device: str) -> float:
    """Median time of a product of 4096 rows of both widths, splitting included."""
    a, b = (torch.randn(_ROWS, d, device=device) for d in _SHAPE)
    times = []
    for _ in range(_RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        multiply(a.T, b)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    tyro.cli(main)
