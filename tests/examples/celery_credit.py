"""Credit for Celery: a slot for each task, which goes to the worker that succeeds with it."""

from celery.signals import before_task_publish, task_failure, task_revoked, task_success

from cpdaemon import cpapi_alloc, cpapi_claim, cpapi_counters, cpapi_discard


@before_task_publish.connect  # not after: a worker may be done before that
def allocate(headers, **_):
    if headers["retries"] == 0:  # a retry is published again, as the same task
        cpapi_alloc(headers["id"], min=1, max=10)


@task_success.connect
def claim(sender, result, **_):
    task = sender.request
    cpapi_counters(task.id, **{"job/success": 1, "job/retries": task.retries, "job/events": result["events"]})
    cpapi_claim(task.id, task.hostname, credits=result["events"] // 100)


@task_failure.connect
def discard(task_id, exception, **_):
    cpapi_discard(task_id, reason=type(exception).__name__)


@task_revoked.connect
def give_up(request, expired, **_):
    cpapi_discard(request.id, reason="expired" if expired else "revoked")
