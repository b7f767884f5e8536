#!/bin/sh
# Starts one release by hand, as launch.json says, with a release id of its own:
#   PROJECT=p REGION=europe-west1 BUCKET=b WORKER=dpgmm-worker@p.iam.gserviceaccount.com \
#       deploy/dataflow/run.sh 2026-11
# Five buckets, for they have different readers (docs/running.md, "Dataflow"): BUCKET-input,
# BUCKET-private, BUCKET-temp, BUCKET-templates and BUCKET-releases.
set -eu
: "${PROJECT:?}" "${REGION:?}"
body=$("$(dirname "$0")/body.sh" "${1:?release id}")

# The token goes through standard input: other users of this machine see a command's arguments.
printf 'Authorization: Bearer %s\n' "$(gcloud auth print-access-token)" |
    curl --silent --show-error --fail-with-body --header @- \
        --header 'Content-Type: application/json' --data "$body" \
        "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch"
