"""Random numbers from a seed of one's own are those of torch's global generator with that seed."""

import threading

import torch
from torch import Tensor, nn

from lrt_lens.models._drawing import drawing


def draws() -> list[Tensor]:
    return [
        torch.rand(3),
        torch.randn(2, 3, dtype=torch.float64),
        torch.randint(0, 9, (4,)),
        torch.randperm(7),
        torch.multinomial(torch.rand(5, 40).softmax(1), 1),
        torch.empty(3).uniform_(),
        torch.empty(3).normal_(),
        nn.Linear(4, 5).weight.detach(),
        nn.Embedding(3, 4).weight.detach(),
        torch.rand_like(torch.ones(3)),
        torch.randn_like(torch.ones(3), dtype=torch.float64),
        torch.distributions.Categorical(logits=torch.rand(3, 9)).sample(),
        torch.bernoulli(torch.full((8,), 0.5)),
        nn.init.orthogonal_(torch.empty(4, 4)),
        nn.init.trunc_normal_(torch.empty(9)),
        torch.normal(0.0, 1.0, (3,)),
    ]


def test_they_are_those_of_the_global_generator_which_stays() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = draws()
    state = torch.get_rng_state()
    with drawing(3):
        found = draws()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_do_not_draw_from_each_others() -> None:
    barrier, found = threading.Barrier(3), {}

    def draw(seed: int) -> None:
        with drawing(seed):
            numbers = []
            for _ in range(5):
                barrier.wait(20)
                numbers.append(torch.rand(2))
        found[seed] = torch.cat(numbers)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, numbers in found.items():
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(
            numbers, torch.cat([torch.rand(2, generator=generator) for _ in range(5)])
        )
    assert len(found) == 3
