"""An Airflow DAG (3.x): once a month embed -> release -> train -> report, on one budget.

Both files of this folder go into the DAG folder; settings are in dpgmm_commands.py, the budget for a
year in docs/budget.md.  Where it runs needs the program (deploy/Dockerfile, or a virtual environment of
its own: Airflow pins other versions than it does) and no network but the ledger's.

- The release id is the month for which Airflow runs it: retries, a cleared task and a run by hand in
  that month make the same release, or find it made, at one charge.
- Exit statuses 2 (refused) and 3 (no budget left) fail at once; anything else is tried again.
- A task that is late is asked to end (SIGTERM) and tried again: it goes on where it was.
- DPGMM_ALERT, a command, gets a sentence for each task that has failed for good.
"""

import datetime
import json
import logging
import os
import shlex
import subprocess

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from dpgmm_commands import NEVER_AGAIN, STEPS, commands, program

# As Airflow renders it: the month of the schedule, whenever it runs.
RELEASE_ID = "{{ (dag_run.logical_date or dag_run.run_after).strftime('%Y-%m') }}"

_END_SECONDS = 60


def alert(context) -> None:
    """Tells somebody that a task has failed for good."""
    task = context["task_instance"]
    text = f"{task.dag_id} {task.run_id}: {task.task_id} failed: {context.get('exception')}"
    logging.getLogger("airflow.task").error("ALERT %s", text)
    if command := shlex.split(os.environ.get("DPGMM_ALERT", "")):
        subprocess.run([*command, text], check=False, timeout=60)


class DpgmmOperator(BaseOperator):
    """Runs `dpgmm`, without a shell; what a release says of itself by name is its task's result.

    What other verbs say may be exact, and Airflow shows results to all of its users.

    Args:
      arguments: the verb and its options; a template.
    """

    template_fields = ("arguments",)

    def __init__(self, *, arguments: list[str], **options):
        super().__init__(**options)
        self.arguments = arguments
        self._process = None

    def execute(self, context):
        self._process = subprocess.Popen(
            [*program(), *self.arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said = ""
            for line in self._process.stderr:
                said = line.strip() or said
                self.log.info("%s", line.rstrip())
            answer = self._process.stdout.read()
            status = self._process.wait()
        finally:
            self.on_kill()
        if status in NEVER_AGAIN:
            raise AirflowFailException(f"exit status {status}: {said}")
        if status:
            raise AirflowException(f"exit status {status}: {said}")
        return json.loads(answer) if self.arguments[0] == "release" else None

    def on_kill(self):
        """Asks the process to end, as `dpgmm` does in order, and waits for it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


with DAG(
    dag_id="dpgmm_release",
    description="A differentially private release a month, charged to a ledger",
    schedule="0 3 1 * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    # Months that were missed are not made up for: each would spend its part of the budget.
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=datetime.timedelta(days=3),
    default_args={
        "retries": 3,
        "retry_delay": datetime.timedelta(minutes=10),
        "execution_timeout": datetime.timedelta(days=1),
        "on_failure_callback": alert,
    },
) as dag:
    _arguments = commands(RELEASE_ID)
    _before = None
    for _step in STEPS:
        _task = DpgmmOperator(task_id=_step, arguments=_arguments[_step])
        if _before is not None:
            _before >> _task
        _before = _task
