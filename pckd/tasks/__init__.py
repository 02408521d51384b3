"""Tasks: what is learned, and how a network is measured; one file for each (``registry.TASKS``)."""

from pckd.tasks.task import BatchLoader, DistillationTask, Step, Task, Teacher

__all__ = ["BatchLoader", "DistillationTask", "Step", "Task", "Teacher"]
