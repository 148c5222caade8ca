"""The run: configuration, DeepSpeed engine, loop, schedules, checkpoints, metrics."""
