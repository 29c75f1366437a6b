import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

import jaxprune

folder, out = sys.argv[1:]
folder = Path(folder).resolve()  # orbax takes whole paths only

reader = ocp.PyTreeCheckpointer()
found = reader.metadata(folder).item_metadata
assert found is not None, f"{folder} holds no checkpoint"
leaves = found.tree
on_host = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
saved = reader.restore(folder, restore_args=on_host)

params, masks = saved["params"]["params"], saved["opt_state"]["masks"]
summary = jaxprune.summary(params, masks)
came_back = saved["opt_state"]["health"]["came_back"].sum()
assert summary.total.holds and came_back == 0, "pruned weights are not zero, or were not"

named = jax.tree_util.tree_leaves_with_path(masks)
save_file({jax.tree_util.keystr(p, simple=True, separator="/"): m for p, m in named}, out)
