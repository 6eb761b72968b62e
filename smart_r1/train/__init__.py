"""Training: the loop that stages share, its parts, and pre-training.

`config` reads settings. `scenes` deals out the scenes, `step` computes gradients and follows them
with `optimizer` at the rate of `schedule`, and `distributed` adds up what several processes
computed. `state` keeps a run's folder and checkpoints, `log` reports, `interrupt` says when to
stop, and `validation` looks at the result. `loop` puts them together, and `pretrain` is the first
stage.
"""
