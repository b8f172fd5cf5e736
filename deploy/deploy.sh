#!/usr/bin/env bash
# From a clone to a running service, or the same service brought up to date. Running it again changes nothing. Each step looks
# first and creates what is missing, so the next run completes one that broke off. What each account may do, and why:
# docs/security.md. The steps: docs/deploy.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

usage() {
    cat <<'END'
usage: deploy/deploy.sh PROJECT REGION

Creates or updates everything that the service needs in PROJECT: APIs, bucket, accounts, image, store, service, subscription,
alerts. At the end it publishes a user, reads it back and erases it (deploy/smoke.sh), and fails if that does.
It prints each command before it runs it. Settings, as environment variables:

END
    settings_help
    cat <<'END'
  IMAGE                    none: an image that is there already, instead of one built from this clone; for going back
  DOCKER_HUB               a repository of this project that keeps what it fetches from Docker Hub; or a mirror such as
                           mirror.gcr.io, or docker.io itself, which refuses what it finds too much
  BUILD_REGION             none: wherever Cloud Build finds room; otherwise the region of the build
  CPU                      1; above 4Gi of MEMORY 2, above 8Gi 4, above 16Gi 6, above 24Gi 8
  MEMORY                   1Gi: four times the database, and six times QUEUE_MAX_BYTES
  DATA_SIZE                none; otherwise /data is a volume in memory of this size, three times the database
  INGRESS                  internal; all: from anywhere, still only with a token of an account that may invoke
  NETWORK, SUBNET          default, default: through which the job's commands reach the service; NETWORK empty: they do not
  ACK_DEADLINE_SECONDS     60: for the service and for the subscription
  OPERATORS                none: service accounts, with commas between, that may resolve rejections; people impersonate them
  INVOKERS                 none: other members that may call the service, such as serviceAccount:reader@... ; others are removed
  CHECKPOINT_HOURS         0: as for the worker
  LOG_LEVEL                info: as for the worker
  DRILL_SCHEDULE           none: when to drill, as cron writes it, such as '30 4 * * *'
  ALERT_EMAIL              none: where alerts are sent
  SMOKE                    1; 0: end without the smoke test
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

patient_of_grants() {  # patient_of_grants COMMAND...: run it in sight, and again only if a right is missing, which may be new
    local attempt
    show "$@"
    [[ -z $dry_run ]] || return 0
    for attempt in 1 2 3 4 5 6; do
        "$@" 2>"$errors" && return 0
        cat "$errors" >&2
        [[ $(<"$errors") =~ PERMISSION_DENIED|[Pp]ermission|403|does\ not\ exist ]] || break
        [[ $attempt == 6 ]] || sleep "${RETRY_SECONDS:-10}"
    done
    stop "it failed, see above: \`$*\`"
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
    [[ ${group[0]} == pubsub || ${group[*]} == 'run jobs' ]] || condition=(--condition=None)
    patiently gcloud "${group[@]}" add-iam-policy-binding "$resource" "$@" --role="$role" --member="$member" \
        ${condition[@]+"${condition[@]}"}
}

account() {  # account EMAIL WHAT-FOR: without keys; only what is attached to it, or may impersonate it, can use it
    exists email gcloud iam service-accounts describe "$1" --project="$project" ||
        run gcloud iam service-accounts create "${1%%@*}" --project="$project" --display-name="$2"
}

enable_apis() {
    local wanted=(artifactregistry cloudbuild cloudresourcemanager iam iamcredentials logging monitoring pubsub run storage)
    local enabled='' missing=() name
    [[ -z $network ]] || wanted+=(compute)
    [[ -z ${DRILL_SCHEDULE-} ]] || wanted+=(cloudscheduler)
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

make_image_places() {
    exists name gcloud artifacts repositories describe "$repository" --project="$project" --location="$region" || {
        # A tag stays what it was: what was reviewed under it is what runs, also after going back.
        run gcloud artifacts repositories create "$repository" --project="$project" --location="$region" \
            --repository-format=docker --immutable-tags
        # The ten newest images stay, and what is younger than 90 days.
        run gcloud artifacts repositories set-cleanup-policies "$repository" --project="$project" --location="$region" \
            --policy=deploy/image-cleanup.json --no-dry-run
    }
    # Docker Hub refuses anonymous downloads beyond a rate, and Cloud Build shares its addresses with others.
    [[ -n ${DOCKER_HUB-} ]] ||
        exists name gcloud artifacts repositories describe "$hub" --project="$project" --location="$region" ||
        run gcloud artifacts repositories create "$hub" --project="$project" --location="$region" \
            --repository-format=docker --mode=remote-repository --remote-docker-repo=DOCKER-HUB
    # Of the sources, which hold no secret, a copy for a day. Soft delete off: nothing of it is worth more.
    exists name gcloud storage buckets describe "gs://$build_bucket" || {
        run gcloud storage buckets create "gs://$build_bucket" --project="$project" --location="$region" \
            --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0s
        run gcloud storage buckets update "gs://$build_bucket" --lifecycle-file=deploy/build-lifecycle.json
    }
}

grant_build() {
    grant 'storage buckets' "gs://$build_bucket" roles/storage.objectViewer "serviceAccount:$builder"
    grant 'artifacts repositories' "$repository" roles/artifactregistry.writer "serviceAccount:$builder" \
        --project="$project" --location="$region"
    [[ -n ${DOCKER_HUB-} ]] || grant 'artifacts repositories' "$hub" roles/artifactregistry.reader "serviceAccount:$builder" \
        --project="$project" --location="$region"
    grant projects "$project" roles/logging.logWriter "serviceAccount:$builder"
}

build_image() {
    exists image_summary.digest gcloud artifacts docker images describe "$image" --project="$project" && return
    local where=() from=${DOCKER_HUB-}
    [[ -n $from ]] || from=$region-docker.pkg.dev/$project/$hub
    [[ -z ${BUILD_REGION-} ]] || where=(--region="$BUILD_REGION")
    # The ignore file is found beside the sources.
    patient_of_grants gcloud builds submit . --project="$project" ${where[@]+"${where[@]}"} --config=deploy/cloudbuild.yaml \
        --substitutions="_IMAGE=$image,_DOCKER_HUB=$from,_RUN_AS=$run_as" \
        --service-account="projects/$project/serviceAccounts/$builder" --gcs-source-staging-dir="gs://$build_bucket/source"
}

fingerprint() {  # of everything that ends up in the image: the same sources are not built twice, others never get the same tag
    (
        cd "$root"
        printf '%s\n' "$run_as"
        find .dockerignore Dockerfile publisher requirements.lock worker -type f \
            -not -path '*/__pycache__/*' | LC_ALL=C sort | while read -r file; do printf '%s\n' "$file"; cat "$file"; done
    ) | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'
}

make_accounts() {  # all of them, and their rights, before the first is used: a right takes a while to be known everywhere
    account "$runtime" "Runs $service"
    account "$pusher" "Pushes to $service"
    [[ -n ${IMAGE-} ]] || account "$builder" "Builds $service's image"
    [[ -z ${DRILL_SCHEDULE-} ]] || account "$scheduler" "Starts $service's drills"
    [[ -n ${IMAGE-} ]] || grant_build
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

render() {  # render NAME [AS]: the file with its values, in a place where it can be looked at afterwards
    mkdir -p "$root/.run/deploy"
    env SERVICE="$service" JOB="$job" PROJECT="$project" RUNTIME="$runtime" PUSHER="$pusher" IMAGE="$image" URL="$url" \
        REPLICA_URL="gs://$bucket/$prefix" SUBSCRIPTION="$subscription" ACK_DEADLINE_SECONDS="$ack_deadline" \
        REQUEST_TIMEOUT_SECONDS="$((ack_deadline + 30))" CPU="${CPU:-1}" MEMORY="${MEMORY:-1Gi}" \
        DATA_SIZE="${DATA_SIZE-}" INGRESS="${INGRESS:-internal}" OPERATORS="${OPERATORS:+$OPERATORS,}$runtime" \
        CHECKPOINT_HOURS="${CHECKPOINT_HOURS:-0}" LOG_LEVEL="${LOG_LEVEL:-info}" NETWORK="$network" SUBNET="$subnet" \
        VERB="${verb-init}" RETRIES="${retries-3}" CHANNEL="${channel-}" DEAD_LETTERS="$dead_letters" \
        "$python" "$here/render.py" "$here/$1" >"$root/.run/deploy/${2-$1}"
}

make_network() {  # so that the job's commands reach a service with internal ingress; the service itself needs no network
    [[ -n $network ]] || return 0
    if [[ -z $dry_run ]]; then
        exists privateIpGoogleAccess gcloud compute networks subnets describe "$subnet" --project="$project" \
            --region="$region" ||
            stop "there is no subnet '$subnet' in $region: set NETWORK and SUBNET, or NETWORK= for commands that cannot reach the service"
        [[ $found != True ]] || return 0
    fi
    run gcloud compute networks subnets update "$subnet" --project="$project" --region="$region" \
        --enable-private-ip-google-access
}

make_store() {  # before the service, which refuses to start without a store
    render job.yaml
    run gcloud run jobs replace .run/deploy/job.yaml --project="$project" --region="$region"
    exists name gcloud storage objects describe "gs://$bucket/$prefix/lease.json" ||
        patient_of_grants gcloud run jobs execute "$job" --project="$project" --region="$region" --wait
}

make_service() {
    local role
    local policy=(gcloud run services get-iam-policy "$service" --project="$project" --region="$region")
    render service.yaml
    # A revision is made only if something differs. It returns once the new one is ready, and has the traffic.
    run gcloud run services replace .run/deploy/service.yaml --project="$project" --region="$region"
    if [[ -z $dry_run ]]; then
        exists metadata.annotations gcloud run services describe "$service" --project="$project" --region="$region"
        [[ $found == *"$url"* ]] || stop "the service is not at $url: choose a shorter SERVICE, 63 letters with the number"
    fi
    local operator member members=("serviceAccount:$pusher" "serviceAccount:$runtime") operators invokers
    IFS=, read -ra operators <<<"${OPERATORS-}"
    IFS=, read -ra invokers <<<"${INVOKERS-}"
    for operator in ${operators[@]+"${operators[@]}"}; do
        members+=("serviceAccount:$operator")
    done
    members+=(${invokers[@]+"${invokers[@]}"})
    if [[ -z $dry_run ]]; then  # no account that is not named here: allUsers, a former operator
        found=$("${policy[@]}" --flatten='bindings[].members' --format='value(bindings.role,bindings.members)') ||
            stop "cannot read who may call $service, see above"
        while IFS=$'\t' read -r role member; do
            [[ $role == roles/run.invoker && " ${members[*]} " != *" $member "* ]] || continue
            run gcloud run services remove-iam-policy-binding "$service" --project="$project" --region="$region" \
                --role=roles/run.invoker --member="$member"
        done <<<"$found"
    fi
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

make_drill() {
    [[ -n ${DRILL_SCHEDULE-} ]] || return 0
    # A verdict is a verdict: the job is not tried again, and neither is its start.
    job=$drill_job verb=drill retries=0 render job.yaml drill-job.yaml
    run gcloud run jobs replace .run/deploy/drill-job.yaml --project="$project" --region="$region"
    grant 'run jobs' "$drill_job" roles/run.invoker "serviceAccount:$scheduler" --project="$project" --region="$region"
    local verb=create
    ! exists name gcloud scheduler jobs describe "$drill_job" --project="$project" --location="$region" || verb=update
    run gcloud scheduler jobs "$verb" http "$drill_job" --project="$project" --location="$region" \
        --schedule="$DRILL_SCHEDULE" --http-method=POST --max-retry-attempts=0 \
        --uri="https://run.googleapis.com/v2/projects/$project/locations/$region/jobs/$drill_job:run" \
        --oauth-service-account-email="$scheduler"
}

make_alerts() {
    local channel='' policy name known=''
    if [[ -n ${ALERT_EMAIL-} ]]; then
        [[ -n $dry_run ]] || channel=$(gcloud beta monitoring channels list --project="$project" --format='value(name)' \
            --filter="type=\"email\" AND labels.email_address=\"$ALERT_EMAIL\"" | head -n 1)
        if [[ -z $channel ]]; then
            run gcloud beta monitoring channels create --project="$project" --display-name="$service" --type=email \
                --channel-labels="email_address=$ALERT_EMAIL"
            [[ -n $dry_run ]] || channel=$(gcloud beta monitoring channels list --project="$project" --format='value(name)' \
                --filter="type=\"email\" AND labels.email_address=\"$ALERT_EMAIL\"" | head -n 1)
        fi
    fi
    local filter="resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"$service\""
    exists name gcloud logging metrics describe "$service-starts" --project="$project" ||
        run gcloud logging metrics create "$service-starts" --project="$project" \
            --description="Starts of $service's instances" --log-filter="$filter AND jsonPayload.action=\"worker.starting\""
    [[ -n $dry_run ]] || known=$(gcloud alpha monitoring policies list --project="$project" \
        --filter="userLabels.solowriter=\"$service\"" --format='value(displayName,name)')
    mkdir -p "$root/.run/deploy/alert-policies"
    for policy in deploy/alert-policies/*.yaml; do
        policy=${policy#deploy/}
        render "$policy"
        name=$(sed -n 's/^displayName: "\(.*\)"$/\1/p' ".run/deploy/$policy")
        if [[ $'\n'$known =~ $'\n'"$name"$'\t'([^$'\n']+) ]]; then
            run gcloud alpha monitoring policies update "${BASH_REMATCH[1]}" --project="$project" \
                --policy-from-file=".run/deploy/$policy"
        else
            # A metric that was made a moment ago is not known to alerts at once.
            patiently gcloud alpha monitoring policies create --project="$project" --policy-from-file=".run/deploy/$policy"
        fi
    done
    [[ -n ${ALERT_EMAIL-} ]] || printf '# nothing is told of alerts: set ALERT_EMAIL\n'
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
[[ ${OPERATORS-} =~ ^([a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com(,|$))*$ ]] ||
    stop "OPERATORS is '$OPERATORS': give service accounts, which people impersonate; a person's token cannot be made for the service (docs/security.md)" 2
[[ ${MEMORY:-1Gi} =~ ^([1-9][0-9]*)(Mi|Gi)$ ]] || stop "MEMORY is '$MEMORY': give it in Mi or Gi, such as 2Gi" 2
mebibytes=${BASH_REMATCH[1]}
[[ ${BASH_REMATCH[2]} == Mi ]] || mebibytes=$((mebibytes * 1024))
# Cloud Run documentation, "Configure memory limits": the fewest CPUs for so much memory.
cpus=1
for step in 4096:2 8192:4 16384:6 24576:8; do
    ((mebibytes <= ${step%:*})) || cpus=${step#*:}
done
((mebibytes >= 512 && mebibytes <= 32768)) || stop "MEMORY is '$MEMORY': give 512Mi to 32Gi" 2
[[ ${CPU:-1} =~ ^(1|2|4|6|8)$ ]] && ((${CPU:-1} >= cpus)) ||
    stop "CPU is '${CPU:-1}': with MEMORY=${MEMORY:-1Gi} Cloud Run takes 1, 2, 4, 6 or 8, and $cpus at least" 2
[[ -n ${DATA_SIZE-} ]] && run_as=0:0 || run_as=10001:10001
image=${IMAGE:-$region-docker.pkg.dev/$project/$repository/worker:$(fingerprint)}

enable_apis
number=PROJECT_NUMBER
[[ -n $dry_run ]] || number=$(gcloud projects describe "$project" --format='value(projectNumber)')
# Known before the service is there, so it can be told whom its callers' tokens must be for
# (Cloud Run documentation, "Deterministic URL").
url=https://$service-$number.$region.run.app
make_bucket
[[ -n ${IMAGE-} ]] || make_image_places
make_accounts
make_network
[[ -n ${IMAGE-} ]] || build_image
make_store
make_service
make_subscription
make_drill
make_alerts
printf '# %s serves gs://%s/%s at %s, with %s\n' "$service" "$bucket" "$prefix" "$url" "$image"
[[ ${SMOKE:-1} == 0 ]] || deploy/smoke.sh "$project" "$region"
