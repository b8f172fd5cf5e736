#!/usr/bin/env bash
# From a clone to a running service, or the same service brought up to date. Running it again changes nothing. Each step looks
# first and creates what is missing, so a run that broke off is mended by the next. What each account may do, and why:
# docs/security.md. The steps: docs/deploy.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

usage() {
    cat <<'END'
usage: deploy/deploy.sh PROJECT REGION

Creates or updates everything that the service needs in PROJECT: APIs, bucket, accounts, image, store, service, subscription.
It prints each command before it runs it. Settings, as environment variables:

END
    settings_help
    cat <<'END'
  IMAGE                    none: an image that is there already, instead of one built from this clone; for going back
  CPU                      1
  MEMORY                   1Gi: four times the database, and six times QUEUE_MAX_BYTES
  DATA_SIZE                480Mi: the most that the database's folder may take of MEMORY; three times the database
  INGRESS                  internal; all: from anywhere, still only with a token of an account that may invoke
  ACK_DEADLINE_SECONDS     60: for the service and for the subscription
  OPERATORS                none: e-mail addresses, with commas between, of those who may resolve rejections
  CHECKPOINT_HOURS         0: as for the worker
  LOG_LEVEL                info: as for the worker
  SOFT_DELETE_DAYS         7: how long Cloud Storage keeps what was deleted or overwritten
  RETRY_SECONDS            10: the pause before a refused grant is tried again, 6 times in all
END
}

# shellcheck source=deploy/settings.sh
. "$here/settings.sh"

patiently() {  # patiently COMMAND...: print it, run it, and again if it fails: a new account is not known everywhere at once
    local attempt
    show "$@"
    [[ -z $dry_run ]] || return 0
    for attempt in 1 2 3 4 5 6; do
        "$@" >"$output" 2>"$errors" && return 0
        [[ $attempt == 6 ]] || sleep "${RETRY_SECONDS:-10}"
    done
    stop "refused 6 times: $(<"$errors")"
}

bound() {  # bound ROLE MEMBER COMMAND...: whether the policy that COMMAND gets has this binding
    local role=$1 member=$2 policy
    shift 2
    policy=$("$@" --flatten='bindings[].members' --format='value(bindings.role,bindings.members)') ||
        stop "cannot read who may what, see above: \`$*\`"
    [[ $'\n'$policy$'\n' == *$'\n'$role$'\t'$member$'\n'* ]]
}

grant() {  # grant GROUP RESOURCE ROLE MEMBER FLAG...: one binding, on one resource, unless it is there
    local resource=$2 role=$3 member=$4 group
    read -ra group <<<"$1"  # such as "storage buckets"
    shift 4
    if [[ -z $dry_run ]] && bound "$role" "$member" gcloud "${group[@]}" get-iam-policy "$resource" "$@"; then
        return
    fi
    # Without a condition, said so that nothing asks where a policy has one already. Not every group knows the flag.
    local condition=()
    [[ ${group[0]} == pubsub ]] || condition=(--condition=None)
    patiently gcloud "${group[@]}" add-iam-policy-binding "$resource" "$@" --role="$role" --member="$member" \
        ${condition[@]+"${condition[@]}"}
}

account() {  # account EMAIL WHAT-FOR: without keys; only what is attached to it, or may impersonate it, can use it
    exists email gcloud iam service-accounts describe "$1" --project="$project" ||
        run gcloud iam service-accounts create "${1%%@*}" --project="$project" --display-name="$2"
}

