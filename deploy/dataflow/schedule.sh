#!/bin/sh
# A release on the first of every month, by Cloud Scheduler:
#   PROJECT=p REGION=europe-west1 BUCKET=b WORKER=... SCHEDULER=... deploy/dataflow/schedule.sh
# SCHEDULER is the account that may launch the template (roles/dataflow.developer,
# iam.serviceAccountUser on WORKER, and read on BUCKET-templates).  The body is the same every time;
# launch.py puts the month in, so a launch on another day of it is the same release.
set -eu
body=$("$(dirname "$0")/body.sh")

# No retries: a launch that was answered too late may have started the job all the same.
gcloud scheduler jobs create http dpgmm-release \
    --project "${PROJECT:?}" --location "${REGION:?}" \
    --schedule "0 3 1 * *" --time-zone Etc/UTC --max-retry-attempts 0 \
    --uri "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch" \
    --http-method POST --headers Content-Type=application/json --message-body "$body" \
    --oauth-service-account-email "${SCHEDULER:?}"
