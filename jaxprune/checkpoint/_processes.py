"""Agreement between the processes of one program: all go on, or all raise the same error."""

import builtins
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_T = TypeVar("_T")

PATIENCE = 600.0  # seconds that a process waits for the others
_turns = itertools.count()  # all processes meet in one order, and so count alike


def is_first() -> bool:
    """Tell whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def agreed(what: str, call: Callable[[], _T]) -> _T:
    """Call a function in every process; return what the first process got, as `gathered`."""
    return gathered(what, call)[0]


def gathered(what: str, call: Callable[[], _T]) -> list[_T]:
    """Call a function in every process; return what each got, in their order.

    Args:
      what: names the public call, the same in all processes.
      call: returns something that JSON can hold; it may raise, in some processes or in all.

    Raises:
      Exception: what was raised here, else what was raised in another process.
      RuntimeError: the others did not come within `PATIENCE`, or are elsewhere.
    """
    if jax.process_count() == 1:
        return [call()]
    value, error = None, None
    try:
        value = call()
    except Exception as raised:
        error = raised
    failed = None if error is None else (type(error).__name__, str(error))
    _meet(what)
    answers = [_Answer(*answer) for answer in _exchanged([what, value, failed])]
    if error is not None:
        raise error
    _check_together(what, answers)
    return [answer.value for answer in answers]


class _Answer(NamedTuple):
    what: str
    value: Any
    failed: tuple[str, str] | None  # the type and the text of an error


def _check_together(what: str, answers: list[_Answer]) -> None:
    """Raise if another process has failed, or is elsewhere."""
    for process, answer in enumerate(answers):
        if answer.what != what:
            raise RuntimeError(
                f"this process is in {what}, and process {process} in {answer.what}. All processes "
                "of a program save and restore the same steps in the same order."
            )
        if answer.failed is not None:
            kind, text = answer.failed
            raised = getattr(builtins, kind, RuntimeError)(text)
            raised.add_note(f"This was raised in process {process}.")
            raise raised


def _exchanged(value: Any) -> list[Any]:
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray([text.size], np.int32)).ravel()
    padded = np.zeros(int(max(lengths)), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def _meet(what: str) -> None:
    """Wait for all processes, but not for ever."""
    import orbax.checkpoint as ocp  # takes most of a second, which only checkpoints need

    barrier = ocp.multihost.get_barrier_sync_fn()
    try:
        barrier(key=f"jaxprune.checkpoint {next(_turns)}", timeout_ms=int(1000 * PATIENCE))
    except Exception as error:
        raise RuntimeError(
            f"process {jax.process_index()} of {jax.process_count()} waited {PATIENCE:g} seconds "
            f"in {what}, and not all others came: {str(error).splitlines()[0]}. Call it in all "
            "processes; after a crash start all of them again, from the last good step."
        ) from error
