#!/usr/bin/env bash
# Whether a deployed service does what it is for: its doctor is content, and a published user is acknowledged, can be read, and can
# be erased again. It ends at the first step that fails, and says which.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'END'
usage: deploy/smoke.sh PROJECT REGION

Tries the deployed service: the doctor as a job; then one user is published with an id that no other has, is acknowledged within a
minute, read back, and erased. It prints each command before it runs it. Settings, as environment variables; the names as
deployed:

END
    settings_help
    cat <<'END'
  NETWORK                  default: empty, as deployed, leaves out what must reach the service
END
}

# shellcheck source=deploy/settings.sh
. "$here/settings.sh"

step() {  # step NAME COMMAND...: print it, run it, and end if it fails
    local name=$1
    shift
    run "$@" || stop "the smoke test failed at this step: $name; see above, and docs/deploy.md, 'The smoke test'"
}

execute=(gcloud run jobs execute "$job" --project="$project" --region="$region" --wait)
# Far from the ids of real users, and never the same twice: an erased id can take no user again.
user=SMOKE_USER
[[ -n $dry_run ]] || user=$((4611686018427387904 + $(date +%s) * 1000 + RANDOM % 1000))
step 'doctor' "${execute[@]}" --args=-m,worker,doctor
step 'publish' gcloud pubsub topics publish "$topic" --project="$project" --message="{\"user_id\": $user}"
if [[ -z $network ]]; then
    printf '# user %s is published; NETWORK is empty, so that it can be neither read back nor erased from here\n' "$user"
else
    step 'acknowledged, read back, erased' "${execute[@]}" "--args=-m,worker,smoke,--user-id,$user"
fi
[[ -n $dry_run ]] || printf '# the smoke test passed\n'
