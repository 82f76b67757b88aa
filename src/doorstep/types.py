"""The vocabulary of Doorstep: frozen values without I/O. Read this file first.

The first part is the record: one class per table of the store, one field per column.
Unknown is ``None`` with a reason in a ``gap`` or ``gaps`` field, never 0. Times are microseconds
since the epoch, UTC; money is integer micro-dollars; digests are SHA-256 in hexadecimal.
"""

from enum import StrEnum
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the store. Rows are only ever added; a correction is a new row that supersedes."""


class Mode(StrEnum):
    """Why a run happened."""

    PROD = "prod"
    SHADOW = "shadow"
    CANARY = "canary"
    EVAL = "eval"
    TRAIN = "train"


class RunStatus(StrEnum):
    """How a run ended."""

    OK = "ok"
    AGENT_ERROR = "agent_error"  # the model or its output failed: counts against the variant
    INPUT_ERROR = "input_error"  # the input was unusable: counts against nobody
    INFRA_ERROR = "infra_error"  # ours or the network's failure: never trained on, never counted
    CANCELLED = "cancelled"


class GradeSource(StrEnum):
    """Who gave a grade."""

    CODE = "code"
    JUDGE = "judge"
    HUMAN = "human"
    OUTCOME = "outcome"


class Split(StrEnum):
    """Which part of a taskset a record belongs to."""

    TRAIN = "train"
    DEV = "dev"  # choosing and calibrating; never a figure that is reported
    HELD_OUT = "held_out"


class Run(Record, frozen=True, kw_only=True):
    """One agent on one task. Written once, when it ended, together with what it made."""

    run_id: str
    workflow: str
    variant: str  # name of the way the work was done, such as ``base`` or ``rl``
    mode: Mode
    task_id: str  # the user's id of the input
    task_digest: str  # digest of the input as the model's task, the key of the split
    status: RunStatus
    started_us: int
    ended_us: int
    evaluation_id: str | None = None  # the evaluation, TrainingRun or batch that it belongs to
    group_id: str | None = None  # samples of the same prompt in RL
    decision_id: str | None = None  # the decision that assigned the variant
    propensity: float | None = None  # chance with which this variant was assigned
    customer: str | None = None  # for deletion by customer
    output: Any = None  # the parsed result, JSON
    confidence: float | None = None  # 0 … 1
    needs_person: bool = False
    error: str | None = None
    gaps: list[str] = []  # what the record lacks, such as ``no_token_ids``


class Call(Record, frozen=True, kw_only=True):
    """One model call in a run (or outside any run)."""

    call_id: str
    run_id: str | None
    dialect: str  # ``openai.chat``
    requested_model: str
    served_model: str
    provider: str
    adapter: str | None = None  # tinker:// path of the adapter that answered
    sampling: dict[str, Any] = {}
    stream: bool = False
    started_us: int
    first_us: int | None = None
    ended_us: int
    finish_reason: str | None = None
    error: str | None = None
    status_code: int = 200
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None
    cost_basis: str | None = None  # ``priced`` by a price list, ``estimated`` from own CPU time, ``free``
    price_version: str | None = None
    request_digest: str | None = None  # body in the blob table
    response_digest: str | None = None
    retry_of: str | None = None
    gaps: list[str] = []
    key_id: str | None = None  # whose key it was made with
    customer: str | None = None  # for deletion by customer
    upstream_dialect: str | None = None  # where the provider was asked in another dialect than the client's
    upstream_id: str | None = None  # the provider's id of the call
    cached_tokens: int | None = None  # of the input, read from the provider's cache
    cache_write_tokens: int | None = None  # of the input, written to it
    reasoning_tokens: int | None = None  # of the output
    input_audio_tokens: int | None = None  # of the input
    output_audio_tokens: int | None = None  # of the output
    units: dict[str, float] = {}  # what is not counted in tokens: images, characters, seconds
    cached: bool = False  # answered from the gateway's own cache: it cost nothing


class Attempt(Record, frozen=True, kw_only=True):
    """One try at one upstream for a call that took more than one, or that failed."""

    attempt_id: str  # the call's id, a stroke, and the number of the try
    call_id: str
    provider: str
    model: str
    key: str | None = None  # which of the provider's keys
    status_code: int  # 0: there was no answer
    error: str | None = None
    started_us: int
    ended_us: int


class Node(Record, frozen=True, kw_only=True):
    """One message of a run's message graph. Content is in the blob table, each message once."""

    node_id: str
    run_id: str
    parent_id: str | None
    role: str
    content_digest: str
    sampled: bool
    call_id: str | None = None


class TokenSpan(Record, frozen=True, kw_only=True):
    """Exact token ids of one node, as the engine saw (prompt) or returned (sampled) them.

    Concatenating a run's spans by ``seq`` gives the ids of the call: prompt, then completion.
    """

    span_id: str
    call_id: str
    run_id: str | None
    seq: int
    ids: bytes  # int32 little-endian
    logprobs: bytes | None = None  # float32 little-endian, one per id of a sampled span
    exact: bool  # the engine's own ids; re-tokenised text is never exact
    sampled: bool  # sampled implies exact
    policy: str | None = None  # adapter digest or tinker:// path that sampled the ids
    tokenizer_digest: str | None = None


