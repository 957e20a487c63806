"""Attribution: gradients with respect to pixels, backward rules, baselines, incremental forward passes."""
