"""Tests of several threads, and tasks, that run one model at once.

Barriers and events fix the order of what happens, so that nothing depends on timing.
"""

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import OtherThreadError
from lrt_lens.models import HookedModel
from lrt_lens.models import _lens_engines as lens_engines
from lrt_lens.models._loading import boot_bridge
from lrt_lens.moments import harvest

WAIT = 20.0
"""Seconds after which a thread that waits for another has failed."""
TEXT = "the little cat slept on the old stone house"
OTHER = "a sad queen saw the red bird under it"
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post")


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Return what each job returns in a thread of its own; the first error is raised."""
    futures = [Future() for _ in jobs]

    def work(job: Callable[[], Any], future: Future) -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    for job, future in zip(jobs, futures, strict=True):
        threading.Thread(target=work, args=(job, future), daemon=True).start()
    return [future.result(timeout=2 * WAIT) for future in futures]


def reached(event: threading.Event) -> None:
    assert event.wait(WAIT), "the other thread did not come so far"


def captured(model: HookedModel, hook: int | str) -> Tensor:
    states = model.capture(TEXT, hook)
    assert isinstance(states, Tensor)
    return states


def direction(seed: int, d: int = 16) -> Tensor:
    return 4 * torch.randn(d, generator=torch.Generator().manual_seed(seed))


def vectors_for(model: HookedModel) -> list[SteeringVector]:
    return [
        SteeringVector(direction(seed), hook, model.identity, f"v{seed}")
        for seed, hook in enumerate(HOOKS)
    ]


@pytest.fixture(params=["hugging face", "bridge", "HookedTransformer"])
def engine_model(
    request: pytest.FixtureRequest, build_hf: Any, tokenizer: Any, from_gpt2: Any
) -> HookedModel:
    """A model of each engine."""
    if request.param == "HookedTransformer":
        return HookedModel.load(from_gpt2())
    bare = build_hf("gpt2")
    if request.param == "bridge":
        return HookedModel.load(boot_bridge(bare, tokenizer, "tiny"), tokenizer=tokenizer)
    return HookedModel.load(bare, tokenizer=tokenizer)


@pytest.fixture
def own(load: Any) -> Iterator[HookedModel]:
    """A small Llama of one test alone, which must leave no hook on it."""
    model = load("llama")
    before = hooks_on(model)
    yield model
    assert hooks_on(model) == before


def hooks_on(model: HookedModel) -> list[Any]:
    roots = [model.engine.model, getattr(model.bridge, "original_model", model.engine.model)]
    modules = [module for root in roots for module in root.modules()]
    left = [
        h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    left += [m for m in modules if "forward" in m.__dict__ or "generate" in m.__dict__]
    return left + [h for point in model.bridge.hook_dict.values() for h in point.fwd_hooks]


# ------------------------------------------------------------------------------- two interventions


def test_every_thread_is_steered_by_its_own_vector_alone(engine_model: HookedModel) -> None:
    model, vectors, barrier = engine_model, vectors_for(engine_model), threading.Barrier(4)
    before = hooks_on(model)

    def alone(vector: SteeringVector | None) -> list[Any]:
        if vector is None:
            return [model.logits(TEXT), model.capture(TEXT, 2), model.loss([TEXT])]
        with vector.apply(model):
            return [model.logits(TEXT), model.capture(TEXT, 2), model.loss([TEXT])]

    def at_once(vector: SteeringVector | None) -> list[Any]:
        handle = model.intervene({}) if vector is None else vector.apply(model)
        with handle:
            barrier.wait(WAIT)
            found = [model.logits(TEXT), model.capture(TEXT, 2), model.loss([TEXT])]
            barrier.wait(WAIT)
        return found

    expected = [alone(vector) for vector in (None, *vectors)]
    found = together(*(lambda v=v: at_once(v) for v in (None, *vectors)))
    for (logits, states, loss), (own_logits, own_states, own_loss) in zip(
        found, expected, strict=True
    ):
        assert torch.equal(logits, own_logits)
        assert torch.equal(states, own_states)
        assert loss == own_loss
    assert hooks_on(model) == before


def test_generations_that_alternate_token_by_token_are_those_of_each_alone(
    engine_model: HookedModel,
) -> None:
    model, barrier = engine_model, threading.Barrier(2)
    config = transformers.GenerationConfig(
        max_new_tokens=6, do_sample=True, top_k=0, temperature=0.9, pad_token_id=0
    )

    def generated(seed: int, positions: Any, *, meeting: bool) -> str:
        vector = SteeringVector(direction(seed), HOOKS[0], model.identity, "v")

        def meet(_activation: Tensor, hook: Any) -> None:
            if meeting:
                barrier.wait(WAIT)

        with vector.apply(model, positions=positions), model.intervene({HOOKS[1]: meet}):
            return model.generate(TEXT, generation_config=config, seed=seed)  # type: ignore[return-value]

    arms = [(1, "generated"), (2, "all")]
    expected = [generated(*arm, meeting=False) for arm in arms]
    assert expected[0] != expected[1]
    state = torch.get_rng_state()
    assert together(*(lambda a=a: generated(*a, meeting=True) for a in arms)) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plain_transformers_model_is_steered_by_the_thread_that_calls_it(
    build_hf: Any, tokenizer: Any
) -> None:
    bare, barrier = build_hf("llama"), threading.Barrier(2)
    bare.config._name_or_path = "tiny"
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])

    def logits(model: Any) -> Tensor:
        with torch.inference_mode():
            return model(ids).logits

    def steered(seed: int, meet: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        model = HookedModel.load(bare, tokenizer=tokenizer)
        with model.intervene({1: lambda x, hook: x + direction(seed)}):
            meet()
            found = logits(bare), bare.generate(ids, max_new_tokens=4, do_sample=False)
            meet()
        return found

    expected = [steered(seed, lambda: None) for seed in (1, 2)]
    found = together(*(lambda s=s: steered(s, lambda: barrier.wait(WAIT)) for s in (1, 2)))
    assert not torch.equal(expected[0][0], expected[1][0])
    for pair, own_pair in zip(found, expected, strict=True):
        assert torch.equal(pair[0], own_pair[0])
        assert torch.equal(pair[1], own_pair[1])


# ----------------------------------------------------------------------- steering beside reading


def paused_at_embedding(model: HookedModel) -> tuple[Any, threading.Event, threading.Event]:
    """Return a handle of a hook that stops the pass of thread 'reader', and its two events."""
    inside, go_on = threading.Event(), threading.Event()

    def pause(_module: Any, _args: Any, _output: Any) -> None:
        if threading.current_thread().name == "reader" and not inside.is_set():
            inside.set()
            reached(go_on)

    embedding = model.engine.model.get_input_embeddings()
    return embedding.register_forward_hook(pause), inside, go_on


def as_reader(job: Callable[[], Any]) -> Callable[[], Any]:
    def named() -> Any:
        threading.current_thread().name = "reader"
        return job()

    return named


@pytest.mark.parametrize("hook", [HOOKS[0], "blocks.1.hook_resid_mid", "all"])
def test_a_capture_and_a_steered_pass_run_side_by_side(own: HookedModel, hook: Any) -> None:
    [vector, *_] = vectors_for(own)
    states = own.capture(TEXT, hook)
    with vector.apply(own):
        expected = own.logits(TEXT)
    handle, inside, go_on = paused_at_embedding(own)

    def steer() -> Tensor:
        reached(inside)
        with vector.apply(own):
            logits = own.logits(TEXT)
            go_on.set()
            reached(done)
        return logits

    def read() -> Any:
        try:
            return own.capture(TEXT, hook)
        finally:
            done.set()

    done = threading.Event()
    try:
        found, logits = together(as_reader(read), steer)
    finally:
        handle.remove()
    assert torch.equal(logits, expected)
    for name, state in states.items() if isinstance(states, dict) else [(None, states)]:
        assert torch.equal(found if name is None else found[name], state)


def test_captures_at_other_depths_run_side_by_side(own: HookedModel) -> None:
    expected = [captured(own, 0), captured(own, 2)]
    handle, inside, go_on = paused_at_embedding(own)

    def other() -> Tensor:
        reached(inside)
        try:
            return captured(own, 2)
        finally:
            go_on.set()

    try:
        found = together(as_reader(lambda: captured(own, 0)), other)
    finally:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_harvest_is_not_steered_by_another_thread(pair: Any, passages: list[str]) -> None:
    target, open_, done = pair.target, threading.Event(), threading.Event()

    def moments() -> Any:
        return harvest(
            pair, passages, source_layers=[0], target_layers=[1], n_tokens=600, progress=False
        )

    expected = moments()

    def steer() -> None:
        with target.intervene({0: lambda x, hook: x + 3}):
            open_.set()
            reached(done)

    def read() -> Any:
        reached(open_)
        try:
            return moments()
        finally:
            done.set()

    found, _ = together(read, steer)
    for one, other in ((found.target, expected.target), (found.source, expected.source)):
        for name, states in one.items():
            assert torch.equal(states.total, other[name].total)
            assert torch.equal(states.second, other[name].second)
    assert all(torch.equal(cross, expected.cross[key]) for key, cross in found.cross.items())


def test_a_pass_that_resumes_does_not_skip_the_blocks_of_another_thread(own: HookedModel) -> None:
    tokens = torch.tensor(own.encode(TEXT))
    name = "blocks.1.hook_resid_post"
    residual = captured(own, name) + 1
    plain = own.logits(tokens)
    open_, done = threading.Event(), threading.Event()

    def resume() -> Tensor:
        with own.engine.resuming(name, residual):
            open_.set()
            reached(done)
            return own.logits(tokens)

    def predict() -> Tensor:
        reached(open_)
        try:
            return own.logits(tokens)
        finally:
            done.set()

    resumed, found = together(resume, predict)
    assert torch.equal(found, plain)
    assert not torch.equal(resumed, plain)


def test_logits_of_some_positions_leave_the_unembedding_to_other_threads(own: HookedModel) -> None:
    tokens = torch.tensor(own.encode(TEXT))
    plain, at = own.logits(tokens), torch.tensor([1, 3])
    handle, inside, go_on = paused_at_embedding(own)

    def other() -> Tensor:
        reached(inside)
        try:
            return own.logits(tokens)
        finally:
            go_on.set()

    try:
        some, whole = together(
            as_reader(lambda: own.engine.logits_at(tokens, torch.zeros(2, dtype=torch.long), at)),
            other,
        )
    finally:
        handle.remove()
    assert torch.equal(whole, plain)
    torch.testing.assert_close(some, plain[0, at])


def test_dropout_stays_off_until_the_last_thread_has_left(own: HookedModel) -> None:
    bare = own.engine.model.train()
    handle, inside, go_on = paused_at_embedding(own)
    training: list[bool] = []

    def first() -> None:
        reached(inside)  # the reader has entered later than this thread runs, and leaves last
        own.logits(TEXT)
        go_on.set()

    def read() -> None:
        with own.intervene({2: lambda x, hook: training.append(bare.training)}):
            own.logits(TEXT)

    try:
        together(as_reader(read), first)
    finally:
        handle.remove()
    assert training == [False]
    assert bare.training
    bare.eval()


# --------------------------------------------------------------------------------- whose they are


def test_tasks_that_alternate_are_each_steered_by_their_own_vector(own: HookedModel) -> None:
    vectors = vectors_for(own)
    expected = []
    for vector in vectors:
        with vector.apply(own):
            expected.append(own.logits(TEXT))
    plain = own.logits(TEXT)

    async def steered(vector: SteeringVector, barrier: asyncio.Barrier) -> Tensor:
        handle = vector.apply(own)
        await barrier.wait()
        logits = own.logits(TEXT)
        elsewhere = await asyncio.to_thread(own.logits, TEXT)  # takes the task's over
        await barrier.wait()
        handle.remove()
        assert torch.equal(elsewhere, logits)
        return logits

    async def bare(barrier: asyncio.Barrier) -> Tensor:
        await barrier.wait()
        logits = own.logits(TEXT)
        await barrier.wait()
        return logits

    async def main() -> list[Tensor]:
        barrier = asyncio.Barrier(len(vectors) + 1)
        return await asyncio.gather(*(steered(v, barrier) for v in vectors), bare(barrier))

    found = asyncio.run(main())
    assert all(torch.equal(a, b) for a, b in zip(found, [*expected, plain], strict=True))


def test_a_handle_that_a_finished_task_left_open_acts_in_the_next(own: HookedModel) -> None:
    """Notebooks run each cell in a task."""
    [vector, *_] = vectors_for(own)
    with vector.apply(own):
        expected = own.logits(TEXT)
    handles: list[Any] = []

    async def first() -> None:
        handles.append(vector.apply(own))

    async def second() -> Tensor:
        return own.logits(TEXT)

    async def cells() -> Tensor:
        await asyncio.create_task(first())
        return await asyncio.create_task(second())

    assert torch.equal(asyncio.run(cells()), expected)
    handles[0].remove()


def test_interventions_end_in_any_order_and_in_any_thread(own: HookedModel) -> None:
    first, second, third = vectors_for(own)
    plain = own.logits(TEXT)
    with second.apply(own):
        expected = own.logits(TEXT)
    handles = first.apply(own), second.apply(own)
    [elsewhere] = together(lambda: third.apply(own))
    both = own.logits(TEXT)
    assert not torch.equal(both, expected)
    handles[0].remove()
    assert torch.equal(own.logits(TEXT), expected)
    with first.apply(own):  # behind the second now, and elsewhere in the stream
        assert torch.equal(own.logits(TEXT), both)
        together(handles[1].remove)
    assert torch.equal(own.logits(TEXT), plain)
    elsewhere.remove()
    handles[1].remove()


def test_an_error_in_one_thread_leaves_the_other_steered(own: HookedModel) -> None:
    vector, other, _ = vectors_for(own)
    with vector.apply(own):
        expected = own.logits(TEXT)
    failed, done = threading.Event(), threading.Event()

    def fail(activation: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    def broken() -> None:
        with other.apply(own), own.intervene({1: fail}):
            with pytest.raises(ZeroDivisionError):
                own.logits(TEXT)
            failed.set()
            reached(done)

    def steered() -> Tensor:
        reached(failed)
        try:
            with vector.apply(own):
                return own.logits(TEXT)
        finally:
            done.set()

    _, found = together(broken, steered)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------- threads that steering starts


def test_what_a_started_thread_predicts_is_refused_until_it_says_what_it_means(
    own: HookedModel,
) -> None:
    bare, [vector, *_] = own.engine.model, vectors_for(own)
    plain, states = own.logits(TEXT), captured(own, 2)
    ids = torch.tensor(own.encode(TEXT))

    def without() -> Tensor:
        with own.intervene({}):
            return own.logits(TEXT)

    with vector.apply(own):
        steered = own.logits(TEXT)
        for job in (
            lambda: own.logits(TEXT),
            lambda: own.loss([TEXT]),
            lambda: own.generate(TEXT, max_new_tokens=2),
            lambda: bare(ids),
            lambda: bare.generate(ids, max_new_tokens=2),
            lambda: together(lambda: own.logits(TEXT)),  # a thread of the thread
        ):
            with pytest.raises(OtherThreadError, match="copy_context") as refused:
                together(job)
            assert "\n" not in str(refused.value)
        context = contextvars.copy_context()
        found = together(without, lambda: captured(own, 2), lambda: context.run(own.logits, TEXT))
    assert all(torch.equal(a, b) for a, b in zip(found, [plain, states, steered], strict=True))
    assert torch.equal(together(lambda: own.logits(TEXT))[0], plain)


def test_workers_of_a_pool_are_refused_however_old_they_are(own: HookedModel) -> None:
    with ThreadPoolExecutor(1) as pool:
        plain = pool.submit(own.logits, TEXT).result()
        for vector in vectors_for(own):
            with vector.apply(own):
                with pytest.raises(OtherThreadError):
                    pool.submit(own.logits, TEXT).result()
                context = contextvars.copy_context()
                taken_over = pool.submit(context.run, own.logits, TEXT).result()
                assert torch.equal(taken_over, own.logits(TEXT))
        assert torch.equal(pool.submit(own.logits, TEXT).result(), plain)


def test_a_thread_is_not_refused_for_one_that_has_not_started_it(own: HookedModel) -> None:
    plain, open_, done = own.logits(TEXT), threading.Event(), threading.Event()

    def steer() -> None:
        with own.intervene({1: lambda x, hook: x + 1}):
            open_.set()
            reached(done)

    def predict() -> Tensor:
        reached(open_)
        try:
            return own.logits(TEXT)
        finally:
            done.set()

    assert torch.equal(together(predict, steer)[0], plain)


def test_streaming_from_a_worker_steers_with_the_context_and_is_refused_without(
    own: HookedModel, tokenizer: Any
) -> None:
    bare, [vector, *_] = own.engine.model, vectors_for(own)
    ids = torch.tensor(own.encode(TEXT))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    errors: list[Any] = []

    def streamed(run: Callable[..., Any] | None) -> str:
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=WAIT)
        kwargs = {"inputs": ids, "streamer": streamer, **options}
        target = (bare.generate, ()) if run is None else (run, (bare.generate,))
        worker = threading.Thread(target=target[0], args=target[1], kwargs=kwargs)
        worker.start()
        text = "".join(streamer)
        worker.join()
        return text

    plain = streamed(None)
    with vector.apply(own, positions="generated"):
        expected = tokenizer.decode(bare.generate(ids, **options)[0, ids.shape[1] :])
        assert streamed(contextvars.copy_context().run) == expected
        before, threading.excepthook = threading.excepthook, errors.append
        try:
            assert streamed(None) == ""
        finally:
            threading.excepthook = before
    assert [error.exc_type for error in errors] == [OtherThreadError]
    assert plain != expected


def test_one_hook_counts_the_positions_of_each_thread_that_shares_it(own: HookedModel) -> None:
    vector = SteeringVector(direction(1), HOOKS[0], own.identity, "v")
    config = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)
    prompts, barrier = (TEXT, "the cat"), threading.Barrier(2)

    def meet(_module: Any, _args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            barrier.wait(WAIT)

    handle = own.engine.model.register_forward_pre_hook(meet)
    try:
        with vector.apply(own, positions="generated"):
            expected = [own.generate(prompt, generation_config=config) for prompt in prompts]
            contexts = [contextvars.copy_context() for _ in prompts]
            found = together(
                *(
                    lambda c=c, p=p: c.run(own.generate, p, generation_config=config)
                    for c, p in zip(contexts, prompts, strict=True)
                )
            )
    finally:
        handle.remove()
    assert found == expected


# -------------------------------------------------------------------------- state of the libraries


def test_hashing_a_bridge_leaves_its_hooks_in_place(
    build_hf: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HookedModel.load(boot_bridge(build_hf("gpt2"), tokenizer, "tiny"), tokenizer=tokenizer)
    bare = HookedModel.load(build_hf("gpt2"), tokenizer=tokenizer)
    assert model.engine.weights_hash() == bare.engine.weights_hash()
    seen: list[Tensor] = []
    with model.intervene({1: lambda x, hook: x + 1}):
        expected = model.logits(TEXT)
        monkeypatch.setattr(
            lens_engines, "weights_hash", lambda _: seen.append(model.logits(TEXT)) or ""
        )
        model.engine.weights_hash()
    assert torch.equal(seen[0], expected)


def test_passes_take_turns_if_they_change_the_model(build_hf: Any, tokenizer: Any) -> None:
    bare = build_hf("llama")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = transformers.LlamaConfig(**bare.config.to_dict() | {"rope_parameters": rope})
    model = HookedModel.load(transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    handle, inside, go_on = paused_at_embedding(model)
    entered = threading.Event()
    model.engine.model.register_forward_pre_hook(
        lambda *_: entered.set() if threading.current_thread().name != "reader" else None
    )

    def other() -> bool:
        reached(inside)
        worker = threading.Thread(target=model.logits, args=(TEXT,), daemon=True)
        worker.start()
        is_inside = entered.wait(0.2)
        go_on.set()
        worker.join(WAIT)
        return is_inside

    try:
        _, ran_at_once = together(as_reader(lambda: model.logits(TEXT)), other)
    finally:
        handle.remove()
    assert not ran_at_once
    assert entered.is_set()


def test_a_models_own_forward_is_restored_behind_a_resumed_pass(own: HookedModel) -> None:
    """As accelerate replaces it on models that are spread over devices."""
    [block, *_] = own.engine.model.model.layers
    original, calls = block.forward, []
    block.forward = lambda *args, **options: calls.append(1) or original(*args, **options)
    replaced = block.forward
    residual = captured(own, 1)
    calls.clear()
    with own.engine.resuming("blocks.1.hook_resid_post", residual):
        own.logits(TEXT)
    assert not calls
    assert block.forward is replaced
    own.logits(TEXT)
    assert calls
    del block.forward


def test_texts_are_whole_while_another_thread_cuts_and_pads_its_own(
    own: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, expected = own.tokenizer, own.encode([TEXT, "the"])
    cls = type(tokenizer)
    original = cls.set_truncation_and_padding

    def as_if_another_thread_came_between(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding(length=4)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "set_truncation_and_padding", as_if_another_thread_came_between)
        assert own.encode([TEXT, "the"]) == expected
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def test_names_of_the_package_are_imported_by_several_threads_at_once() -> None:
    names = ["SteeringVector", "fit_stitches", "harvest", "HookedModel", "LinearProbe", "explore"]
    program = f"""
import threading, lrt_lens
names, errors, barrier = {names}, [], threading.Barrier({len(names)})

def ask(name):
    barrier.wait()
    try:
        getattr(lrt_lens, name)
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=ask, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not errors, errors
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
