"""One run: ask the model, read the answer, apply the business rules. A failed run is a row, not a crash."""

import json
import math
from typing import Any

from doorstep import ids
from doorstep.errors import BadInput, ProviderError
from doorstep.types import Mode, Run, RunStatus
from doorstep.workflows.client import Completion, ModelClient
from doorstep.workflows.taskset import Task
from doorstep.workflows.workflow import Workflow


class Runner:
    """Runs tasks of one workflow on one variant (``model`` is the name that the gateway serves)."""

    def __init__(
        self,
        client: ModelClient,
        workflow: Workflow,
        *,
        variant: str,
        model: str,
        mode: Mode,
        evaluation_id: str | None = None,
        decision_id: str | None = None,
    ) -> None:
        self._client = client
        self._workflow = workflow
        self._model = model
        self._common: dict[str, Any] = {
            "workflow": workflow.name,
            "variant": variant,
            "mode": mode,
            "evaluation_id": evaluation_id,
            "decision_id": decision_id,
        }

    async def run(self, task: Task) -> Run:
        """Do one task. The result's status says whose fault a failure was.

        Raises ``UsageError`` when the model takes no request at all: that is about no task, and stops the batch.
        """
        run_id, started = ids.new_id("run"), ids.now_us()
        try:
            messages = self._workflow.messages(task.item)
        except Exception as error:
            return self._end(run_id, started, task, RunStatus.INPUT_ERROR, error=_text(error))
        try:
            answer = await self._client.complete(
                run_id, self._model, messages, temperature=0, max_tokens=self._workflow.max_tokens, logprobs=True
            )
        except BadInput as error:
            return self._end(run_id, started, task, RunStatus.INPUT_ERROR, error=error.why)
        except ProviderError as error:
            return self._end(run_id, started, task, RunStatus.INFRA_ERROR, error=str(error))
        return self._read(run_id, started, task, answer)

    def _read(self, run_id: str, started: int, task: Task, answer: Completion) -> Run:
        confidence = sequence_probability(answer.logprobs)
        gaps = [] if answer.logprobs is not None else ["no_logprobs"]
        if answer.finish_reason == "length":
            why = _cut(answer.output_tokens, self._workflow.max_tokens)
            return self._end(run_id, started, task, RunStatus.AGENT_ERROR, error=why, confidence=confidence, gaps=gaps)
        try:
            output = self._workflow.finish(self._workflow.parse(answer.text), task.item)
            json.dumps(output, allow_nan=False)  # models do write NaN, which no store keeps
        except Exception as error:
            why = f"answer {answer.text[:120]!r} is unusable: {_text(error)}"
            return self._end(run_id, started, task, RunStatus.AGENT_ERROR, error=why, confidence=confidence, gaps=gaps)
        return self._end(run_id, started, task, RunStatus.OK, output=output, confidence=confidence, gaps=gaps)

    def _end(self, run_id: str, started: int, task: Task, status: RunStatus, **fields: Any) -> Run:
        return Run(
            run_id=run_id,
            task_id=task.task_id,
            task_digest=task.digest,
            customer=task.customer,
            status=status,
            started_us=started,
            ended_us=ids.now_us(),
            needs_person=status is not RunStatus.OK,
            **self._common,
            **fields,
        )


def sequence_probability(logprobs: list[float] | None) -> float | None:
    """Return the chance that the model gave to its whole answer, ``None`` where it gives no log-probabilities."""
    return math.exp(min(0.0, sum(logprobs))) if logprobs else None


def _cut(tokens: int | None, most: int) -> str:
    """Say why an answer was cut, which is none: half of it may look like a whole one."""
    if tokens is not None and tokens < most:
        return f"the answer was cut at {tokens} tokens, where the model's context is full; shorten render()"
    return f"the answer was cut at {most} tokens; raise MAX_TOKENS"


def _text(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at {error.pos})"
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text.encode(errors="backslashreplace").decode()  # half a character in an answer cannot be stored