enable_apis() {
    local wanted=(artifactregistry cloudbuild cloudresourcemanager iam pubsub run storage) enabled='' missing=() name
    [[ -n $dry_run ]] || enabled=$(gcloud services list --enabled --project="$project" --format='value(config.name)')
    for name in "${wanted[@]}"; do
        [[ $'\n'$enabled$'\n' == *$'\n'$name.googleapis.com$'\n'* ]] || missing+=("$name.googleapis.com")
    done
    ((${#missing[@]} == 0)) || run gcloud services enable "${missing[@]}" --project="$project"
}

make_bucket() {
    # Rights by accounts alone, not object by object; nothing can ever be made public; in the service's region, as each message
    # waits for it. Soft delete on purpose: as long as the worker keeps ended generations, so that a deletion by mistake or by
    # an intruder can be undone. It is billed (docs/cost.md); 0 turns it off.
    local seconds=$((${SOFT_DELETE_DAYS:-7} * 86400)) place access
    local settings=(--uniform-bucket-level-access --public-access-prevention --soft-delete-duration="${seconds}s")
    local fields='location,uniform_bucket_level_access,public_access_prevention,soft_delete_policy.retentionDurationSeconds'
    if ! exists "$fields" gcloud storage buckets describe "gs://$bucket"; then
        run gcloud storage buckets create "gs://$bucket" --project="$project" --location="$region" "${settings[@]}"
        return
    fi
    place=${found%%$'\t'*}
    access=${found#*$'\t'}
    [[ $(tr '[:upper:]' '[:lower:]' <<<"$place") == "$region" ]] ||
        stop "gs://$bucket is in $place, and a bucket cannot move: deploy to that region, or choose another BUCKET"
    [[ $access == "True"$'\t'"enforced"$'\t'"$seconds" ]] ||
        run gcloud storage buckets update "gs://$bucket" "${settings[@]}"
}

build_image() {
    exists name gcloud artifacts repositories describe "$repository" --project="$project" --location="$region" ||
        # A tag stays what it was: what was reviewed under it is what runs, also after going back.
        run gcloud artifacts repositories create "$repository" --project="$project" --location="$region" \
            --repository-format=docker --immutable-tags
    account "$builder" "Builds $service's image"
    # Of the sources, which hold no secret, a copy for a day. Soft delete off: nothing of it is worth more.
    exists name gcloud storage buckets describe "gs://$build_bucket" || {
        run gcloud storage buckets create "gs://$build_bucket" --project="$project" --location="$region" \
            --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0s
        run gcloud storage buckets update "gs://$build_bucket" --lifecycle-file=deploy/build-lifecycle.json
    }
    grant 'storage buckets' "gs://$build_bucket" roles/storage.objectViewer "serviceAccount:$builder"
    grant 'artifacts repositories' "$repository" roles/artifactregistry.writer "serviceAccount:$builder" \
        --project="$project" --location="$region"
    grant projects "$project" roles/logging.logWriter "serviceAccount:$builder"
    exists image_summary.digest gcloud artifacts docker images describe "$image" --project="$project" && return
    # In no region: Cloud Build offers new projects few. The ignore file is found beside the sources.
    run gcloud builds submit . --project="$project" --config=deploy/cloudbuild.yaml \
        --substitutions="_IMAGE=$image" --service-account="projects/$project/serviceAccounts/$builder" \
        --gcs-source-staging-dir="gs://$build_bucket/source"
}

fingerprint() {  # of everything that ends up in the image: the same sources are not built twice, others never get the same tag
    (
        cd "$root"
        find .dockerignore Dockerfile litestream.yml publisher requirements.lock worker -type f \
            -not -path '*/__pycache__/*' | LC_ALL=C sort | while read -r file; do printf '%s\n' "$file"; cat "$file"; done
    ) | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'
}

make_accounts() {
    account "$runtime" "Runs $service"
    account "$pusher" "Pushes to $service"
    # Read, write and delete objects of this bucket; not its settings, its policy, or any other bucket.
    grant 'storage buckets' "gs://$bucket" roles/storage.objectUser "serviceAccount:$runtime"
    # Checkpoints and replay. Pub/Sub asks for snapshots' rights on the project and on the snapshot, and the predefined role
    # that has them, roles/pubsub.editor, can also delete the topic and its subscriptions: hence a role of our own.
    local permissions=pubsub.snapshots.create,pubsub.snapshots.delete,pubsub.snapshots.get,pubsub.snapshots.list
    permissions+=,pubsub.snapshots.seek
    if ! exists 'includedPermissions.list(),deleted' gcloud iam roles describe "$snapshots_role" --project="$project"; then
        run gcloud iam roles create "$snapshots_role" --project="$project" --permissions="$permissions" --stage=GA \
            --title="Snapshots of $service" --description='What checkpoints and replay need; see docs/security.md'
    elif [[ $found == *True ]]; then  # by hand, less than a week ago: after that its name is gone for a month
        run gcloud iam roles undelete "$snapshots_role" --project="$project"
    elif [[ ${found%%$'\t'*} != "$permissions" ]]; then
        run gcloud iam roles update "$snapshots_role" --project="$project" --permissions="$permissions"
    fi
    grant projects "$project" "projects/$project/roles/$snapshots_role" "serviceAccount:$runtime"
    # Pub/Sub makes the pusher's tokens. In projects younger than April 2021 it may do so anyway; here it is said, for this
    # account alone, and for identity tokens alone.
    local agent=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com
    local role=roles/iam.serviceAccountOpenIdTokenCreator
    if [[ -n $dry_run ]] ||
        ! bound "$role" "$agent" gcloud iam service-accounts get-iam-policy "$pusher" --project="$project"; then
        # A project that has never used Pub/Sub has no such agent yet.
        run gcloud beta services identity create --service=pubsub.googleapis.com --project="$project"
    fi
    grant 'iam service-accounts' "$pusher" "$role" "$agent" --project="$project"
}

render() {  # render NAME: the file with its values, in a place where it can be looked at afterwards
    mkdir -p "$root/.run/deploy"
    env SERVICE="$service" JOB="$job" PROJECT="$project" RUNTIME="$runtime" PUSHER="$pusher" IMAGE="$image" URL="$url" \
        REPLICA_URL="gs://$bucket/$prefix" SUBSCRIPTION="$subscription" ACK_DEADLINE_SECONDS="$ack_deadline" \
        REQUEST_TIMEOUT_SECONDS="$((ack_deadline + 30))" CPU="${CPU:-1}" MEMORY="${MEMORY:-1Gi}" \
        DATA_SIZE="${DATA_SIZE:-480Mi}" INGRESS="${INGRESS:-internal}" OPERATORS="${OPERATORS-}" \
        CHECKPOINT_HOURS="${CHECKPOINT_HOURS:-0}" LOG_LEVEL="${LOG_LEVEL:-info}" \
        "$python" "$here/render.py" "$here/$1" >"$root/.run/deploy/$1"
}

make_store() {  # before the service, which refuses to start without a store
    render job.yaml
    run gcloud run jobs replace .run/deploy/job.yaml --project="$project" --region="$region"
    exists name gcloud storage objects describe "gs://$bucket/$prefix/lease.json" ||
        run gcloud run jobs execute "$job" --project="$project" --region="$region" --wait
}

make_service() {
    local policy=(gcloud run services get-iam-policy "$service" --project="$project" --region="$region")
    render service.yaml
    # A revision is made only if something differs. It returns once the new one is ready, and has the traffic.
    run gcloud run services replace .run/deploy/service.yaml --project="$project" --region="$region"
    if [[ -z $dry_run ]]; then
        exists metadata.annotations gcloud run services describe "$service" --project="$project" --region="$region"
        [[ $found == *"$url"* ]] || stop "the service is not at $url: choose a shorter SERVICE, 63 letters with the number"
        local member
        for member in allUsers allAuthenticatedUsers; do  # nobody without an account of ours, whoever allowed it
            ! bound roles/run.invoker "$member" "${policy[@]}" ||
                run gcloud run services remove-iam-policy-binding "$service" --project="$project" --region="$region" \
                    --role=roles/run.invoker --member="$member"
        done
    fi
    local operator members=("serviceAccount:$pusher") operators
    IFS=, read -ra operators <<<"${OPERATORS-}"
    for operator in ${operators[@]+"${operators[@]}"}; do
        case $operator in
            *.gserviceaccount.com) members+=("serviceAccount:$operator") ;;
            *) members+=("user:$operator") ;;
        esac
    done
    for member in "${members[@]}"; do
        grant 'run services' "$service" roles/run.invoker "$member" --project="$project" --region="$region"
    done
}

make_subscription() {  # last: messages come from now on
    env ENDPOINT="$url/" PUSH_AUDIENCE="$url" PUSH_SERVICE_ACCOUNT="$pusher" ACK_DEADLINE_SECONDS="$ack_deadline" \
        TOPIC="$topic" SCHEMA="$schema" SUBSCRIPTION="$subscription" DEAD_LETTERS="$dead_letters" DRY_RUN="$dry_run" \
        deploy/pubsub.sh "$project"
    # To seek this subscription, to snapshot it, and to see its settings.
    local role
    for role in roles/pubsub.subscriber roles/pubsub.viewer; do
        grant 'pubsub subscriptions' "$subscription" "$role" "serviceAccount:$runtime" --project="$project"
    done
}

cd "$root"
python=${PYTHON:-python3}
output=$(mktemp)
trap 'rm -f "$errors" "$output"' EXIT
ack_deadline=${ACK_DEADLINE_SECONDS:-60}
# Pub/Sub takes 10 and more, but the worker's other limits, at their defaults, fit into 26 and more (INV-8). What the worker would
# refuse is refused here, before anything is made.
[[ $ack_deadline =~ ^(2[6-9]|[3-9][0-9]|[1-5][0-9][0-9]|600)$ ]] ||
    stop "ACK_DEADLINE_SECONDS is '$ack_deadline': give whole seconds, 26 to 600" 2
[[ ${LOG_LEVEL:-info} =~ ^(debug|info|warning|error)$ ]] ||
    stop "LOG_LEVEL is '$LOG_LEVEL': give debug, info, warning or error" 2
[[ ${CHECKPOINT_HOURS:-0} =~ ^(0|[1-9][0-9]*(\.[0-9]+)?)$ ]] ||
    stop "CHECKPOINT_HOURS is '$CHECKPOINT_HOURS': give 0, or a number from 1 on" 2
[[ ${INGRESS:-internal} =~ ^(internal|internal-and-cloud-load-balancing|all)$ ]] ||
    stop "INGRESS is '$INGRESS': give internal, internal-and-cloud-load-balancing or all" 2
[[ ${SOFT_DELETE_DAYS:-7} =~ ^(0|[7-9]|[1-8][0-9]|90)$ ]] ||
    stop "SOFT_DELETE_DAYS is '$SOFT_DELETE_DAYS': give 0, or whole days from 7 to 90" 2
image=${IMAGE:-$region-docker.pkg.dev/$project/$repository/worker:$(fingerprint)}

enable_apis
number=PROJECT_NUMBER
[[ -n $dry_run ]] || number=$(gcloud projects describe "$project" --format='value(projectNumber)')
# Known before the service is there, so it can be told whom its callers' tokens must be for
# (Cloud Run documentation, "Deterministic URL").
url=https://$service-$number.$region.run.app
make_bucket
[[ -n ${IMAGE-} ]] || build_image
make_accounts
make_store
make_service
make_subscription
printf '# %s serves gs://%s/%s at %s, with %s\n' "$service" "$bucket" "$prefix" "$url" "$image"
