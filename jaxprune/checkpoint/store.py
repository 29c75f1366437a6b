"""Save and restore training states."""

import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxprune.checkpoint import _folder
from jaxprune.checkpoint._leaves import (
    Spec,
    disk_shape,
    from_disk,
    named_leaves,
    rebuild,
    sharding_on_disk,
    spec_of,
    to_disk,
)
from jaxprune.checkpoint._match import check_match, fingerprints
from jaxprune.checkpoint._processes import agreed, gathered, is_first
from jaxprune.types import Tree

Directory: TypeAlias = str | os.PathLike[str]

_ARRAYS = "arrays"


def save(directory: Directory, step: int, state: Tree, *, keep: int = 2) -> Path:
    """Write a checkpoint, atomically.

    It is complete under its name or not there at all: a run killed at any moment leaves the
    checkpoints that it had. When the call returns, everything is on disk and no thread is left.
    One process at a time may write into a directory, or all processes of one program together: all
    call this with the same step, and what is raised in one is raised in all.

    Args:
      directory: where checkpoints of one run are kept; made if it does not exist. A local or
        shared file system.
      step: number of the checkpoint, 0 or more.
      state: any tree of arrays and numbers, as in ``{"params": params, "opt_state": opt_state}``;
        typed keys, packed masks, Flax ``TrainState`` and NNX states are welcome. Boolean arrays
        are stored as one bit an entry.
      keep: how many checkpoints to keep, this one included. Older ones are removed once this one
        is complete; damaged ones are left alone and do not count.

    Returns:
      The folder of the checkpoint.

    Raises:
      FileExistsError: the step is there already; nothing is overwritten.
      ValueError: a negative step, ``keep`` below 1, an empty state, or a URL for a directory.
      RuntimeError: of several processes not all came within 10 minutes, or with the same step.
      TypeError: a leaf that is no array and no number, named by its path.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     for step in range(4):
      ...         path = jaxprune.checkpoint.save(directory, step, {"params": jnp.ones(3)})
      ...     sorted(entry.name for entry in path.parent.iterdir())
      ['2', '3']
    """
    folder, step = _as_folder(directory), _as_count("step", step, 0)
    keep = _as_count("keep", keep, 1)
    name = f"jaxprune.checkpoint.save of step {step}"
    leaves = named_leaves(state)
    agreed(name, lambda: _check_new(folder, step, leaves))
    specs = {path: spec_of(path, leaf) for path, leaf in leaves.items()}
    # Orbax refuses arrays of size zero: their spec says all.
    arrays = {p: to_disk(specs[p], leaf) for p, leaf in leaves.items() if 0 not in specs[p].shape}
    content = {"leaves": specs, "fingerprints": fingerprints(leaves)}
    _write(name, folder, step, arrays, content, keep)
    return folder / str(step)


def restore(directory: Directory, template: Tree, *, step: int | None = None) -> tuple[int, Tree]:
    """Read a checkpoint into the form of a template. Nothing on disk is changed.

    Leaves are matched by path, so that the container may be another one than was saved. In a
    program of several processes all call this; how many there are may have changed.

    Args:
      directory: as in `save`.
      template: a tree like the one that was saved, of arrays, ``jax.ShapeDtypeStruct``, or
        numbers. Each leaf is restored with its template's sharding, on another mesh if need be;
        masks come back boolean or packed, as they are here. If it holds the values of a new
        ``opt_state``, and not only shapes, the recipe of sparse training is compared too.
      step: which checkpoint; None for the newest.

    Returns:
      The step, and a tree like ``template``.

    Raises:
      FileNotFoundError: there is no such directory, checkpoint or step.
      ValueError: the checkpoint is damaged (the last good step is named: there is no silent way
        back to it), or is one of another model, optimizer or recipe.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> tx = jaxprune.gradual(optax.adam(0.1), 0.5)
      >>> updates, opt_state = tx.update(params, tx.init(params), params)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = jaxprune.checkpoint.save(directory, 7, {"opt_state": opt_state})
      ...     step, state = jaxprune.checkpoint.restore(directory, {"opt_state": tx.init(params)})
      >>> step, jaxprune.get_masks(state["opt_state"])["kernel"].tolist()
      (7, [[False, True]])
    """
    folder, name = _as_folder(directory), "jaxprune.checkpoint.restore"
    step = agreed(name, lambda: _chosen(folder, step))
    name = f"{name} of step {step}"
    agreed(name, lambda: _check_intact(folder, step))
    content = _folder.manifest(folder, step)
    saved = {path: Spec(tuple(shape), dtype) for path, (shape, dtype) in content["leaves"].items()}
    leaves = named_leaves(template)
    where = f"step {step} in {str(folder)!r}"
    agreed(name, lambda: check_match(where, saved, leaves, content["fingerprints"]))
    shardings = {path: sharding_on_disk(path, saved[path], leaf) for path, leaf in leaves.items()}
    arrays = _read(folder / str(step) / _ARRAYS, saved, shardings)
    restored = {
        path: from_disk(
            arrays[path] if path in arrays else np.zeros(disk_shape(saved[path], leaf), np.uint8),
            saved[path],
            leaf,
        )
        for path, leaf in leaves.items()
    }
    return step, rebuild(template, restored)


