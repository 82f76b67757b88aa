"""Checks of sampling: what comes back, where it stops, and that seeds and weights decide it."""

from typing import Any

import numpy as np

from doorstep.training.conformance.checks import NotTried, check, expect, near
from doorstep.training.conformance.session import (
    OTHER,
    TOKENS,
    Session,
    adam,
    datum,
    done,
    prompt,
    sampling,
    scores,
    sdk_class,
    usual,
)

TEMPERATURE = 1.5
SAMPLER_BOUND = 0.05  # of a log-probability between sampler and trainer, which may round in bfloat16


@check("SamplingClient.sample")
def _sample(session: Session) -> None:
    sequences = done(session.sampler.sample(prompt(), 3, sampling(6, stop=[]))).sequences
    expect(len(sequences) == 3, f"{len(sequences)} sequences, 3 asked for")
    expect(len({one.sequence_id for one in sequences}) == 3, "sequences share an id")
    for one in sequences:
        expect(len(one.tokens) == 6 and one.stop_reason == "length", f"{len(one.tokens)} tokens, {one.stop_reason}")
        expect(len(one.logprobs) == 6 and max(one.logprobs) <= 0, f"log-probabilities {one.logprobs}")


@check("temperature 0 takes the likeliest token")
def _greedy(session: Session) -> None:
    first, second = (_greedy_tokens(session) for _ in range(2))
    expect(first == second, "two greedy samples differ")


@check("top_k 1 takes the likeliest token at any temperature")
def _top_k(session: Session) -> None:
    got = _tokens(session, temperature=1.0, top_k=1)
    expect(got == _greedy_tokens(session), "top_k 1 does not take the likeliest token")


@check("top_p next to 0 takes the likeliest token")
def _top_p(session: Session) -> None:
    got = _tokens(session, temperature=1.0, top_p=1e-6)
    expect(got == _greedy_tokens(session), "top_p 1e-6 does not take the likeliest token")


@check("a seed gives the same samples again, and another seed others")
def _seeds(session: Session) -> None:
    def drawn(seed: int) -> list[list[int]]:
        parameters = sampling(12, temperature=2.0, seed=seed, stop=[])
        return [list(one.tokens) for one in done(session.sampler.sample(prompt(), 4, parameters)).sequences]

    first = drawn(1)
    expect(drawn(1) == first, "the same seed gives other samples")
    expect(drawn(2) != first, "another seed gives the same samples")
    expect(len({tuple(one) for one in first}) > 1, "the samples of one call are all the same")


@check("a seed gives the same samples beside other requests")
def _seeds_in_company(session: Session) -> None:
    def ask() -> Any:
        return session.sampler.sample(prompt(), 1, sampling(12, temperature=1.5, seed=3, stop=[]))

    alone = list(done(ask()).sequences[0].tokens)
    others = [session.sampler.sample(prompt(OTHER), 2, sampling(9, seed=index)) for index in range(6)]
    beside = list(done(ask()).sequences[0].tokens)
    for one in others:
        done(one)
    expect(beside == alone, "what else is sampled changes what a seed gives")


@check("64 samples at once all come")
def _many(session: Session) -> None:
    asked = [session.sampler.sample(prompt(TOKENS[: 1 + n % 9]), 1, sampling(2 + n % 7, stop=[])) for n in range(64)]
    lengths = [len(done(one).sequences[0].tokens) for one in asked]
    expect(lengths == [2 + n % 7 for n in range(64)], f"lengths {lengths}")


@check("a token id stops")
def _stop_token(session: Session) -> None:
    tokens = _greedy_tokens(session)
    (one,) = done(session.sampler.sample(prompt(), 1, sampling(8, temperature=0.0, stop=[tokens[3]]))).sequences
    wanted = tokens[: tokens.index(tokens[3]) + 1]
    expect(list(one.tokens) == wanted, f"tokens {list(one.tokens)}, not {wanted}: the stop token is the last")
    expect(one.stop_reason == "stop", f"stop reason {one.stop_reason}")


@check("a text stops")
def _stop_text(session: Session) -> None:
    tokenizer = session.trainer.get_tokenizer()
    whole = _greedy_tokens(session, 24)
    ends = [end for end in range(2, 24) if _plain(tokenizer, whole[end - 2 : end])]
    if not ends:
        raise NotTried("the model's greedy answer has no text to stop at")
    stop = tokenizer.decode(whole[ends[0] - 2 : ends[0]])
    (one,) = done(session.sampler.sample(prompt(), 1, sampling(24, temperature=0.0, stop=[stop]))).sequences
    expect(one.stop_reason == "stop", f"stop reason {one.stop_reason} with stop text {stop!r}")
    expect(stop in tokenizer.decode(one.tokens), f"the answer ends before the stop text {stop!r}")
    expect(len(one.tokens) <= ends[0], f"{len(one.tokens)} tokens, though {ends[0]} have the stop text")


@check("an empty stop list turns every stop off")
def _no_stop(session: Session) -> None:
    sequences = done(session.sampler.sample(prompt(), 4, sampling(24, temperature=1.5, stop=[]))).sequences
    lengths = [len(one.tokens) for one in sequences]
    expect(lengths == [24] * 4, f"lengths {lengths}")


@check("log-probabilities of a sample are those that scoring it gives")
def _own_scores(session: Session) -> None:
    (one,) = done(session.sampler.sample(prompt(), 1, sampling(8, seed=5, stop=[]))).sequences
    scored = done(session.sampler.compute_logprobs(prompt([*TOKENS, *one.tokens])))
    near(one.logprobs, scored[len(TOKENS) :], "log-probabilities", SAMPLER_BOUND)


