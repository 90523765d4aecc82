"""Many pictures from a job file, on one process or many, that survive a kill.

Read and check the jobs, then run them::

    jobs = read_jobs("jobs.yaml")
    outcome = BatchRun(jobs, "out", BatchSettings(resume=True)).run(say=print)
"""

from attnctl.batch.jobs import BatchJob, JobList, jobs_from, read_jobs
from attnctl.batch.limits import Limits
from attnctl.batch.problems import JobFileError
from attnctl.batch.running import BatchRun, BatchSettings, BatchStoppedError, Outcome

__all__ = [
    "BatchJob",
    "BatchRun",
    "BatchSettings",
    "BatchStoppedError",
    "JobFileError",
    "JobList",
    "Limits",
    "Outcome",
    "jobs_from",
    "read_jobs",
]