def latest_step(directory: Directory) -> int | None:
    """Return the newest step in a directory, or None if there is none yet.

    Args:
      directory: as in `save`; it need not exist.

    Returns:
      The step. Interrupted saves are not seen; whether the files are intact, `restore` tells.

    Raises:
      ValueError: a URL for a directory.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     before = jaxprune.checkpoint.latest_step(directory)
      ...     path = jaxprune.checkpoint.save(directory, 20, {"params": jnp.ones(3)})
      ...     before, jaxprune.checkpoint.latest_step(directory)
      (None, 20)
    """
    return max(_folder.steps_in(_as_folder(directory)), default=None)


def _check_new(folder: Path, step: int, leaves: Mapping[str, Any]) -> None:
    """Raise if a state cannot be saved, or a step is there."""
    if not leaves:
        raise ValueError("state has no leaves. Pass {'params': params, 'opt_state': opt_state}.")
    for path, leaf in leaves.items():
        spec_of(path, leaf)
    if (folder / str(step)).exists():
        raise FileExistsError(
            f"step {step} is in {str(folder)!r} already, and a checkpoint is never overwritten. "
            "Save another step, remove that folder, or choose another directory."
        )


def _write(
    name: str,
    folder: Path,
    step: int,
    arrays: dict[str, Any],
    content: dict[str, Any],
    keep: int,
) -> None:
    """Write all arrays, then the manifest, then remove older steps."""
    import orbax.checkpoint as ocp  # takes most of a second, which only checkpoints need

    partial = _folder.partial_of(folder, step)

    def prepare() -> None:
        if is_first():
            _folder.clear(folder)
            partial.mkdir()

    def finish() -> None:
        if is_first():
            _folder.commit(folder, step, content, files)
            _folder.remove_older(folder, step, keep)

    agreed(name, prepare)
    if arrays:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(partial.absolute() / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
    names = agreed(name, lambda: _folder.written(folder, step))
    first, count = _share()
    parts = gathered(name, lambda: _folder.digests(folder, step, names[first::count]))
    files = {file: part[file] for file in names for part in parts if file in part}
    agreed(name, finish)


def _read(root: Path, saved: Mapping[str, Spec], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the stored arrays: sharded ones straight onto their devices, the others to the host."""
    import orbax.checkpoint as ocp  # takes most of a second, which only checkpoints need

    def how(path: str, spec: Spec) -> Any:
        del spec
        if shardings[path] is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=shardings[path])

    args = {path: how(path, spec) for path, spec in saved.items() if 0 not in spec.shape}
    if not args:
        return {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        request = ocp.args.PyTreeRestore(item=dict.fromkeys(args, 0), restore_args=args)
        return checkpointer.restore(root.absolute(), args=request)


def _share() -> _folder.Share:
    return jax.process_index(), jax.process_count()


def _chosen(folder: Path, step: int | None) -> int:
    steps = _folder.steps_in(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no directory {str(folder)!r}. Pass the directory that was given to "
            "jaxprune.checkpoint.save."
        )
    if not steps:
        raise FileNotFoundError(
            f"there is no checkpoint in {str(folder)!r}. Save one with jaxprune.checkpoint.save, "
            "or start anew if jaxprune.checkpoint.latest_step gives None."
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        raise FileNotFoundError(
            f"there is no step {step} in {str(folder)!r}; its steps are "
            f"{', '.join(map(str, steps))}. Pass one of them, or step=None for the newest."
        )
    return step


def _check_intact(folder: Path, step: int) -> None:
    damage = _folder.damage(folder, step, _share())
    if damage is None:
        return
    good = _folder.last_intact(folder)
    remedy = (
        "No other step is intact: copy one back, or start anew."
        if good is None
        else f"The last good step is {good}: pass step={good}."
    )
    raise ValueError(f"step {step} in {str(folder)!r} is damaged: {damage}. {remedy}")


def _as_folder(directory: Directory) -> Path:
    if "://" in os.fspath(directory):
        raise ValueError(
            f"directory must be on a local or shared file system, got {os.fspath(directory)!r}. "
            "Mount the bucket, or copy finished checkpoints there."
        )
    return Path(directory)


def _as_count(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}."
        ) from None
    if number < least:
        raise ValueError(f"{name} must be {least} or more, got {number}.")
    return number