@check("log-probabilities of a sample are those of its temperature")
def _tempered(session: Session) -> None:
    """Compare tokens by pairs, as the cookbook does: their distance is that at temperature 1, divided by it."""
    asked = sampling(1, temperature=TEMPERATURE, seed=11, stop=[])
    sequences = done(session.sampler.sample(prompt(), 16, asked)).sequences
    drawn = {one.tokens[0]: one.logprobs[0] for one in sequences}
    if len(drawn) < 2:
        raise NotTried("16 samples begin with the same token")
    raw = [done(session.sampler.compute_logprobs(prompt([*TOKENS, token])))[-1] for token in drawn]
    got, wanted = np.array(list(drawn.values())), np.array(raw) / TEMPERATURE
    near(got - got[0], wanted - wanted[0], "distances to the first", SAMPLER_BOUND)


@check("TrainingClient.save_weights_and_get_sampling_client")
def _snapshot(session: Session) -> None:
    trainer = _trained(session)
    sampler = done(trainer.save_weights_and_get_sampling_client())
    trained = scores(trainer, [datum()])[0]
    near(done(sampler.compute_logprobs(prompt()))[1:], trained, "sampler and trainer", SAMPLER_BOUND)
    done(trainer.forward_backward(usual(), "cross_entropy"))
    done(trainer.optim_step(adam(1e-2)))
    near(done(sampler.compute_logprobs(prompt()))[1:], trained, "a snapshot after a further step", SAMPLER_BOUND)


@check("TrainingClient.save_weights_for_sampler")
def _named(session: Session) -> None:
    trainer = _trained(session)
    path = done(trainer.save_weights_for_sampler("conformance")).path
    expect(path.startswith("tinker://") and path.count("/") == 4, f"path {path}")
    sampler = done(session.service.create_sampling_client(model_path=path))
    near(
        done(sampler.compute_logprobs(prompt()))[1:],
        scores(trainer, [datum()])[0],
        "sampler and trainer",
        SAMPLER_BOUND,
    )


@check("TrainingClient.create_sampling_client")
def _from_trainer(session: Session) -> None:
    trainer = _trained(session)
    path = done(trainer.save_weights_for_sampler("conformance-2")).path
    sampler = done(trainer.create_sampling_client(path))
    got = done(sampler.compute_logprobs(prompt()))[1:]
    near(got, scores(trainer, [datum()])[0], "sampler and trainer", SAMPLER_BOUND)


@check("inflight weights are sampled from", "TrainingClient.save_weights_and_get_sampling_client:kind")
def _inflight(session: Session) -> None:
    trainer = _trained(session)
    sampler = done(trainer.save_weights_and_get_sampling_client(kind="inflight"))
    got = done(sampler.compute_logprobs(prompt()))[1:]
    near(got, scores(trainer, [datum()])[0], "sampler and trainer", SAMPLER_BOUND)


@check("training changes nobody else: the base model scores as before")
def _apart(session: Session) -> None:
    before = done(session.sampler.compute_logprobs(prompt()))[1:]
    trainer = _trained(session)
    done(trainer.save_weights_and_get_sampling_client())
    near(done(session.sampler.compute_logprobs(prompt()))[1:], before, "log-probabilities")


@check("SamplingClient.get_base_model")
def _base_model(session: Session) -> None:
    expect(session.sampler.get_base_model(), "the sampler names no base model")


@check("SamplingClient.get_tokenizer")
def _tokenizer(session: Session) -> None:
    path = done(session.fresh().save_weights_for_sampler("conformance")).path
    tokenizer = done(session.service.create_sampling_client(model_path=path)).get_tokenizer()
    expect(tokenizer.encode("text"), "no tokens for a text")


@check("SamplingClient.from_sampler_handle", "SamplingClient.get_sampler_handle")
def _handle(session: Session) -> None:
    handle = session.sampler.get_sampler_handle()
    again = sdk_class("SamplingClient").from_sampler_handle(handle, api_key=session.target.key)
    expected = done(session.sampler.compute_logprobs(prompt()))[1:]
    near(done(again.compute_logprobs(prompt()))[1:], expected, "log-probabilities")


def _plain(tokenizer: Any, tokens: list[int]) -> bool:
    """Return whether tokens are text as it stands, without special tokens and halves of characters."""
    text = tokenizer.decode(tokens)
    return (
        bool(text.strip())
        and "\N{REPLACEMENT CHARACTER}" not in text
        and text == tokenizer.decode(tokens, skip_special_tokens=True)
    )


def _trained(session: Session) -> Any:
    """Return a model whose log-probabilities have clearly moved."""
    trainer = session.fresh()
    before = scores(trainer, [datum()])[0]
    for _ in range(2):
        done(trainer.forward_backward(usual(), "cross_entropy"))
        done(trainer.optim_step(adam(1e-2)))
    moved = np.abs(scores(trainer, [datum()])[0] - before).max()
    expect(moved > 2 * SAMPLER_BOUND, f"two steps move log-probabilities by {moved:.3g} only")
    return trainer


def _greedy_tokens(session: Session, tokens: int = 8) -> list[int]:
    return _tokens(session, tokens, temperature=0.0)


def _tokens(session: Session, tokens: int = 8, **options: Any) -> list[int]:
    sequences = done(session.sampler.sample(prompt(), 1, sampling(tokens, stop=[], **options))).sequences
    return list(sequences[0].tokens)
