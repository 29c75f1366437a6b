# pyright: reportMissingImports=false
from absl import app
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train

import jaxprune

dense_optimizer = optimizers.get_optimizer


def prunable(path, leaf):
    """Kernels of attention and feed-forward; not the head, and not the router of experts."""
    inside = path.startswith("decoder/layers/") and not path.endswith("gate/kernel")
    return inside and jaxprune.default_where(path, leaf)


def get_optimizer(config, *args, **kwargs):
    tx = dense_optimizer(config, *args, **kwargs)
    whole = config.learning_rate_schedule_steps
    ramp = jaxprune.schedules.cubic(0.0, 0.8, begin=whole // 10, end=whole * 7 // 10)
    # The one line.
    return jaxprune.gradual(
        tx, ramp, every=100, where=prunable, layers={"decoder/layers/": config.param_scan_axis}
    )


optimizers.get_optimizer = get_optimizer

if __name__ == "__main__":
    app.run(train.main)
