#!/usr/bin/env bash
# Deletes what deploy.sh created, but for the bucket with the data. What is gone already is passed over.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'END'
usage: deploy/destroy.sh PROJECT REGION

Deletes the service, its subscription and topics with the messages that wait in them, its image and its accounts. The bucket
with the data stays. It prints each command before it runs it. Settings, as environment variables; the names as deployed:

END
    settings_help
    cat <<'END'
  YES                      1: do not ask
  DELETE_BUCKET            1: the bucket and all data in it as well
END
}

# shellcheck source=deploy/settings.sh
. "$here/settings.sh"

gone() {  # gone COMMAND... -- COMMAND...: what the first describes is deleted by the second, if it is there
    local look=()
    while [[ $1 != -- ]]; do
        look+=("$1")
        shift
    done
    shift
    if [[ -n $dry_run ]] || exists name "${look[@]}"; then
        run "$@"
    fi
}

revoke() {  # revoke GROUP RESOURCE ROLE MEMBER: a deleted account's name would stand in the policy for ever
    local group policy
    read -ra group <<<"$1"
    if [[ -z $dry_run ]]; then
        exists name gcloud "${group[@]}" describe "$2" || return 0
        policy=$(gcloud "${group[@]}" get-iam-policy "$2" --flatten='bindings[].members' \
            --format='value(bindings.role,bindings.members)')
        [[ $'\n'$policy$'\n' == *$'\n'$3$'\t'$4$'\n'* ]] || return 0
    fi
    run gcloud "${group[@]}" remove-iam-policy-binding "$2" --role="$3" --member="$4" --condition=None
}

where=(--project="$project" --region="$region")
if [[ ${YES-} != 1 && -z $dry_run ]]; then
    printf 'This deletes %s in %s with all messages that wait for it' "$service" "$project" >&2
    [[ ${DELETE_BUCKET-} != 1 ]] || printf ', and ALL DATA in gs://%s' "$bucket" >&2
    printf '. Type the project'\''s name to go on: ' >&2
    read -r answer || answer=''
    [[ $answer == "$project" ]] || stop 'nothing was deleted; type the name, or set YES=1'
fi

# Of a project that is not there, or not to be seen, Pub/Sub says of each thing that it is not found.
[[ -n $dry_run ]] || exists projectId gcloud projects describe "$project" ||
    stop "there is no project '$project' that this login may see: correct PROJECT, or log in with \`gcloud auth login\`"

# Deliveries first, then who takes them.
for name in "$subscription" "$dead_letters"; do
    gone gcloud pubsub subscriptions describe "$name" --project="$project" -- \
        gcloud pubsub subscriptions delete "$name" --project="$project"
done
gone gcloud run services describe "$service" "${where[@]}" -- gcloud run services delete "$service" "${where[@]}" --quiet
# The starts of drills, and what tells of a service that is gone. A deployment with DRILL_SCHEDULE made the former.
if [[ -n $dry_run ]] || exists name gcloud run jobs describe "$drill_job" "${where[@]}"; then
    gone gcloud scheduler jobs describe "$drill_job" --project="$project" --location="$region" -- \
        gcloud scheduler jobs delete "$drill_job" --project="$project" --location="$region" --quiet
    run gcloud run jobs delete "$drill_job" "${where[@]}" --quiet
fi
if [[ -z $dry_run ]]; then
    policies=$(gcloud alpha monitoring policies list --project="$project" --filter="userLabels.solowriter=\"$service\"" \
        --format='value(name)') || stop 'cannot list the alerts, see above'
    for name in $policies; do
        run gcloud alpha monitoring policies delete "$name" --project="$project" --quiet
    done
fi
gone gcloud logging metrics describe "$service-starts" --project="$project" -- \
    gcloud logging metrics delete "$service-starts" --project="$project" --quiet
gone gcloud run jobs describe "$job" "${where[@]}" -- gcloud run jobs delete "$job" "${where[@]}" --quiet
for name in "$topic" "$dead_letters"; do
    gone gcloud pubsub topics describe "$name" --project="$project" -- \
        gcloud pubsub topics delete "$name" --project="$project"
done
[[ -z $schema ]] || gone gcloud pubsub schemas describe "$schema" --project="$project" -- \
    gcloud pubsub schemas delete "$schema" --project="$project" --quiet

# Then rights and accounts.
revoke 'storage buckets' "gs://$bucket" roles/storage.objectUser "serviceAccount:$runtime"
revoke projects "$project" "projects/$project/roles/$snapshots_role" "serviceAccount:$runtime"
revoke projects "$project" roles/logging.logWriter "serviceAccount:$builder"
# The role itself stays: it gives no account anything now, and a deleted role's name could be neither used nor brought back from the
# eighth day to the thirty-seventh (IAM documentation, "Delete a custom role"), so that no deployment would succeed then.
for name in "$runtime" "$pusher" "$builder" "$scheduler"; do
    gone gcloud iam service-accounts describe "$name" --project="$project" -- \
        gcloud iam service-accounts delete "$name" --project="$project" --quiet
done

# What the image was built from, and the image.
gone gcloud artifacts repositories describe "$repository" --project="$project" --location="$region" -- \
    gcloud artifacts repositories delete "$repository" --project="$project" --location="$region" --quiet
gone gcloud artifacts repositories describe "$hub" --project="$project" --location="$region" -- \
    gcloud artifacts repositories delete "$hub" --project="$project" --location="$region" --quiet
gone gcloud storage buckets describe "gs://$build_bucket" -- gcloud storage rm --recursive "gs://$build_bucket"
if [[ ${DELETE_BUCKET-} == 1 ]]; then
    gone gcloud storage buckets describe "gs://$bucket" -- gcloud storage rm --recursive "gs://$bucket"
else
    printf '# gs://%s is kept, with the data. Delete it with DELETE_BUCKET=1.\n' "$bucket"
fi