class ToolCall(Record, frozen=True, kw_only=True):
    """One use of a tool by a run."""

    tool_call_id: str
    run_id: str
    call_id: str | None
    name: str
    arguments: Any
    effect: str  # ``none``, ``read`` or ``write``
    replay_key: str
    result: Any = None
    error: str | None = None
    started_us: int
    ended_us: int


class Grade(Record, frozen=True, kw_only=True):
    """One judgement of a run (or a call). A missing grade has no row; it is never 0."""

    grade_id: str
    run_id: str
    name: str
    value: float | None  # 0 … 1; None when the grader abstained or failed, with ``why``
    source: GradeSource
    grader_version: str
    at_us: int
    why: str | None = None
    detail: Any = None
    supersedes: str | None = None


class Feedback(Record, frozen=True, kw_only=True):
    """What somebody said about a run or a call, as it was sent; it may come late and more than once."""

    feedback_id: str
    at_us: int
    run_id: str | None  # one of the two is there
    call_id: str | None
    kind: str  # ``boolean``, ``float``, ``comment``, ``demonstration``, ``preference``
    name: str  # of the metric, such as ``accepted``
    value: Any
    source: GradeSource
    key_id: str | None = None  # whose key it was sent with


class Audit(Record, frozen=True, kw_only=True):
    """Who changed what in the administration of Doorstep."""

    audit_id: str
    at_us: int
    actor: str  # a key's id, or ``cli:USER``
    action: str  # ``key.create``
    subject: str
    detail: dict[str, Any] = {}


class Job(Record, frozen=True, kw_only=True):
    """An asynchronous job, such as the making of a video."""

    job_id: str
    kind: str  # ``video``
    created_us: int
    call_id: str
    provider: str
    model: str
    request: dict[str, Any]
    key_id: str | None = None
    remix_of: str | None = None


class JobState(Record, frozen=True, kw_only=True):
    """What a job came to; its newest row counts."""

    state_id: str
    job_id: str
    at_us: int
    status: str  # ``queued``, ``in_progress``, ``completed``, ``failed``, ``deleted``
    progress: int = 0  # per cent
    upstream_id: str | None = None
    artefact: str | None = None  # file in the data folder
    error: str | None = None


class Cost(Record, frozen=True, kw_only=True):
    """Money spent on anything, micro-dollars."""

    cost_id: str
    scope: str  # ``train``, ``serve``, ``judge``, ``human``
    ref: str  # what it was spent on: a model version, a run, a workflow
    workflow: str | None
    quantity: float
    unit: str  # ``cpu_second``
    amount_microusd: int
    basis: str
    at_us: int


class Dataset(Record, frozen=True, kw_only=True):
    """A sealed set of records: the manifest of ids, digests and splits, under one digest."""

    dataset_id: str
    workflow: str
    purpose: str
    digest: str
    created_us: int
    counts: dict[str, int]
    source: str | None = None
    seed: int = 0


class DatasetItem(Record, frozen=True, kw_only=True):
    """One record of a sealed dataset."""

    dataset_id: str
    task_id: str
    task_digest: str
    split: Split
    cluster: str  # near-duplicates share a cluster, and a cluster never straddles splits
    customer: str | None = None
    at: str | None = None  # ISO time of the record
    consent: bool = True


class ModelVersion(Record, frozen=True, kw_only=True):
    """A trained model: what it came from and where its weights are."""

    model_id: str
    workflow: str
    variant: str
    base: str
    base_digest: str
    path: str  # tinker:// path of the sampler weights
    adapter_digest: str
    recipe: dict[str, Any]
    dataset_id: str
    parent: str | None
    created_us: int


class Decision(Record, frozen=True, kw_only=True):
    """What the gate decided, on which plan and data, so that anyone can compute it again."""

    decision_id: str
    workflow: str
    kind: str  # ``promote`` or ``rollback``
    champion: str
    candidate: str
    plan: dict[str, Any]
    plan_digest: str
    data_query: dict[str, Any]
    data_digest: str
    statistics: dict[str, Any]
    verdict: str  # ``promote``, ``hold``, ``rollback``
    made_by: str
    at_us: int


class Route(Record, frozen=True, kw_only=True):
    """Which model serves a workflow from ``at_us`` on; the newest row counts."""

    route_id: str
    workflow: str
    variant: str
    model: str  # a model name that the gateway serves
    decision_id: str | None
    at_us: int


class TrainingStep(Record, frozen=True, kw_only=True):
    """The metrics of one optimiser step of a TrainingRun."""

    step_id: str
    training_run: str
    stage: str  # ``sft`` or ``rl``
    step: int
    metrics: dict[str, float]
    at_us: int


RECORDS: tuple[type[Record], ...] = (
    Run,
    Call,
    Attempt,
    Node,
    TokenSpan,
    ToolCall,
    Grade,
    Feedback,
    Audit,
    Job,
    JobState,
    Cost,
    Dataset,
    DatasetItem,
    ModelVersion,
    Decision,
    Route,
    TrainingStep,
)
