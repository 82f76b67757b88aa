"""What was sampled is known by its sequence id: to its session, for a day, and only as it was sampled."""

import pytest

from doorstep.engine.api import TrainRow
from doorstep.errors import UsageError
from doorstep.training.provenance import KEEP_S, Provenance, Span, Spans

# A prompt of 3 tokens, 7 8 sampled after it: the input drops the last token, the targets drop the first.
ROW = TrainRow(tokens=[1, 2, 3, 7], targets=[0, 0, 7, 8], inputs={"advantages": [0.0, 0.0, 2.0, 2.0]})
SPANS = Spans(
    [Span("q", 0, 3, sampled=False), Span("q", 0, 1, sampled=True)],
    [Span("q", 1, 2, sampled=False), Span("q", 0, 2, sampled=True)],
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def provenance(clock):
    made = Provenance(keep_bytes=1000, now=clock)
    made.record("s", "q", [1, 2, 3], [7, 8], [-0.5, -0.25])
    return made


def test_a_datum_gets_the_log_probabilities_of_its_sampled_targets(provenance):
    (row,) = provenance.completed("s", [ROW], [SPANS])
    assert row.inputs["logprobs"] == [0.0, 0.0, -0.5, -0.25]
    assert row.inputs["sampled"] == [0.0, 0.0, 1.0, 1.0]
    assert row.inputs["advantages"] == ROW.inputs["advantages"]


def test_what_a_client_says_of_log_probabilities_is_not_taken(provenance):
    claimed = TrainRow(tokens=ROW.tokens, targets=ROW.targets, inputs=ROW.inputs | {"logprobs": [-9.0] * 4})
    assert provenance.completed("s", [claimed], [SPANS])[0].inputs["logprobs"][2:] == [-0.5, -0.25]


@pytest.mark.parametrize(
    ("session", "tokens", "targets", "why"),
    [
        ("s", SPANS.tokens, [], "needs to know where each token is from"),
        ("t", SPANS.tokens, SPANS.targets, "q is not known"),
        ("s", SPANS.tokens, SPANS.targets[:1], "cover 2 positions; there are 4"),
        ("s", SPANS.tokens, [Span("q", 0, 2, sampled=True)] * 2, "the tokens from 0 on are not those sampled as q"),
        ("s", SPANS.tokens, [Span("q", 1, 2, sampled=True)], "q has 2 sampled tokens, not 1 to 3"),
        ("s", SPANS.tokens, [Span("q", 0, 9, sampled=False)], "q has 3 prompt tokens, not 0 to 9"),
        ("s", SPANS.tokens, [Span("q", -1, 1, sampled=False)], "not -1 to 0"),
        ("s", SPANS.tokens, [Span("q", 0, 2, sampled=False)] * 2, "advantages: position 2 is not zero"),
        ("s", [Span("q", 0, 2, sampled=True)] * 2, SPANS.targets, "model_input_spans: the tokens from 0 on"),
    ],
)
def test_spans_that_are_not_so_are_refused(provenance, session, tokens, targets, why):
    with pytest.raises(UsageError, match=f"datum 0.*{why}"):
        provenance.completed(session, [ROW], [Spans(tokens, targets)])


def test_a_sequence_is_kept_for_a_day_after_its_last_use(provenance, clock):
    clock.now = 0.9 * KEEP_S
    provenance.completed("s", [ROW], [SPANS])
    clock.now = 1.8 * KEEP_S
    provenance.completed("s", [ROW], [SPANS])
    clock.now = 2.9 * KEEP_S
    with pytest.raises(UsageError, match="q is not known"):
        provenance.completed("s", [ROW], [SPANS])


def test_the_longest_unused_make_room(provenance):
    provenance.record("s", "r", [1], [7], [-1.0])
    provenance.completed("s", [ROW], [SPANS])
    provenance.record("s", "t", [1], [7], [-1.0])
    assert provenance.completed("s", [ROW], [SPANS])
    with pytest.raises(UsageError, match="r is not known"):
        provenance.completed("s", [ROW], [Spans([Span("r", 0, 1, sampled=False)], [Span("r", 0, 1, sampled=True)])])


def test_a_sequence_that_is_too_long_is_not_kept(provenance):
    provenance.record("s", "long", [1], [7] * 1000, [-1.0] * 1000)
    with pytest.raises(UsageError, match="long is not known"):
        provenance.completed("s", [ROW], [Spans([Span("long", 0, 1, sampled=True)], SPANS.targets)])


def test_a_target_of_any_size_is_compared(provenance):
    wrong = TrainRow(tokens=ROW.tokens, targets=[0, 0, 7, 1 << 40], inputs=ROW.inputs)
    with pytest.raises(UsageError, match="the tokens from 2 on are not those sampled as q"):
        provenance.completed("s", [wrong], [SPANS])
