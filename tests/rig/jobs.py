"""Work done here and now: a job's pieces, or the steps of a conversation."""

from collections.abc import Generator
from typing import Any

from agent.duplex.job import Job
from agent.duplex.lanes import Runner
from agent.duplex.work import Work


def advanced(job: Job, runner: Runner) -> bool:
    """Do the next piece → whether there was one."""
    work = job.next()
    if work is not None:
        runner.do(work)
        job.did(work, 0.0)
    return work is not None


def sounded(steps: Generator[Work, None, Any]) -> None:
    """Do steps that ask the vocoder alone."""
    for work in steps:
        work.run(None, None)  # type: ignore[arg-type]
