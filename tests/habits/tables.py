"""The member tables by kind: the name of the room, and its rows."""

from tests import members

KINDS: dict[str, tuple[members.Row, ...]] = {
    "scores": members.SCORES + members.DATA_SCORES,
    "patterns": members.PATTERNS,
    "allocation": members.ALLOCATIONS,
    "schedules": members.SCHEDULES,
    "transforms": members.TRANSFORMS,
}
# Public, but not one of the kind. A name without a row must be put here, in sight.
NOT_MEMBERS: dict[str, set[str]] = {
    # Of one matrix with the sums over its inputs, or of gradients: not of (params, grads).
    "scores": {"wanda", "ria", "gblm", "gradient_norm", "dual_importance", "obs"},
    "allocation": {"minimum_threshold", "precrop_widths"},
    "transforms": {
        *("check", "final_params", "forward_params", "get_masks", "value_and_grad", "itop_rate"),
        # What a recipe is made of.
        *("growth", "moments", "cosine_drop", "linear_drop", "wrap", "everything"),
        *("dense_gradients", "masked_gradients", "land_on_zero", "stay_dense"),
    },
}
